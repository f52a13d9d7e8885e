"""The ledger: what this agent changed on the node, and what was there before.

It is written before the first change and is the only source of the way back: an original
driver is never guessed.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Self

from kata_gpu.model.pci import Binding, PciAddress

SCHEMA: Final = 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One unit that is ours, or is about to be."""

    unit: str
    stage: Stage
    functions: tuple[OriginalFunction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All units and files that are ours; frozen, a change makes a new one."""

    entries: tuple[LedgerEntry, ...] = field(default=())
    files: tuple[str, ...] = field(default=())
    """Absolute paths of the files we wrote, to be removed on release."""

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
