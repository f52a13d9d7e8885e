"""A file as the plan wants it; steps make it so where it is not."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A file as it should be; no content means no file."""

    path: str
    staging: str
    content: str | None
    reason: str

    units: frozenset[str] = frozenset()
    """Units that the file speaks of: a move of theirs must succeed first."""

    stays: bool = False
    """Whether what is there stays as it is, be it there or not."""
