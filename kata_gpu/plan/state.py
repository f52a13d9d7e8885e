"""What each unit is to the node's users, and why: a pure look at plan and inventory."""

from collections.abc import Mapping

from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.holder import Holder
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.kubernetes import BindWhen
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.plan import CleanUnit, Finding, LoadModule, MoveGroup, Plan
from kata_gpu.model.report import UnitFunction, UnitStatus
from kata_gpu.model.unit import Unit, UnitState
from kata_gpu.plan import cdi, units
from kata_gpu.plan.situation import Situation


def assess(
    blueprint: Blueprint,
    inventory: Inventory,
    ledger: Ledger,
    plan: Plan,
    *,
    cdi_directory: str,
) -> tuple[UnitStatus, ...]:
    """Return the status of every unit, by address. *plan* is what is still to do."""
    now = Situation.of(blueprint, inventory, ledger)
    formed = units.form(blueprint, inventory, ledger)
    pools = {pool.name: pool for pool in blueprint.pools}
    objected = {f.subject: f for f in reversed(plan.findings) if f.state is not None}
    moving = _moving(plan)
    kinds = {pool.resource for pool in blueprint.pools if pool.resource is not None}
    published = {kind: _published(inventory, kind, cdi_directory) for kind in kinds}
    statuses = []
    for unit in formed.units:
        pool = pools[unit.pool]
        nodes = published.get(pool.resource or "", {}).get(unit.id, ())
        parent = now.functions[unit.primary].parent
        names = dict.fromkeys((unit.id, *(entry.unit for entry in now.owners(unit))))
        objection = next((objected[name] for name in names if name in objected), None)
        if objection is None and not nodes:
            objection = objected.get(str(parent)) or objected.get(f"pool {pool.name}")
        if objection is not None and objection.state is not None:
            whose = f"{parent}: " if objection.subject == str(parent) else ""
            found = objection.state, f"{whose}{objection.reason}"
        elif moving & names.keys():
            found = UnitState.PENDING, "it is about to be moved"
        elif pool.bind is BindWhen.ON_CLAIM and ledger.entry(unit.id) is None:
            found = UnitState.UNCLAIMED, _unclaimed(now, unit, pool)
        else:
            spec = objected.get(cdi.path(cdi_directory, pool.resource)) if pool.resource else None
            found = _settled(pool, nodes, now.holders(unit.functions), spec)
        statuses.append(_status(now, unit, pool, found, nodes))
    return tuple(statuses)


def _moving(plan: Plan) -> set[str]:
    """Return the units that a step is about to touch."""
    found: set[str] = set()
    for step in plan.steps:
        match step:
            case MoveGroup(entry=entry):
                found.add(entry.unit)
            case LoadModule(units=waiting):
                found.update(waiting)
            case CleanUnit(unit=unit):
                found.add(unit)
            case _:
                continue
    return found


def _settled(
    pool: Pool, nodes: tuple[str, ...], holders: tuple[Holder, ...], spec: Finding | None
) -> tuple[UnitState, str]:
    """Return what it is when nothing is to be done to it; *spec* is why its file is not written."""
    match pool.mode:
        case Mode.IGNORE:
            return UnitState.IGNORED, f"pool {pool.name} leaves it alone"
        case Mode.HOST:
            return UnitState.HOST, f"pool {pool.name} keeps it on its host driver"
        case Mode.PASSTHROUGH if nodes and holders:
            return UnitState.IN_USE, "; ".join(map(str, holders))
        case Mode.PASSTHROUGH if nodes:
            return UnitState.AVAILABLE, f"bound, and in the CDI spec of {pool.resource}"
        case Mode.PASSTHROUGH if spec is not None and spec.state is not None:
            return spec.state, f"bound, and not in the CDI spec: {spec.subject}: {spec.reason}"
        case Mode.PASSTHROUGH:
            return UnitState.PENDING, "bound, and not in the CDI spec yet"


def _unclaimed(now: Situation, unit: Unit, pool: Pool) -> str:
    """Return where it waits for a claim, and whom the claim would have to wait for."""
    driver = now.functions[unit.primary].binding.driver
    where = f"on {driver}" if driver else "on no driver"
    holders = [h for h in now.holders(unit.functions) if h.service not in pool.stop_services]
    who = f"; one has to wait for who uses it: {'; '.join(map(str, holders))}" if holders else ""
    return f"it is {where} until a claim asks for it{who}"


def _published(
    inventory: Inventory, kind: str, cdi_directory: str
) -> Mapping[str, tuple[str, ...]]:
    """Return the nodes that the CDI spec on disk gives each unit that is in it."""
    return cdi.all_published(inventory.content(cdi.path(cdi_directory, kind)) or "")


def _status(
    now: Situation,
    unit: Unit,
    pool: Pool,
    found: tuple[UnitState, str],
    nodes: tuple[str, ...],
) -> UnitStatus:
    entry = now.ledger.entry(unit.id)
    is_offered = found[0] in {UnitState.AVAILABLE, UnitState.IN_USE}
    return UnitStatus(
        id=unit.id,
        state=found[0],
        reason=found[1],
        pool=pool.name,
        resource=pool.resource,
        groups=unit.groups,
        numa_node=now.functions[unit.primary].numa_node,
        functions=tuple(
            UnitFunction(
                address=address,
                label=now.functions[address].label,
                binding=now.functions[address].binding,
            )
            for address in unit.functions
        ),
        nodes=nodes if is_offered else (),
        holders=now.holders(unit.functions),
        cleaned=None if entry is None else entry.cleaned,
        offer=pool.door if pool.mode is Mode.PASSTHROUGH else None,
        bundle=pool.bundle,
        cc_mode=None if entry is None else entry.cc_mode,
        cc_unread=None if entry is None else entry.cc_unread,
    )
