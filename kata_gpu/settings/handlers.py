"""The Kata handlers that a blueprint names, for who only looks at them.

No more is read than name, runtime and path, without the parser that judges the whole file: it
takes longer than all else that such a look does. A handler that is not in order is left out;
``kata-gpu plan`` and ``doctor`` say what is wrong with it.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.host import files
from kata_gpu.model.blueprint import KataHandler, Runtime

_MAX_BYTES: Final = 1 << 20
_RUNTIMES: Final = {runtime.value: runtime for runtime in Runtime}


def load(path: Path) -> tuple[KataHandler, ...] | None:
    """Return the handlers of the blueprint at *path*; None where there is no such file.

    Raises:
        InvalidBlueprint: it cannot be read, or is not TOML.
    """
    try:
        text = files.read(path, max_bytes=_MAX_BYTES)
    except HostError as error:
        raise InvalidBlueprint(str(error)) from error
    if text is None:
        return None
    try:
        found = tomllib.loads(text)
    except ValueError as error:
        raise InvalidBlueprint(f"cannot use {path}: not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidBlueprint(f"cannot use {path}: it is nested too deeply") from error
    return tuple(_handlers(found.get("kata")))


def _handlers(table: Any) -> Iterator[KataHandler]:
    listed = table.get("handler") if isinstance(table, dict) else None
    for item in listed if isinstance(listed, list) else ():
        match item:
            case {"name": str(name), "runtime": str(word), "config": str(config)}:
                runtime = _RUNTIMES.get(word)
                if runtime is not None and config.startswith("/") and config.isprintable():
                    yield KataHandler(name=name, runtime=runtime, config=config)
            case _:
                continue
