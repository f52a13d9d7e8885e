"""What was in order, and what became of it without us: drift, and whoever keeps causing it.

What differs from how we left it is put back, or only reported where the blueprint says so. A
program that undoes our work again and again is not fought: after a few times we stop, say so,
and look again later.
"""

import time
from typing import Final

from kata_gpu.agent.node import Turn
from kata_gpu.model.blueprint import Drift
from kata_gpu.model.plan import MakeVirtuals, MoveGroup, RemoveFile, Step, WriteFile
from kata_gpu.model.report import NodeState, Result
from kata_gpu.model.restraint import Order, Setback
from kata_gpu.model.unit import UnitState

_REPAIRS_MAX: Final = 3
_WINDOW_S: Final = 600.0
_IN_ORDER: Final = frozenset({UnitState.AVAILABLE, UnitState.IN_USE})


class Watchman:
    """Remembers the order of the last turn, and who was repaired how often."""

    def __init__(self) -> None:
        self._order = Order()
        self._repairs: dict[str, list[float]] = {}
        self._contested: dict[str, float] = {}

    def forget(self) -> None:
        """Begin anew: what differs from a new blueprint is no drift."""
        self.__init__()  # type: ignore[misc]

    def kept(self, policy: Drift) -> Order:
        """Return what is to be left as it is when it differs; nothing where drift is repaired."""
        return self._order if policy is Drift.REPORT else Order()

    def contested(self) -> dict[str, Setback]:
        """Return the units and files that somebody else keeps changing, with what was seen."""
        now = time.monotonic()
        self._contested = {s: until for s, until in self._contested.items() if until > now}
        return {
            subject: Setback(
                reason=f"foreign writer: another program undid it {_REPAIRS_MAX} times within "
                f"{_WINDOW_S / 60:.0f} minutes",
                state=UnitState.CONTESTED,
            )
            for subject in self._contested
        }

    def learn(self, turn: Turn, state: NodeState) -> None:
        """Note what the turn repaired, and the order that it left."""
        files = dict(self._order.files)
        for step, outcome in turn.taken:
            if outcome.result is Result.DONE:
                self._follow(step, files)
        for path in state.files:  # what an earlier agent wrote, and is as it should be
            found = turn.inventory.content(path)
            if found is not None and path not in files and not turn.plan.steps:
                files[path] = found
        self._order = Order(
            units=_in_order(turn, state) | (self._order.units & _drifted(state)),
            files={path: content for path, content in files.items() if path in state.files},
        )

    def _follow(self, step: Step, files: dict[str, str]) -> None:
        """Keep *files* as the step left them, and count a step that was taken before."""
        match step:
            case WriteFile(path=path, content=content):
                if files.get(path) == content:
                    self._repaired(path)
                files[path] = content
            case RemoveFile(path=path):
                files.pop(path, None)
            case MoveGroup(entry=entry) if not step.is_release:
                self._repaired_if_in_order(entry.unit)
            case MakeVirtuals(parent=parent):
                self._repaired_if_in_order(str(parent))
            case _:
                return

    def _repaired_if_in_order(self, unit: str) -> None:
        if unit in self._order.units:
            self._repaired(unit)

    def _repaired(self, subject: str) -> None:
        now = time.monotonic()
        times = [at for at in self._repairs.get(subject, ()) if at > now - _WINDOW_S] + [now]
        self._repairs[subject] = times
        if len(times) >= _REPAIRS_MAX:
            self._contested[subject] = now + _WINDOW_S
            del self._repairs[subject]


def _in_order(turn: Turn, state: NodeState) -> frozenset[str]:
    """Return the units that are as they shall be, and the physical functions of virtual ones."""
    units = {unit.id for unit in state.units if unit.state in _IN_ORDER}
    parents = {f.parent for f in turn.inventory.functions if str(f.address) in units}
    return frozenset(units | {str(parent) for parent in parents if parent is not None})


def _drifted(state: NodeState) -> set[str]:
    return {found.subject for found in state.findings if found.state is UnitState.DRIFTED}
