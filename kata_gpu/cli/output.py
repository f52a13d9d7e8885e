"""Tables for people, JSON and YAML for programs; colour on a terminal only."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

FORMATS: Final = ("table", "wide", "json", "yaml")
_GAP: Final = "  "
_COLOURS: Final = {
    "good": "\033[32m",
    "bad": "\033[31m",
    "doubtful": "\033[33m",
    "dim": "\033[2m",
}
_PLAIN: Final = "\033[0m"


def dump(value: Any, form: str) -> str:
    """Return a JSON-able *value* as ``json`` or ``yaml``."""
    if form == "json":
        import json  # noqa: PLC0415 - only for who asks for it

        return json.dumps(value, indent=2, ensure_ascii=False)
    import yaml  # noqa: PLC0415 - only for who asks for it

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip("\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return aligned columns; None and empty cells read ``-``."""
    cells = [list(header)]
    cells += [["-" if cell in {None, ""} else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def coloured(text: str, colour: str) -> str:
    """Return *text* in a colour when standard output is a terminal that wants any."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"{_COLOURS[colour]}{text}{_PLAIN}"


def clipped(line: str) -> str:
    """Return *line* no longer than the terminal is wide, so that it can be taken back."""
    return line[: os.get_terminal_size(sys.stdout.fileno()).columns - 1]


def size(count: int) -> str:
    """Return bytes as a person reads them: 16M, 8G."""
    for unit in ("", "K", "M", "G"):
        if count < 1024 or count % 1024:  # noqa: PLR2004 - a kibibyte
            return f"{count}{unit}"
        count //= 1024
    return f"{count}T"
