"""A plan: every change to the node, in order, complete to the last path and byte.

The executor takes the steps as they stand and chooses nothing. A step is skipped when a
step it needs did not succeed.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from kata_gpu.model.ledger import LedgerEntry, Stage
from kata_gpu.model.pci import Binding, PciAddress


class Severity(StrEnum):
    """How much a finding matters."""

    INFO = "info"
    WARNING = "warning"
    REFUSED = "refused"
    """What the blueprint asks for is not done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the planner noticed and an admin should know."""

    severity: Severity
    subject: str
    """A unit, a pool, a Kata handler, or "node"."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModule:
    """Load a kernel module, so that it registers a PCI driver."""

    module: str
    units: tuple[str, ...]
    """Those that need it: they cannot be had without."""

    reason: str
    needs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One function's way from the binding it has to the one it shall have."""

    address: PciAddress
    before: Binding
    target: Binding

    def __str__(self) -> str:
        if self.before.driver == self.target.driver:
            return f"{self.address}  {self.before} → {self.target}"
        return (
            f"{self.address}  {self.before.driver or 'no driver'}"
            f" → {self.target.driver or 'no driver'}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveGroup:
    """Move all functions of a unit, or none: overrides first, then unbind, then bind.

    Without moves the bindings are only verified, and the ledger brought up to date.
    """

    entry: LedgerEntry
    """What the ledger says before the first write; its stage tells bind from release."""

    groups: tuple[int, ...]
    moves: tuple[Move, ...]
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def is_release(self) -> bool:
        """Whether the unit ceases to be ours."""
        return self.entry.stage is Stage.RELEASING


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFile:
    """Create or replace a file that is wholly ours."""

    path: str
    staging: str
    """Where the temporary file is made: on the same file system, and where nobody reads it."""

    content: str
    is_new: bool
    reason: str
    needs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFile:
    """Remove a file that is wholly ours."""

    path: str
    reason: str
    needs: tuple[int, ...] = ()


Step = LoadModule | MoveGroup | WriteFile | RemoveFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All steps from what is to what should be; empty when they agree."""

    blueprint: str
    """Version label of the blueprint this serves."""

    steps: tuple[Step, ...] = field(default=())
    findings: tuple[Finding, ...] = field(default=())

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings that say what is not done."""
        return tuple(f for f in self.findings if f.severity is Severity.REFUSED)


def headline(step: Step) -> str:
    """Return what a step does, in one line."""
    match step:
        case LoadModule(module=module):
            return f"load module {module}"
        case MoveGroup():
            where = in_groups(step.groups)
            if not step.moves:
                return f"{'forget' if step.is_release else 'verify'} unit {step.entry.unit}{where}"
            verb = "release" if step.is_release else "bind"
            return f"{verb} unit {step.entry.unit}{where}"
        case WriteFile(path=path, is_new=is_new):
            size = len(step.content.encode())
            return f"{'write' if is_new else 'replace'} {path} ({size} bytes)"
        case RemoveFile(path=path):
            return f"remove {path}"


def in_groups(groups: tuple[int, ...]) -> str:
    """Return `` (IOMMU group 5)`` or the like; nothing without any."""
    numbers = ", ".join(map(str, groups))
    return f" (IOMMU group{'s' if len(groups) > 1 else ''} {numbers})" if groups else ""


def text(plan: Plan) -> str:
    """Return the plan as a person reviews it; ends with a newline."""
    count = len(plan.steps)
    todo = f"{count} step{'s' if count != 1 else ''}" if count else "nothing to do"
    lines = [f"blueprint {plan.blueprint}: {todo}"]
    for number, step in enumerate(plan.steps, 1):
        lines.append(f"{number:3}  {headline(step)}")
        if isinstance(step, MoveGroup):
            lines.extend(f"       {move}" for move in step.moves)
        after = f"; after {', '.join(map(str, step.needs))}" if step.needs else ""
        lines.append(f"       because {step.reason}{after}")
    for severity in (Severity.REFUSED, Severity.WARNING, Severity.INFO):
        lines.extend(f"{severity}: {f}" for f in plan.findings if f.severity is severity)
    return "\n".join(lines) + "\n"
