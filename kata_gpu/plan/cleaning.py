"""What is done to a unit between two tenants: reset, or quarantine where there is no way.

The kernel tries a function's reset methods in its own order and refuses one that would reach
other functions; what shares a reset is one unit. VFIO resets a device too when it is opened
and closed, but goes on when that fails, and says so nowhere.

Source: pci_reset_function and pci_reset_bus_function in Linux drivers/pci/pci.c;
vfio_pci_core_enable in drivers/vfio/pci/vfio_pci_core.c.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from kata_gpu.model import confidential
from kata_gpu.model.ledger import Ledger, LedgerEntry
from kata_gpu.model.pci import PciFunction
from kata_gpu.model.plan import CleanUnit, NoteUse, Quarantine, Reset
from kata_gpu.model.unit import Unit
from kata_gpu.plan.situation import Situation

CleaningStep = CleanUnit | Quarantine


def uses(now: Situation, opened: frozenset[str]) -> Iterable[NoteUse]:
    """Yield what must be noted of whoever has, or had, a unit that is ours.

    Whatever else becomes of the unit: its user may be gone before anything does.
    """
    for entry in now.ledger.entries:
        holders = now.holders(function.address for function in entry.functions)
        if not entry.is_used and (holders or entry.unit in opened):
            who = "; ".join(map(str, holders)) or "its device node was opened"
            yield NoteUse(unit=entry.unit, reason=who)


def noted(ledger: Ledger, notes: Iterable[NoteUse]) -> Ledger:
    """Return the ledger as it is when *notes* are taken."""
    for note in notes:
        entry = ledger.entry(note.unit)
        if entry is not None:
            ledger = ledger.with_entry(replace(entry, is_used=True))
    return ledger


def step(unit: Unit, functions: Sequence[PciFunction]) -> CleaningStep:
    """Return how *unit* is cleaned; companions of a GPU may go without a reset, it may not."""
    helpless = [f for f in functions if not f.reset_methods and _must_reset(unit, f)]
    if helpless:
        names = ", ".join(f"{f.address} ({f.label})" for f in helpless)
        return Quarantine(
            unit=unit.id, reason=f"the kernel has no way to reset {names} after its last user"
        )
    return CleanUnit(
        unit=unit.id,
        resets=tuple(
            Reset(
                address=f.address,
                methods=f.reset_methods,
                start_s=confidential.start_s(f),
            )
            for f in functions
        ),
        reason="its last user has gone",
        looks=confidential.looks(functions),
    )


def before_return(now: Situation, unit: Unit, entry: LedgerEntry) -> CleaningStep | None:
    """Return how a unit is cleaned before its host driver gets it; None if it need not, or cannot.

    What another driver has taken already is that driver's, and is not reset under it.
    """
    known = [function for function in entry.functions if function.address in now.functions]
    ours = [function for function in known if now.is_on_vfio(function.address)]
    is_held = bool(now.holders(function.address for function in known))
    if not (entry.is_used and ours) or is_held or not all(map(now.is_same, known)):
        return None
    return step(unit, [now.functions[function.address] for function in ours])


def may_succeed(found: CleaningStep) -> bool:
    """Tell whether the unit can be offered after the step."""
    return isinstance(found, CleanUnit)


def _must_reset(unit: Unit, function: PciFunction) -> bool:
    is_accelerator = function.is_gpu or function.identity.is_nvswitch
    return is_accelerator or function.address == unit.primary
