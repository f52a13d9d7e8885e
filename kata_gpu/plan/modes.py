"""Which units' confidential mode is read at the start of the agent: those that nobody asked.

A unit is asked when it is bound and after each cleaning, so this is about what an older agent
bound, what could not be read then, and what an agent that was killed left awake.
"""

from collections.abc import Iterable

from kata_gpu.model import confidential
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Ledger, LedgerEntry, Stage
from kata_gpu.model.plan import Plan, ReadMode
from kata_gpu.model.report import UnitStatus
from kata_gpu.model.unit import UnitState


def plan(blueprint: str, inventory: Inventory, ledger: Ledger, units: Iterable[UnitStatus]) -> Plan:
    """Return the steps that read what is not known of units that are ours and idle.

    *blueprint* is its version; *units* are as `plan.state` has them of the same inventory.
    """
    steps, known = [], inventory.by_address()
    for unit in units:
        entry = ledger.entry(unit.id)
        if entry is None or not _is_idle(unit, entry):
            continue
        functions = [known[f.address] for f in unit.functions if f.address in known]
        looks = confidential.looks(functions)
        if entry.woken or (looks and entry.cc_mode is None):
            addresses = tuple(function.address for function in functions)
            why = "it was left awake" if entry.woken else "nobody knows it"
            steps.append(ReadMode(unit=unit.id, addresses=addresses, looks=looks, reason=why))
    return Plan(blueprint=blueprint, steps=tuple(steps))


def _is_idle(unit: UnitStatus, entry: LedgerEntry) -> bool:
    is_clean = entry.stage is Stage.BOUND and not entry.is_used
    return is_clean and unit.state is UnitState.AVAILABLE and not unit.holders
