"""A plan: every change to the node, in order, complete to the last path and byte.

The executor takes the steps as they stand and chooses nothing. A step is skipped when a
step it needs did not succeed.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from kata_gpu.model.confidential import ModeLook
from kata_gpu.model.ledger import LedgerEntry, Stage
from kata_gpu.model.pci import Binding, PciAddress
from kata_gpu.model.unit import UnitState


class Severity(StrEnum):
    """How much a finding matters."""

    INFO = "info"
    WARNING = "warning"
    WAITING = "waiting"
    """What the blueprint asks for is done as soon as somebody lets go."""

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
    state: UnitState | None = None
    """What it makes of the unit that it is about; None when it makes nothing of it."""

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

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"load module {self.module}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopService:
    """Stop a service of the host, to be started again; one that does not run is left so."""

    name: str
    units: tuple[str, ...]
    """Those that cannot leave their drivers while it runs."""

    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"stop service {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartService:
    """Start a service that we stopped."""

    name: str
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"start service {self.name}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartService:
    """Restart a service so that it reads a file of ours; without the file if it does not start."""

    name: str
    path: str
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"restart service {self.name}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeVirtuals:
    """Give a physical function its SR-IOV virtual functions, which no host driver may take."""

    parent: PciAddress
    count: int
    had_autoprobe: bool
    """What sriov_drivers_autoprobe was before we touched it."""

    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"make {virtual_functions(self.count)} of {self.parent}"

    @property
    def units(self) -> tuple[str, ...]:
        """The parent: its virtual functions are no units before they are there."""
        return (str(self.parent),)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveVirtuals:
    """Take away the virtual functions that we made of a physical function."""

    parent: PciAddress
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"remove the virtual functions of {self.parent}"

    @property
    def units(self) -> tuple[str, ...]:
        """The parent: its virtual functions are units no more."""
        return (str(self.parent),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One function's way from the binding it has to the one it shall have."""

    address: PciAddress
    before: Binding
    target: Binding

    @property
    def changes_driver(self) -> bool:
        """Whether a driver must let go; without, only the override changes."""
        return self.before.driver != self.target.driver

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
    looks: tuple[ModeLook, ...] = ()
    """The GPUs whose confidential mode is read when all are bound."""

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        where = in_groups(self.groups)
        if not self.moves:
            return f"{'forget' if self.is_release else 'verify'} unit {self.entry.unit}{where}"
        return f"{'release' if self.is_release else 'bind'} unit {self.entry.unit}{where}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return (self.entry.unit,)

    @property
    def is_release(self) -> bool:
        """Whether the unit ceases to be ours."""
        return self.entry.stage is Stage.RELEASING


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteUse:
    """Remember that somebody has a unit, so that it is cleaned before the next one gets it."""

    unit: str
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"note that unit {self.unit} is in use"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return (self.unit,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """How one function is reset: by the first of its methods that works, as the kernel tries."""

    address: PciAddress
    methods: tuple[str, ...]
    """Empty for a companion that the kernel cannot reset by itself."""

    start_s: float = 1.0
    """How long it may take until its memory answers again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUnit:
    """Reset a unit after its last user and look whether it is what it was; else quarantine it."""

    unit: str
    resets: tuple[Reset, ...]
    reason: str
    needs: tuple[int, ...] = ()
    looks: tuple[ModeLook, ...] = ()
    """The GPUs whose confidential mode is read afterwards."""

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"clean unit {self.unit}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return (self.unit,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMode:
    """Read which confidential mode the GPUs of a unit are in that nobody has."""

    unit: str
    addresses: tuple[PciAddress, ...]
    """All functions of the unit."""

    looks: tuple[ModeLook, ...]
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"read the confidential mode of unit {self.unit}"

    @property
    def units(self) -> tuple[str, ...]:
        """None: a unit is no worse if nobody knows its mode."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Keep a unit from everybody until an admin clears it."""

    unit: str
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"quarantine unit {self.unit}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return (self.unit,)


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

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        size = len(self.content.encode())
        return f"{'write' if self.is_new else 'replace'} {self.path} ({size} bytes)"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFile:
    """Remove a file that is wholly ours."""

    path: str
    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"remove {self.path}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFile:
    """Move somebody else's file, as the blueprint says, to where nothing is."""

    path: str
    target: str
    staging: str
    """Where a copy is made if it must be: on the target's file system, and where nobody reads."""

    reason: str
    needs: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What it does, in one line."""
        return f"move {self.path} to {self.target}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that come to nothing if it fails."""
        return ()


Step = (
    LoadModule
    | StopService
    | MakeVirtuals
    | RemoveVirtuals
    | MoveGroup
    | NoteUse
    | CleanUnit
    | ReadMode
    | Quarantine
    | StartService
    | RestartService
    | WriteFile
    | RemoveFile
    | MoveFile
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All steps from what is to what should be; empty when they agree."""

    blueprint: str
    """Version label of the blueprint this serves."""

    steps: tuple[Step, ...] = field(default=())
    findings: tuple[Finding, ...] = field(default=())

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings that say what is not done, or not yet."""
        undone = {Severity.REFUSED, Severity.WAITING}
        return tuple(f for f in self.findings if f.severity in undone)


def virtual_functions(count: int) -> str:
    """Return ``1 virtual function`` or the like."""
    return f"{count} virtual function{'' if count == 1 else 's'}"


def in_groups(groups: tuple[int, ...]) -> str:
    """Return `` (IOMMU group 5)`` or the like; nothing without any."""
    numbers = ", ".join(map(str, groups))
    return f" (IOMMU group{'s' if len(groups) > 1 else ''} {numbers})" if groups else ""
