"""The effective configuration as text: TOML, with the file of each value where that is asked."""

from collections.abc import Iterable
from typing import Any

from kata_gpu.model.kata import Effective, InstalledFile, Key, Setting
from kata_gpu.plan.kata.parsing import Record, thawed


def toml(found: Effective) -> str:
    """Return what counts as TOML."""
    import tomli_w  # noqa: PLC0415 - for who prints it

    return tomli_w.dumps(_nested(found))


def with_origins(found: Effective) -> str:
    """Return what counts as TOML, each value with the file that it is from."""
    lines: list[str] = []
    for table, settings in _by_table(found):
        lines += ["", f"[{_dotted(table)}]"] if table else []
        arrays = []
        for name, setting in settings:
            if _is_array_of_tables(setting.value):
                arrays.append((name, setting))
                continue
            text = f"{_dotted((name,))} = {_inline(setting.value)}"
            lines.append(f"{text}  # from {setting.file}")
        for name, setting in arrays:
            for item in setting.value:
                lines += ["", f"[[{_dotted((*table, name))}]]  # from {setting.file}"]
                lines += [f"{_dotted((key,))} = {_inline(value)}" for key, value in item.items]
    return "\n".join(lines).lstrip("\n") + "\n"


def document(found: Effective, file: InstalledFile) -> dict[str, Any]:
    """Return all of it for programs."""
    return {
        "handler": file.name,
        "base": file.configuration.path,
        "runtime": found.runtime.value,
        "hypervisor": found.hypervisor,
        "refused": bool(found.fatal),
        "configuration": _plain(_nested(found)),
        "origins": {_dotted(key): setting.file for key, setting in found.settings.items()},
        "faults": [
            {
                "file": fault.file,
                "key": fault.key,
                "rule": fault.rule,
                "fatal": fault.is_fatal,
                "reason": fault.reason,
            }
            for fault in found.faults
        ],
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: times as text."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case str() | int() | float():
            return value
        case _:
            return value.isoformat()


def _nested(found: Effective) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, setting in found.settings.items():
        table = root
        for name in key[:-1]:
            table = table.setdefault(name, {})
        table[key[-1]] = thawed(setting.value)
    return root


def _by_table(found: Effective) -> Iterable[tuple[Key, list[tuple[str, Setting]]]]:
    tables: dict[Key, list[tuple[str, Setting]]] = {}
    for key, setting in found.settings.items():
        tables.setdefault(key[:-1], []).append((key[-1], setting))
    return sorted(tables.items(), key=lambda pair: pair[0])


def _is_array_of_tables(value: Any) -> bool:
    return isinstance(value, tuple) and value != () and all(isinstance(i, Record) for i in value)


def _dotted(key: Key) -> str:
    """Return a key as TOML writes it, in quotes where it needs them."""
    return ".".join(_assignment(name, 0).removesuffix(" = 0") for name in key)


def _inline(value: Any) -> str:
    """Return a value on one line."""
    match value:
        case tuple():
            return f"[{', '.join(map(_inline, value))}]"
        case Record(items=items):
            inner = ", ".join(f"{_dotted((name,))} = {_inline(item)}" for name, item in items)
            return f"{{ {inner} }}" if inner else "{}"
        case _:
            return _assignment("x", value).removeprefix("x = ")


def _assignment(name: str, value: Any) -> str:
    import tomli_w  # noqa: PLC0415 - for who prints it

    return tomli_w.dumps({name: value}).rstrip("\n")
