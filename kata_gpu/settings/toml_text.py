"""The files that an admin writes, as TOML's tables: nothing of them is judged here."""

import tomllib
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.host import files

_MAX_BYTES: Final = 1 << 20


def read(path: Path) -> str | None:
    """Return the text of the file at *path*; None where there is none.

    Raises:
        InvalidBlueprint: it cannot be read.
    """
    try:
        return files.read(path, max_bytes=_MAX_BYTES)
    except HostError as error:
        raise InvalidBlueprint(str(error)) from error


def tables(text: str, *, origin: str) -> dict[str, Any]:
    """Return what a TOML *text* says, arrays as tuples; *origin* names it in messages.

    Raises:
        InvalidBlueprint: it is not TOML.
    """
    try:
        found: dict[str, Any] = _with_tuples(tomllib.loads(text))
    except ValueError as error:  # TOMLDecodeError, or int() of thousands of digits
        raise InvalidBlueprint(f"cannot use {origin}: not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidBlueprint(f"cannot use {origin}: it is nested too deeply") from error
    return found


def _with_tuples(value: Any) -> Any:
    """Return TOML's arrays as tuples: the models are frozen through and through."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value
