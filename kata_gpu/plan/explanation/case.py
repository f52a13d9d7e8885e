"""Choose from all that is known what one device is about."""

from collections.abc import Iterable
from dataclasses import dataclass

from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.explanation import ModuleUse, Said, Unsaid
from kata_gpu.model.holder import Holder
from kata_gpu.model.inventory import Inventory, Problem
from kata_gpu.model.iommu import Verdict, judge, judge_without_group
from kata_gpu.model.isolation import all_bonded, bonds
from kata_gpu.model.ledger import Ledger, LedgerEntry, MadeVirtuals
from kata_gpu.model.operation import Operation
from kata_gpu.model.pci import PciAddress, PciFunction
from kata_gpu.model.plan import Finding, Plan, Step
from kata_gpu.model.report import Outcome
from kata_gpu.model.unit import Unit, UnitState
from kata_gpu.plan import cdi, state, units
from kata_gpu.plan.situation import Situation

_REMOVE = "/remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of the node."""

    blueprint: Blueprint
    inventory: Inventory
    ledger: Ledger
    plan: Plan
    """What is still to do, as a look just now has it."""

    cdi_directory: str
    modules: tuple[ModuleUse, ...]
    said: Said | Unsaid


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of one device, and of the unit that it belongs to."""

    address: PciAddress
    function: PciFunction | None
    """None when it is not on the bus."""

    mates: tuple[PciFunction, ...]
    """The others of its groups, bridges among them."""

    below: tuple[PciFunction, ...]
    """The accelerators below a bridge; empty for anything else."""

    unit: Unit | None
    pool: Pool | None
    """The unit's."""

    asking: Pool | None
    """The pool whose units its virtual functions are; None for most."""

    state: UnitState | None
    """The unit's; None without one, unless a finding says it."""

    reason: str | None
    verdict: Verdict | None
    """On its groups; None for a bridge and for what is gone."""

    problems: tuple[Problem, ...]
    """What could not be read of its groups and of what is in the way."""

    entry: LedgerEntry | None
    made: MadeVirtuals | None
    """The virtual functions of it that are ours."""

    holders: tuple[Holder, ...]
    operations: tuple[Operation, ...]
    """Those that hang on it, and those that hold up the whole bus."""

    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]
    """What is about to be done to it."""

    outcomes: tuple[Outcome, ...]
    """What the agent did to it in the last turn that had something to do."""

    nodes: tuple[str, ...]
    """Device nodes in the CDI spec; empty unless it is in there."""

    @property
    def name(self) -> str:
        """What findings, steps and the ledger call it."""
        if self.unit is not None:
            return self.unit.id
        return str(self.address) if self.entry is None else self.entry.unit

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge that no unit's group holds."""
        return self.unit is None and self.function is not None and self.function.is_bridge

    @property
    def is_wanted(self) -> bool:
        """Whether a pool passes its unit through."""
        return self.pool is not None and self.pool.mode is Mode.PASSTHROUGH

    @property
    def functions(self) -> tuple[PciFunction, ...]:
        """The functions of its unit; itself without one."""
        chosen = None if self.unit is None else set(self.unit.functions)
        around = (*((self.function,) if self.function else ()), *self.mates)
        if chosen is None:
            return around[:1] if self.function else ()
        return tuple(sorted((f for f in around if f.address in chosen), key=lambda f: f.address))


def holds_up_the_bus(operation: Operation) -> bool:
    """Tell whether it has the lock that every removal, rescan and SR-IOV change takes."""
    return operation.value is not None and operation.attribute.endswith(_REMOVE)


def choose(facts: Facts, address: PciAddress) -> Case:
    """Return what *facts* say of the function at *address*."""
    inventory = facts.inventory
    now = Situation.of(facts.blueprint, inventory, facts.ledger)
    function = now.functions.get(address)
    unit = _unit(facts, function)
    entry = facts.ledger.owner(address) or (facts.ledger.entry(unit.id) if unit else None)
    mates = _mates(inventory, function, unit)
    pools = {pool.name: pool for pool in facts.blueprint.pools}
    pool = pools[unit.pool] if unit else None
    name = unit.id if unit else entry.unit if entry else str(address)
    findings = tuple(_findings(facts, name, pool, function, mates))
    found = _state(facts, unit, findings)
    members = unit.functions if unit else (address,)
    verdict = unit.verdict if unit else _verdict(inventory, function)
    return Case(
        address=address,
        function=function,
        mates=mates,
        below=_below(inventory, function),
        unit=unit,
        pool=pool,
        asking=None
        if function is None or function.parent is not None
        else facts.blueprint.pool_of_virtuals(function),
        state=found[0],
        reason=found[1],
        verdict=verdict,
        problems=_problems(inventory, verdict),
        entry=entry,
        made=facts.ledger.made(address),
        holders=now.holders(members),
        operations=tuple(
            op for op in inventory.operations if op.address in members or holds_up_the_bus(op)
        ),
        findings=findings,
        steps=tuple(step for step in facts.plan.steps if name in step.units),
        outcomes=tuple(
            outcome
            for outcome in (facts.said.outcomes if isinstance(facts.said, Said) else ())
            if outcome.unit == name
        ),
        nodes=_nodes(facts, name, pool),
    )


def _unit(facts: Facts, function: PciFunction | None) -> Unit | None:
    """Return the unit that a function, or a bridge in its groups, belongs to."""
    if function is None:
        return None
    for unit in units.form(facts.blueprint, facts.inventory, facts.ledger).units:
        if function.address in unit.functions or function.iommu_group in unit.groups:
            return unit
    return None


def _mates(
    inventory: Inventory, function: PciFunction | None, unit: Unit | None
) -> tuple[PciFunction, ...]:
    if function is None:
        return ()
    groups = unit.groups if unit else _groups(inventory, function)
    return tuple(
        mate
        for mate in inventory.functions
        if mate.iommu_group in groups and mate.address != function.address
    )


def _groups(inventory: Inventory, function: PciFunction) -> tuple[int, ...]:
    if function.iommu_group is None:
        return ()
    return all_bonded(function.iommu_group, bonds(inventory.functions))


def _below(inventory: Inventory, function: PciFunction | None) -> tuple[PciFunction, ...]:
    if function is None or not function.is_bridge:
        return ()
    return tuple(
        f
        for f in inventory.functions
        if function.address in f.bridges and (f.is_gpu or f.identity.is_nvswitch)
    )


def _findings(
    facts: Facts,
    name: str,
    pool: Pool | None,
    function: PciFunction | None,
    mates: Iterable[PciFunction],
) -> Iterable[Finding]:
    """Yield what was found about a unit, its pool, or a group that two pools want."""
    said = facts.said
    knows = isinstance(said, Said) and (pool is None or name in said.states)
    found = said.findings if isinstance(said, Said) and knows else facts.plan.findings
    subjects = {name, *((f"pool {pool.name}",) if pool else ())}
    if function is not None and function.parent is not None:
        subjects.add(str(function.parent))
    if pool is None and function is not None and not function.is_bridge:
        subjects |= {str(mate.address) for mate in mates}
    yield from (finding for finding in found if finding.subject in subjects)


def _state(
    facts: Facts, unit: Unit | None, findings: tuple[Finding, ...]
) -> tuple[UnitState | None, str | None]:
    """Return state and reason; the agent's word goes before a look, for it knows what failed."""
    if unit is None:
        objection = next((f for f in findings if f.state is not None), None)
        return (objection.state, objection.reason) if objection else (None, None)
    if isinstance(facts.said, Said) and unit.id in facts.said.states:
        return facts.said.states[unit.id]
    assessed = state.assess(
        facts.blueprint,
        facts.inventory,
        facts.ledger,
        facts.plan,
        cdi_directory=facts.cdi_directory,
    )
    return next((s.state, s.reason) for s in assessed if s.id == unit.id)


def _verdict(inventory: Inventory, function: PciFunction | None) -> Verdict | None:
    if function is None or function.is_bridge:
        return None
    known = inventory.by_group()
    groups = [known[number] for number in _groups(inventory, function) if number in known]
    if not groups:
        return judge_without_group(function, inventory.platform)
    return judge(groups, inventory.by_address(), inventory.platform)


def _problems(inventory: Inventory, verdict: Verdict | None) -> tuple[Problem, ...]:
    if verdict is None:
        return ()
    subjects = {
        *(str(blocker.address) for blocker in verdict.blockers),
        *(f"group {number}" for number in verdict.groups),
    }
    return tuple(problem for problem in inventory.problems if problem.subject in subjects)


def _nodes(facts: Facts, name: str, pool: Pool | None) -> tuple[str, ...]:
    if pool is None or pool.resource is None:
        return ()
    content = facts.inventory.content(cdi.path(facts.cdi_directory, pool.resource))
    return cdi.published(content or "", name)
