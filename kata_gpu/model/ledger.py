"""The ledger: what this agent changed on the node, and what was there before.

It is written before the first change and is the only source of the way back: an original
driver is never guessed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, Self

from kata_gpu.model.confidential import CcMode
from kata_gpu.model.pci import Binding, PciAddress, PciFunction

SCHEMA: Final = 2


class Stage(StrEnum):
    """How far a unit's move has come; what is *doing* was announced, perhaps not done."""

    BINDING = "binding"
    BOUND = "bound"
    RELEASING = "releasing"


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalFunction:
    """A function as it was before we touched it."""

    address: PciAddress
    vendor: int
    device: int
    original: Binding

    slot: str | None = None
    """Name of the physical slot (/sys/bus/pci/slots); None where firmware names none."""

    serial: str | None = None
    """What tells it from others of its kind; None where it could not be read."""

    target: str | None = None
    """The driver that it is moved to while it is ours; None in a ledger of before 0.2."""

    memory_bytes: int | None = None
    """A GPU's memory as its host driver said before it left; None where it said nothing."""

    @classmethod
    def of(cls, function: PciFunction, *, original: Binding, target: str | None) -> Self:
        """Return a function that was *original* and is moved to *target*, by what tells it."""
        return cls(
            address=function.address,
            vendor=function.vendor,
            device=function.identity.device,
            original=original,
            slot=function.slot,
            serial=function.serial,
            target=target,
            memory_bytes=function.memory_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """What was done to a unit after its last user, and when."""

    at: datetime  # UTC
    method: str
    """How each function was reset, as the kernel names it; "none" where it has no way."""

    result: str
    """What the checks after it found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One unit that is ours, or is about to be."""

    unit: str
    stage: Stage
    functions: tuple[OriginalFunction, ...]

    is_used: bool = False
    """Whether somebody had it since it was bound or cleaned last."""

    cleaned: Cleaning | None = None
    """The last cleaning, also one that failed."""

    quarantine: str | None = None
    """Why nobody may have it until an admin clears it; None when nothing is known against it."""

    had_persistence: bool = False
    """Whether its driver was in NVIDIA's persistence mode, to be restored on release."""

    cc_mode: CcMode | None = None
    """The confidential mode that all its GPUs were in when they were looked at last."""

    cc_unread: str | None = None
    """Why that mode is not known; None where it is, or where nobody has looked."""

    woken: tuple[PciAddress, ...] = ()
    """Functions that are kept awake for a look, and may sleep again after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeVirtuals:
    """SR-IOV virtual functions that we made, which are ours to remove."""

    parent: PciAddress
    count: int
    had_autoprobe: bool
    """What sriov_drivers_autoprobe was before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All units and files that are ours; frozen, a change makes a new one."""

    entries: tuple[LedgerEntry, ...] = field(default=())
    files: tuple[str, ...] = field(default=())
    """Absolute paths of the files we wrote, to be removed on release."""

    virtuals: tuple[MadeVirtuals, ...] = field(default=())
    services: tuple[str, ...] = field(default=())
    """Services of the host that we stopped, to be started when their GPUs are back."""

    directories: tuple[str, ...] = field(default=())
    """Absolute paths of the folders that we made for files, to be removed after the last file."""

    def entry(self, unit: str) -> LedgerEntry | None:
        """Return the entry of *unit*; None when it is not ours."""
        return next((entry for entry in self.entries if entry.unit == unit), None)

    def owner(self, address: PciAddress) -> LedgerEntry | None:
        """Return the entry that holds the function at *address*; None when none does."""
        return next(
            (e for e in self.entries if any(f.address == address for f in e.functions)), None
        )

    def with_entry(self, entry: LedgerEntry) -> Self:
        """Return a ledger in which *entry* replaces any older one of its unit."""
        others = tuple(other for other in self.entries if other.unit != entry.unit)
        return replace(self, entries=tuple(sorted((*others, entry), key=lambda e: e.unit)))

    def without_entry(self, unit: str) -> Self:
        """Return a ledger that knows nothing of *unit*."""
        return replace(self, entries=tuple(e for e in self.entries if e.unit != unit))

    def with_file(self, path: str) -> Self:
        """Return a ledger that owns *path*."""
        return replace(self, files=tuple(sorted({*self.files, path})))

    def without_file(self, path: str) -> Self:
        """Return a ledger that does not own *path*."""
        return replace(self, files=tuple(file for file in self.files if file != path))

    def with_directories(self, paths: Iterable[str]) -> Self:
        """Return a ledger that owns these folders too."""
        return replace(self, directories=tuple(sorted({*self.directories, *paths})))

    def without_directories(self) -> Self:
        """Return a ledger that owns no folder."""
        return replace(self, directories=())

    def made(self, parent: PciAddress) -> MadeVirtuals | None:
        """Return what we made of the physical function at *parent*; None when nothing."""
        return next((made for made in self.virtuals if made.parent == parent), None)

    def with_virtuals(self, made: MadeVirtuals) -> Self:
        """Return a ledger that owns the virtual functions of one more parent."""
        others = self.without_virtuals(made.parent).virtuals
        return replace(self, virtuals=tuple(sorted((*others, made), key=lambda m: m.parent)))

    def without_virtuals(self, parent: PciAddress) -> Self:
        """Return a ledger that owns no virtual function of *parent*."""
        return replace(self, virtuals=tuple(m for m in self.virtuals if m.parent != parent))

    def with_service(self, name: str) -> Self:
        """Return a ledger that has to start *name* again some day."""
        return replace(self, services=tuple(sorted({*self.services, name})))

    def without_service(self, name: str) -> Self:
        """Return a ledger that leaves *name* as it is."""
        return replace(self, services=tuple(s for s in self.services if s != name))
