"""A node as the agent would leave it: its plans are made as ever, and each step of them succeeds.

What always holds:

- a snapshot has no ledger, so that what is on VFIO is taken to be there by the agent's hand;
- nobody has anything: whom the agent would wait for is not known either;
- virtual functions that a plan makes are not there after it: where they are the kernel says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from kata_gpu.model.blueprint import Blueprint, Mode
from kata_gpu.model.inventory import FileContent, Inventory
from kata_gpu.model.ledger import Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Binding, PciAddress, PciFunction
from kata_gpu.model.plan import LoadModule, MoveGroup, Plan, WriteFile
from kata_gpu.model.unit import Unit
from kata_gpu.plan import planner, units

_ROUNDS_MAX: Final = 5  # as the agent has
_UNKNOWN: Final = Binding(driver=None, override=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What the last plan left, and what that would still do."""

    inventory: Inventory
    ledger: Ledger
    plan: Plan


def carry_out(blueprint: Blueprint, inventory: Inventory, *, cdi_directory: str) -> Left:
    """Return the node as it is when the agent has nothing to do any more.

    A VFIO driver whose name shows only once its module is loaded is called as that is.
    """
    ledger = _ours(blueprint, inventory)
    plan = planner.plan(blueprint, inventory, ledger, cdi_directory=cdi_directory)
    for _ in range(_ROUNDS_MAX):
        after = _after(plan, inventory, ledger)
        if after == (inventory, ledger):
            break
        inventory, ledger = after
        plan = planner.plan(blueprint, inventory, ledger, cdi_directory=cdi_directory)
    return Left(inventory=inventory, ledger=ledger, plan=plan)


def _ours(blueprint: Blueprint, inventory: Inventory) -> Ledger:
    """Return a ledger with every unit that is on VFIO, whether its pool has room for it or not."""
    roomy = tuple(replace(pool, max_units=None) for pool in blueprint.pools)
    passing = {pool.name for pool in roomy if pool.mode is Mode.PASSTHROUGH}
    functions = inventory.by_address()
    formed = units.form(replace(blueprint, pools=roomy), inventory, Ledger())
    return Ledger(
        entries=tuple(
            _entry(unit, functions)
            for unit in formed.units
            if unit.pool in passing and any(functions[a].is_on_vfio for a in unit.functions)
        )
    )


def _entry(unit: Unit, functions: Mapping[PciAddress, PciFunction]) -> LedgerEntry:
    members = [functions[address] for address in unit.functions]
    return LedgerEntry(
        unit=unit.id,
        stage=Stage.BOUND,
        functions=tuple(
            OriginalFunction.of(f, original=_UNKNOWN, target=f.binding.driver) for f in members
        ),
    )


def _after(plan: Plan, inventory: Inventory, ledger: Ledger) -> tuple[Inventory, Ledger]:
    """Return both as they are after every step that something offered hangs on."""
    modules: set[str] = set()
    targets: dict[PciAddress, Binding] = {}
    entries = {entry.unit: entry for entry in ledger.entries}
    files = {file.path: file for file in inventory.files}
    for step in plan.steps:
        match step:
            case LoadModule(module=module):
                modules.add(module)
            case MoveGroup(entry=entry, moves=moves) if not step.is_release:
                entries[entry.unit] = replace(entry, stage=Stage.BOUND)
                targets.update((move.address, move.target) for move in moves)
            case WriteFile(path=path, content=content):
                files[path] = FileContent(path=path, content=content)
            case _:
                continue
    after = replace(
        inventory,
        functions=tuple(_bound(inventory, targets)),
        files=tuple(files.values()),
        vfio_drivers=tuple(
            replace(found, driver=found.driver or found.module, is_loaded=True)
            if found.module in modules
            else found
            for found in inventory.vfio_drivers
        ),
    )
    return after, replace(ledger, entries=tuple(entries[unit] for unit in sorted(entries)))


def _bound(inventory: Inventory, targets: Mapping[PciAddress, Binding]) -> Iterable[PciFunction]:
    """Yield every function, those that move on VFIO, with a device of iommufd if it gives any.

    That a kernel can give none shows in a function that is on VFIO without one.
    """
    gives_cdevs = inventory.platform.iommufd and not any(
        function.is_on_vfio and function.vfio_cdev is None for function in inventory.functions
    )
    for number, function in enumerate(inventory.functions):
        target = targets.get(function.address)
        if target is None:
            yield function
            continue
        cdev = f"vfio{number}" if gives_cdevs and not function.is_on_vfio else function.vfio_cdev
        yield replace(function, binding=target, is_on_vfio=True, vfio_cdev=cdev)
