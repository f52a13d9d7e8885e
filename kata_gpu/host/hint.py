"""A hint: word that something may not be what it was, from whatever told it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """One reason to look again; never a state."""

    text: str
    """For a log; names from outside are quoted in it."""

    changed: str | None = None
    """The watched path that may lead to something else now; None for a device's event."""

    opened: str | None = None
    """The device node that somebody opened; None when nobody did."""
