"""What a decision about one unit looks at, and the small questions it asks of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from kata_gpu.model.blueprint import Blueprint, Pool
from kata_gpu.model.holder import Holder
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.kubernetes import BindWhen
from kata_gpu.model.ledger import Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.operation import Operation
from kata_gpu.model.pci import PciAddress, PciFunction
from kata_gpu.model.plan import Move
from kata_gpu.model.restraint import Order, Setback
from kata_gpu.model.unit import Unit
from kata_gpu.model.vfio import VfioDriver
from kata_gpu.plan import targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is, what should be, what is ours, and what was tried in vain."""

    blueprint: Blueprint
    inventory: Inventory
    ledger: Ledger
    failed: Mapping[str, Setback]
    """Units, files, and services to start that are not to be touched now."""

    kept: Order
    """What was in order and is not to be repaired."""

    claimed: frozenset[str] | None
    """Units that claims are prepared for; None where nobody knows, and so none is given back."""

    functions: Mapping[PciAddress, PciFunction] = field(repr=False)
    best: Mapping[PciAddress, VfioDriver] = field(repr=False)

    @classmethod
    def of(
        cls,
        blueprint: Blueprint,
        inventory: Inventory,
        ledger: Ledger,
        failed: Mapping[str, Setback] | None = None,
        kept: Order | None = None,
        claimed: frozenset[str] | None = None,
    ) -> Self:
        """Return the situation, with what is asked of it most at hand."""
        return cls(
            blueprint=blueprint,
            inventory=inventory,
            ledger=ledger,
            failed=failed or {},
            kept=kept or Order(),
            claimed=claimed,
            functions=inventory.by_address(),
            best={driver.address: driver for driver in inventory.vfio_drivers},
        )

    def hung(self, addresses: Iterable[PciAddress]) -> Operation | None:
        """Return an operation that hangs on one of the functions; None without any."""
        hung = {operation.address: operation for operation in self.inventory.operations}
        return next((hung[address] for address in addresses if address in hung), None)

    def holders(self, addresses: Iterable[PciAddress]) -> tuple[Holder, ...]:
        """Return who has any of the functions, each once."""
        found = self.inventory.holders
        return tuple(dict.fromkeys(h for address in addresses for h in found.get(address, ())))

    def is_to_pass(self, unit: Unit, pool: Pool) -> bool:
        """Tell whether a unit that *pool* passes through belongs on VFIO now."""
        if pool.bind is BindWhen.ALWAYS:
            return True
        if self.claimed is None:
            return self.ledger.entry(unit.id) is not None
        return unit.id in self.claimed

    def is_on_vfio(self, address: PciAddress) -> bool:
        """Tell whether a driver of VFIO has the function."""
        return self.functions[address].is_on_vfio

    def is_same(self, function: OriginalFunction) -> bool:
        """Tell whether what the ledger knows is what sits there now, as far as both can tell."""
        now = self.functions[function.address]
        return (function.vendor, function.device) == (now.vendor, now.identity.device) and all(
            None in pair or pair[0] == pair[1]
            for pair in ((function.slot, now.slot), (function.serial, now.serial))
        )

    def owners(self, unit: Unit) -> tuple[LedgerEntry, ...]:
        """Return what is ours of a unit, each once; another function of it may have been first."""
        found = (self.ledger.owner(address) for address in unit.functions)
        return tuple(dict.fromkeys(entry for entry in found if entry is not None))

    def is_whole_in(self, unit: Unit, entry: LedgerEntry) -> bool:
        """Tell whether all that is there of *entry* is part of the unit."""
        there = {f.address for f in entry.functions if f.address in self.functions}
        return there <= set(unit.functions)

    def is_settled(self, unit: Unit) -> bool:
        """Tell whether the unit is ours and every function where it shall be."""
        entry = self.ledger.entry(unit.id)
        return (
            entry is not None
            and entry.stage is Stage.BOUND
            and targets.moves((self.functions[a] for a in unit.functions), self.best) == ()
        )

    def way_back(self, entry: LedgerEntry) -> tuple[Move, ...]:
        """Return the moves that are missing to the original drivers, last function first.

        What took the place of a function of ours is left alone.
        """
        known = [(f, self.functions.get(f.address)) for f in reversed(entry.functions)]
        return tuple(
            Move(address=now.address, before=now.binding, target=function.original)
            for function, now in known
            if now is not None and self.is_same(function) and now.binding != function.original
        )

    def changes_vfio(self, move: Move) -> bool:
        """Tell whether a function goes from one VFIO driver to another."""
        return self.is_on_vfio(move.address) and move.changes_driver

    def leaves_host_driver(self, move: Move) -> bool:
        """Tell whether a driver of the host has to let go of a function."""
        has_driver = move.before.driver is not None and not self.is_on_vfio(move.address)
        return has_driver and move.changes_driver

    def groups_of(self, entry: LedgerEntry) -> tuple[int, ...]:
        """Return the groups that hold the functions of a unit that is ours, as they are now."""
        now = (self.functions.get(function.address) for function in entry.functions)
        return tuple(sorted({f.iommu_group for f in now if f and f.iommu_group is not None}))
