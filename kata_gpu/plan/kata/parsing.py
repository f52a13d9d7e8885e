"""TOML of other people as flat values: bounded, and never an exception.

A text is parsed once however often it is asked for: a daemon looks at the same base files turn
after turn.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from kata_gpu.model.kata import Key

_DEPTH_MAX: Final = 32
_INTEGERS: Final = range(-(1 << 63), 1 << 63)  # of TOML parsers in Go and Rust
_VALUES_MAX: Final = 4096  # Kata's own files have 150
_TEXTS_KEPT: Final = 128
_KEPT_MAX_CHARACTERS: Final = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A text's values in their order, or why it has none."""

    values: tuple[tuple[Key, Any], ...] = ()
    """Scalars, and arrays as tuples; a table of an array is a tuple of pairs in `Record`."""

    tables: tuple[Key, ...] = ()
    """All tables, also those without values."""

    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A table inside an array."""

    items: tuple[tuple[str, Any], ...]


def parse(text: str) -> Parsed:
    """Return what a TOML *text* says."""
    return _kept(text) if len(text) <= _KEPT_MAX_CHARACTERS else _parse(text)


def _parse(text: str) -> Parsed:
    import tomllib  # noqa: PLC0415 - a release and most verbs read none

    try:
        return _flat(tomllib.loads(text))
    except ValueError as error:  # TOMLDecodeError, int() of thousands of digits, or ours
        return Parsed(error=f"not TOML: {error}")
    except RecursionError:
        return Parsed(error="not TOML: it is nested too deeply")


_kept = lru_cache(maxsize=_TEXTS_KEPT)(_parse)


def _flat(root: dict[str, Any]) -> Parsed:
    values: list[tuple[Key, Any]] = []
    tables: list[Key] = []
    pending: list[tuple[Key, Any]] = [((), root)]
    while pending:
        key, value = pending.pop()
        if len(key) > _DEPTH_MAX:
            raise ValueError("it is nested too deeply")
        if len(values) + len(tables) > _VALUES_MAX:
            raise ValueError(f"it has more than {_VALUES_MAX} values and tables")
        if isinstance(value, dict):
            tables.append(key)
            pending += [((*key, name), item) for name, item in reversed(value.items())]
        else:
            values.append((key, _frozen(value)))
    return Parsed(values=tuple(values), tables=tuple(tables[1:]))


def _frozen(value: Any) -> Any:
    match value:
        case dict():
            return Record(tuple((name, _frozen(item)) for name, item in value.items()))
        case list():
            return tuple(map(_frozen, value))
        case int() if value not in _INTEGERS:
            raise ValueError("a number has more than 64 bits")
        case _:
            return value


def thawed(value: Any) -> Any:
    """Return a value as tomllib and JSON have it."""
    match value:
        case Record(items=items):
            return {name: thawed(item) for name, item in items}
        case tuple():
            return [thawed(item) for item in value]
        case _:
            return value
