"""What each unit is to the node's users, and why: a pure look at plan and inventory."""

from collections.abc import Mapping

from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.plan import LoadModule, MoveGroup, Plan, Severity
from kata_gpu.model.report import UnitFunction, UnitState, UnitStatus
from kata_gpu.model.unit import Unit
from kata_gpu.plan import cdi, units


def assess(
    blueprint: Blueprint,
    inventory: Inventory,
    ledger: Ledger,
    plan: Plan,
    *,
    cdi_directory: str,
    failed: Mapping[str, str],
) -> tuple[UnitStatus, ...]:
    """Return the status of every unit, by address. *plan* is what is still to do."""
    formed = units.form(blueprint, inventory, ledger)
    pools = {pool.name: pool for pool in blueprint.pools}
    refused = {
        finding.subject: finding.reason
        for finding in reversed(plan.findings)
        if finding.severity is Severity.REFUSED
    }
    moving = {step.entry.unit for step in plan.steps if isinstance(step, MoveGroup)}
    hung = {operation.address for operation in inventory.operations}
    moving |= {unit for step in plan.steps if isinstance(step, LoadModule) for unit in step.units}
    statuses = []
    for unit in formed.units:
        pool = pools[unit.pool]
        nodes = _published(inventory, pool, unit, cdi_directory)
        if hung & set(unit.functions):
            state, reason = UnitState.STUCK, refused[unit.id]
        elif unit.id in failed:
            state, reason = UnitState.FAILED, failed[unit.id]
        elif unit.id in refused:
            state, reason = UnitState.REFUSED, refused[unit.id]
        elif pool.name in formed.refused_pools and not nodes:
            state, reason = UnitState.REFUSED, refused[f"pool {pool.name}"]
        elif unit.id in moving:
            state, reason = UnitState.PENDING, "it is about to be moved"
        else:
            state, reason = _settled(pool, nodes)
        statuses.append(_status(inventory, unit, pool, (state, reason), nodes))
    return tuple(statuses)


def _settled(pool: Pool, nodes: tuple[str, ...]) -> tuple[UnitState, str]:
    match pool.mode:
        case Mode.IGNORE:
            return UnitState.IGNORED, f"pool {pool.name} leaves it alone"
        case Mode.HOST:
            return UnitState.HOST, f"pool {pool.name} keeps it on its host driver"
        case Mode.PASSTHROUGH if nodes:
            return UnitState.AVAILABLE, f"bound, and in the CDI spec of {pool.resource}"
        case Mode.PASSTHROUGH:
            return UnitState.PENDING, "bound, and not in the CDI spec yet"


def _published(inventory: Inventory, pool: Pool, unit: Unit, cdi_directory: str) -> tuple[str, ...]:
    """Return the nodes that the CDI spec on disk gives this unit; empty when it has none."""
    if pool.resource is None:
        return ()
    content = inventory.content(cdi.path(cdi_directory, pool.resource))
    return cdi.published(content or "", unit.id)


def _status(
    inventory: Inventory,
    unit: Unit,
    pool: Pool,
    state: tuple[UnitState, str],
    nodes: tuple[str, ...],
) -> UnitStatus:
    functions = inventory.by_address()
    return UnitStatus(
        id=unit.id,
        state=state[0],
        reason=state[1],
        pool=pool.name,
        resource=pool.resource,
        groups=unit.groups,
        numa_node=functions[unit.primary].numa_node,
        functions=tuple(
            UnitFunction(
                address=address,
                label=functions[address].label,
                binding=functions[address].binding,
            )
            for address in unit.functions
        ),
        nodes=nodes if state[0] is UnitState.AVAILABLE else (),
    )
