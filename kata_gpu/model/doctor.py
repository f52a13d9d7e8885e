"""What a doctor says of a node: checks with an id that stays, graded, each with its mend."""

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """How much an answer matters, the worst first."""

    ERROR = "error"
    """Passthrough does not work on this node, or is not safe."""

    WARNING = "warning"
    """It may not work, or be less safe than it looks; also what cannot be told."""

    INFO = "info"
    """Worth knowing, nothing to mend."""

    OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One thing that a check found."""

    grade: Grade
    found: str
    why: str | None = None
    """Why it matters, in one sentence; None where there is nothing to mend."""

    remedy: str | None = None
    """What to do; None where there is nothing to mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """An answer under the id of the check that gave it; some checks give several."""

    id: str
    grade: Grade
    found: str
    why: str | None
    remedy: str | None
