"""What the agent says on its status socket, as values again."""

from datetime import datetime
from typing import Any, Final

from kata_gpu.model.explanation import Said, Unsaid
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.report import Outcome, Result
from kata_gpu.model.unit import UnitState

_NO_ANSWER: Final = (
    *(KeyError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError),  # of numbers without end, and lists in lists
)


def parse(answer: Any) -> Said | Unsaid:
    """Return what an answer to GET /v1/status says; an agent of another version says nothing."""
    try:
        if not answer["ready"]:
            return Unsaid(reason="the agent takes its first turn")
        return Said(
            agent=str(answer["agent"]),
            blueprint=str(answer["blueprint"]),
            read_at=datetime.fromisoformat(answer["read_at"]),
            states={
                str(unit["id"]): (UnitState(unit["state"]), str(unit["reason"]))
                for unit in answer["units"]
            },
            findings=tuple(map(_finding, answer["findings"])),
            outcomes=tuple(map(_outcome, answer["last_report"]["outcomes"])),
            troubles=tuple(_troubles(answer)),
        )
    except _NO_ANSWER as error:
        return Unsaid(reason=f"the agent's answer is of another version ({error!r:.200})")


def _finding(found: dict[str, Any]) -> Finding:
    state = found["state"]
    return Finding(
        severity=Severity(found["severity"]),
        subject=str(found["subject"]),
        reason=str(found["reason"]),
        remedy=str(found["remedy"]),
        state=None if state is None else UnitState(state),
    )


def _outcome(ended: dict[str, Any]) -> Outcome:
    unit, detail = ended["unit"], ended["detail"]
    return Outcome(
        step=str(ended["step"]),
        result=Result(ended["result"]),
        unit=None if unit is None else str(unit),
        detail=None if detail is None else str(detail),
        elapsed_s=float(ended["elapsed_s"]),
        ended_at=datetime.fromisoformat(ended["ended_at"]),
    )


def _troubles(answer: dict[str, Any]) -> list[str]:
    said = (("blueprint_error", "the blueprint was not read again"), ("turn_error", "this is old"))
    return [f"{what}: {answer[key]}" for key, what in said if key in answer]
