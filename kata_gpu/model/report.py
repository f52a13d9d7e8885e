"""What came of a plan, and the whole answer to "how is this node?"."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from kata_gpu.model.confidential import CcMode
from kata_gpu.model.holder import Holder
from kata_gpu.model.inventory import KataBase, Problem
from kata_gpu.model.kubernetes import Door
from kata_gpu.model.ledger import Cleaning
from kata_gpu.model.pci import Binding, PciAddress
from kata_gpu.model.plan import Finding
from kata_gpu.model.platform import Platform
from kata_gpu.model.unit import UnitState


class Result(StrEnum):
    """How a step ended."""

    DONE = "done"
    FAILED = "failed"
    HELD = "held"
    """Nothing was changed, for somebody uses the device."""

    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One step and how it ended."""

    step: str
    result: Result
    unit: str | None
    """The unit the step moves; None for modules and files."""

    detail: str | None
    """Why it failed or was skipped; None when it was done."""

    elapsed_s: float
    ended_at: datetime  # UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All steps of one plan, as they ended."""

    outcomes: tuple[Outcome, ...] = field(default=())

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The steps that came to nothing; those skipped in their wake are not among them."""
        return tuple(o for o in self.outcomes if o.result in {Result.FAILED, Result.HELD})


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFunction:
    """One function of a unit, as it is bound now."""

    address: PciAddress
    label: str
    binding: Binding


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStatus:
    """One unit and why it is in the state it is in."""

    id: str
    state: UnitState
    reason: str
    pool: str
    resource: str | None
    groups: tuple[int, ...]
    numa_node: int | None
    functions: tuple[UnitFunction, ...]
    nodes: tuple[str, ...]
    """Device nodes a VM opens, as in the CDI spec; empty unless it is in there."""

    holders: tuple[Holder, ...]
    """Who has it now, be it a VM or a user on the host."""

    cleaned: Cleaning | None
    """What was done after its last user; None when it had none since it was bound."""

    offer: Door | None = None
    """How its pool offers it to Kubernetes; None when it is not passed through."""

    bundle: str | None = None
    """What it is to be had as together with all of its pool; None when by itself only."""

    cc_mode: CcMode | None = None
    """The confidential mode that its GPUs were in when they were looked at last."""

    cc_unread: str | None = None
    """Why that is not known; None where it is, or where nobody has looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The whole answer, frozen: readers hold it while the next one is made."""

    agent: str
    """Version of the agent."""

    blueprint: str
    pass_number: int
    read_at: datetime  # UTC
    platform: Platform
    units: tuple[UnitStatus, ...]
    kata: tuple[KataBase, ...]
    files: tuple[str, ...]
    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]
    last_report: Report
    """Of the last pass that had something to do."""
