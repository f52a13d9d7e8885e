"""The Kata handlers that a blueprint names, for who only looks at them.

No more is read than name, runtime and path, without the parser that judges the whole file: it
takes longer than all else that such a look does. A handler that is not in order is left out;
``kata-gpu plan`` and ``doctor`` say what is wrong with it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.settings import toml_text

_RUNTIMES: Final = {runtime.value: runtime for runtime in Runtime}


def load(path: Path) -> tuple[KataHandler, ...] | None:
    """Return the handlers of the blueprint at *path*; None where there is no such file.

    Raises:
        InvalidBlueprint: it cannot be read, or is not TOML.
    """
    text = toml_text.read(path)
    if text is None:
        return None
    return tuple(_handlers(toml_text.tables(text, origin=str(path)).get("kata")))


def _handlers(table: Any) -> Iterator[KataHandler]:
    listed = table.get("handler") if isinstance(table, dict) else None
    for item in listed if isinstance(listed, tuple) else ():
        match item:
            case {"name": str(name), "runtime": str(word), "config": str(config)}:
                runtime = _RUNTIMES.get(word)
                if runtime is not None and config.startswith("/") and config.isprintable():
                    yield KataHandler(name=name, runtime=runtime, config=config)
            case _:
                continue
