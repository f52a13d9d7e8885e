"""The log: one line for each event, whatever somebody else's words are that it repeats.

A claim's author, a file's name or a program's complaint must neither begin a line that looks like
the agent's own nor steer the terminal of who reads it.
"""

import logging
from typing import Any, Final

_MAX: Final = 8192
"""Characters of an event; the journal would break it in several at some length."""

_TRACED: Final = "| "
"""Before each line of a traceback, which may repeat somebody's words too."""


class OneLine(logging.Formatter):
    """Formats an event as one line, and its traceback as lines that look like no event."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, less the traceback."""
        return _escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the traceback."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"{_TRACED}{_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    clipped = text if len(text) <= _MAX else f"{text[:_MAX]}…"
    if clipped.isprintable():
        return clipped
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in clipped
    )
