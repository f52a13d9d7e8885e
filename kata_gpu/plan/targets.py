"""Where the functions of a unit shall be: each on the VFIO driver that suits it best.

A VFIO driver that holds a function gives way only to one that was made for it. vfio-pci is
what is left when nothing better is known, and no reason to take a variant away.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kata_gpu.model.ledger import LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Binding, PciAddress, PciFunction
from kata_gpu.model.plan import LoadModule, Move
from kata_gpu.model.unit import Unit
from kata_gpu.model.vfio import VFIO_PCI, VfioDriver

Best = Mapping[PciAddress, VfioDriver]


def moves(functions: Iterable[PciFunction], best: Best) -> tuple[Move, ...] | None:
    """Return the moves that are missing; None while a target's name is not known yet."""
    found = []
    for function in functions:
        target = _target(function, best)
        if target is None:
            return None
        if function.binding != target:
            found.append(Move(address=function.address, before=function.binding, target=target))
    return tuple(found)


def missing_modules(functions: Iterable[PciFunction], best: Best) -> tuple[str, ...]:
    """Return the modules that must be loaded before the functions can be moved."""
    wanted = (best[f.address] for f in functions if not _stays(f, best[f.address]))
    return tuple(sorted({driver.module for driver in wanted if not driver.is_loaded}))


def begun(
    unit: Unit,
    functions: Iterable[PciFunction],
    entry: LedgerEntry | None,
    moves: Iterable[Move],
) -> LedgerEntry:
    """Return what the ledger must say before the unit is touched; originals never change.

    One that was on VFIO already is adopted; nobody knows who had it.
    """
    names = {move.address: move.target.driver for move in moves}
    if entry is not None:
        told = {f.address: f.memory_bytes for f in functions}
        known = tuple(
            replace(
                f,
                target=names.get(f.address, f.target),
                memory_bytes=told.get(f.address) or f.memory_bytes,
            )
            for f in entry.functions
        )
        return replace(entry, stage=Stage.BINDING, functions=known)
    return LedgerEntry(
        unit=unit.id,
        stage=Stage.BINDING,
        functions=tuple(
            OriginalFunction.of(
                function,
                original=function.binding,
                target=names.get(function.address, function.binding.driver),
            )
            for function in functions
        ),
        is_used=any(function.is_on_vfio for function in functions),
    )


def load(module: str, units: Sequence[str]) -> LoadModule:
    """Return the step that gives *units* a driver."""
    count = f"{len(units)} unit{'' if len(units) == 1 else 's'}"
    driver = "driver vfio-pci" if module == VFIO_PCI else "the driver made for it"
    return LoadModule(
        module=module,
        units=tuple(units),
        reason=f"{count} to bind, and {driver} is not there",
    )


def _target(function: PciFunction, best: Best) -> Binding | None:
    suited = best.get(function.address)
    if suited is None:
        return None
    name = function.binding.driver if _stays(function, suited) else suited.driver
    return None if name is None else Binding(driver=name, override=name)


def _stays(function: PciFunction, suited: VfioDriver) -> bool:
    """Whether a VFIO driver has it already, and none was made for it."""
    has_driver = function.is_on_vfio and function.binding.driver is not None
    return has_driver and suited.module == VFIO_PCI
