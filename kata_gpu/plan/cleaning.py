"""What is done to a unit between two tenants: reset, or quarantine where there is no way.

The kernel tries a function's reset methods in its own order and refuses one that would reach
other functions; what shares a reset is one unit. VFIO resets a device too when it is opened
and closed, but goes on when that fails, and says so nowhere.

Source: pci_reset_function and pci_reset_bus_function in Linux drivers/pci/pci.c;
vfio_pci_core_enable in drivers/vfio/pci/vfio_pci_core.c.
"""

from collections.abc import Sequence

from kata_gpu.model.pci import PciFunction
from kata_gpu.model.plan import CleanUnit, Quarantine, Reset
from kata_gpu.model.unit import Unit

CleaningStep = CleanUnit | Quarantine


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
        resets=tuple(Reset(address=f.address, methods=f.reset_methods) for f in functions),
        reason="its last user has gone",
    )


def may_succeed(found: CleaningStep) -> bool:
    """Tell whether the unit can be offered after the step."""
    return isinstance(found, CleanUnit)


def _must_reset(unit: Unit, function: PciFunction) -> bool:
    is_accelerator = function.is_gpu or function.identity.is_nvswitch
    return is_accelerator or function.address == unit.primary
