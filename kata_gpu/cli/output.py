"""Tables for people, JSON and YAML for programs; colour on a terminal only."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.model.text import printable as printable_text

FORMATS: Final = ("table", "wide", "json", "yaml")
_GAP: Final = "  "
_COLOURS: Final = {
    "good": "\033[32m",
    "bad": "\033[31m",
    "doubtful": "\033[33m",
    "dim": "\033[2m",
}
_PLAIN: Final = "\033[0m"
STATES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("available", "in-use", "unclaimed"), "good"),
    **dict.fromkeys(("pending", "waiting", "drifted"), "doubtful"),
    **dict.fromkeys(("refused", "foreign", "failed", "contested", "stuck", "quarantined"), "bad"),
    **dict.fromkeys(("host", "ignored"), "dim"),
}
"""The colour of each state of a unit."""


@dataclass(frozen=True, slots=True)
class Tinted:
    """A cell of a table in a colour."""

    text: str
    colour: str

    def __str__(self) -> str:
        return self.text


def dump(value: Any, form: str) -> str:
    """Return a JSON-able *value* as ``json`` or ``yaml``."""
    if form == "json":
        import json  # noqa: PLC0415 - only for who asks for it

        return json.dumps(value, indent=2, ensure_ascii=False)
    import yaml  # noqa: PLC0415 - only for who asks for it

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip("\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return aligned columns; None and empty cells read ``-``."""
    cells: list[list[object]] = [list(header)]
    cells += [["-" if cell in {None, ""} else cell for cell in row] for row in rows]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*cells, strict=True)]
    lines = (_GAP.join(map(_padded, row, widths)).rstrip() for row in cells)
    return "\n".join(lines)


def _padded(cell: object, width: int) -> str:
    text = str(cell).ljust(width)
    return coloured(text, cell.colour) if isinstance(cell, Tinted) else text


def coloured(text: str, colour: str) -> str:
    """Return *text* in a colour when standard output is a terminal that wants any."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"{_COLOURS[colour]}{text}{_PLAIN}"


def printable(value: Any) -> Any:
    """Return a text, or all texts of a document, without what could steer a terminal."""
    match value:
        case str():
            return printable_text(value)
        case Tinted(text=text, colour=colour):
            return Tinted(printable(text), colour)
        case list():
            return [printable(item) for item in value]
        case dict():
            return {printable(key): printable(item) for key, item in value.items()}
        case _:
            return value


def plain(text: str) -> str:
    """Return lines of text without what else could steer a terminal."""
    return "\n".join(map(printable, text.split("\n")))


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
