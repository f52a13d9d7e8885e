"""Virtual functions that pools ask for: made where there are none, removed where they are ours.

Another number comes only by way of none, so what has one keeps it while anybody has a virtual
function of it. Those that were there already are used, and never removed.

Source: sriov_numvfs_store in Linux drivers/pci/iov.c.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from kata_gpu.model.blueprint import Pool
from kata_gpu.model.ledger import LedgerEntry, MadeVirtuals
from kata_gpu.model.pci import PciAddress, PciFunction, PhysicalFunction
from kata_gpu.model.plan import (
    Finding,
    MakeVirtuals,
    RemoveVirtuals,
    Severity,
    virtual_functions,
)
from kata_gpu.model.unit import Unit, UnitState
from kata_gpu.plan import objections, published
from kata_gpu.plan.situation import Situation

Steps = tuple[MakeVirtuals | RemoveVirtuals, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Virtuals:
    """What becomes of the virtual functions, whatever becomes of the units that they are."""

    steps: Steps = ()
    findings: tuple[Finding, ...] = ()
    unsettled: frozenset[PciAddress] = frozenset()
    """Parents that have another number than their pool asks for."""

    def is_unsettled(self, now: Situation, unit: Unit) -> bool:
        """Tell whether a function of it belongs to such a parent."""
        parents = (now.functions[address].parent for address in unit.functions)
        return any(parent in self.unsettled for parent in parents)


def plan(now: Situation, refused_pools: frozenset[str]) -> Virtuals:
    """Return how every parent gets what its pool asks for, and what nobody asks for any more."""
    asking = {
        function.address: pool
        for function in now.inventory.functions
        if function.parent is None and (pool := now.blueprint.pool_of_virtuals(function))
    }
    found = [
        _asked(now, now.functions[address], pool)
        for address, pool in asking.items()
        if pool.name not in refused_pools
    ]
    found.extend(_orphan(now, made) for made in now.ledger.virtuals if made.parent not in asking)
    return _all(found)


def release(now: Situation, chosen: frozenset[str] | None, leaving: Collection[str]) -> Virtuals:
    """Return how what we made is removed, once the units *leaving* are given back."""
    return _all(
        _removed(now, made, leaving)
        for made in now.ledger.virtuals
        if chosen is None or str(made.parent) in chosen
    )


def parents(now: Situation, entry: LedgerEntry) -> set[PciAddress]:
    """Return the physical functions to which functions of a unit that is ours belong."""
    found = (now.functions.get(function.address) for function in entry.functions)
    return {f.parent for f in found if f is not None and f.parent is not None}


def needs(now: Situation, moved: Mapping[int, LedgerEntry]) -> dict[PciAddress, tuple[int, ...]]:
    """Return for each parent the steps by which its virtual functions are given back."""
    found: dict[PciAddress, tuple[int, ...]] = {}
    for number, entry in moved.items():
        for parent in parents(now, entry):
            found[parent] = (*found.get(parent, ()), number)
    return found


def add(
    steps: published.Steps,
    wanted: Steps,
    needed: Mapping[PciAddress, tuple[int, ...]] | None = None,
) -> None:
    """Add *wanted* in order: each after what its parent needs, and the last step of its parent."""
    before = dict(needed or {})
    for step in wanted:
        number = steps.add(replace(step, needs=before.get(step.parent, ())))
        before[step.parent] = (number,)


def of(now: Situation, parent: PciAddress) -> Iterator[PciFunction]:
    """Return the virtual functions of *parent*."""
    return (function for function in now.inventory.functions if function.parent == parent)


def _asked(now: Situation, parent: PciFunction, pool: Pool) -> Virtuals:
    count = pool.virtual_functions or 0
    if not isinstance(parent.sriov, PhysicalFunction):
        return _refused(
            parent.address,
            f"pool {pool.name} asks for {virtual_functions(count)} of it, and it can have none",
            "narrow the pool's selectors, or enable SR-IOV in the firmware",
        )
    active = parent.sriov.active_vfs
    if active == count:
        return Virtuals()
    made = now.ledger.made(parent.address)
    objection = (
        _untouchable(now, parent.address)
        or _drifted(now, parent.address, count, active)
        or _not_to_make(now, parent, pool)
    )
    if objection is None and active:
        objection = _not_to_change(now, parent.address, made, active, pool)
    unsettled = frozenset({parent.address})
    if objection is not None:
        return Virtuals(findings=(objection,), unsettled=unsettled)
    reason = f"pool {pool.name} asks for {virtual_functions(count)} of it"
    make = MakeVirtuals(
        parent=parent.address,
        count=count,
        had_autoprobe=made.had_autoprobe if made else parent.sriov.probes_vfs,
        reason=reason,
    )
    remove = RemoveVirtuals(parent=parent.address, reason=f"{reason}, and it has {active}")
    return Virtuals(steps=(remove, make) if active else (make,), unsettled=unsettled)


def _orphan(now: Situation, made: MadeVirtuals) -> Virtuals:
    """Name what we made and nobody asks for; finish a removal that was begun."""
    parent = now.functions.get(made.parent)
    again = f"kata-gpu release {made.parent}"
    if parent is None:
        return _said(
            Severity.WARNING,
            made.parent,
            f"{virtual_functions(made.count)} of it are ours, and it is gone from the bus",
            f"plug it in again, or forget them with {again}",
        )
    if _active(parent):
        return _said(
            Severity.INFO,
            made.parent,
            f"{virtual_functions(made.count)} of it are ours, but no pool asks for them any more, "
            f"so they are left alone",
            f"{again} removes them",
        )
    objection = _untouchable(now, made.parent)
    if objection is not None:
        return Virtuals(findings=(objection,))
    step = RemoveVirtuals(
        parent=made.parent, reason="they are gone already, and no pool asks for them"
    )
    return Virtuals(steps=(step,))


def _removed(now: Situation, made: MadeVirtuals, leaving: Collection[str]) -> Virtuals:
    parent = now.functions.get(made.parent)
    active = 0 if parent is None else _active(parent)
    objection = _untouchable(now, made.parent)
    if objection is None and active not in {0, made.count}:
        objection = objections.refusal(
            str(made.parent),
            f"it has {virtual_functions(active)}, and we made {made.count}: somebody else "
            f"changed that",
            _by_hand(made.parent),
        )
    objection = objection or _in_the_way(
        now,
        made.parent,
        leaving,
        what="its virtual functions stay",
        remedy="release it again when that is given back",
    )
    if objection is not None:
        return Virtuals(findings=(objection,))
    step = RemoveVirtuals(parent=made.parent, reason="we made them, and it was asked for")
    return Virtuals(steps=(step,))


# Objections


def _untouchable(now: Situation, parent: PciAddress) -> Finding | None:
    """Object if an operation hangs on one of the family, or the last try was in vain."""
    family = (parent, *(function.address for function in of(now, parent)))
    return objections.stuck(now, str(parent), family) or objections.failed(now, str(parent))


def _drifted(now: Situation, parent: PciAddress, count: int, active: int) -> Finding | None:
    """Object to repairing what the blueprint only wants reported."""
    if str(parent) not in now.kept.units:
        return None
    return objections.refusal(
        str(parent),
        f"it had {virtual_functions(count)} when it was put in order, and has {active}",
        'kata-gpu apply repairs it, and so would drift = "repair"',
        state=UnitState.DRIFTED,
    )


def _not_to_make(now: Situation, parent: PciFunction, pool: Pool) -> Finding | None:
    """Object if its driver, or the device, cannot have as many as are asked for."""
    count, address = pool.virtual_functions or 0, parent.address
    asks = f"pool {pool.name} asks for {virtual_functions(count)} of it"
    total = parent.sriov.total_vfs if isinstance(parent.sriov, PhysicalFunction) else 0
    if count > total:
        return objections.refusal(
            str(address), f"{asks}, and it can have {total}", f"ask for {total} at most"
        )
    if parent.is_on_vfio:
        owner = now.ledger.owner(address)
        return objections.refusal(
            str(address),
            f"{asks}, but it is on {parent.binding.driver}, and only a host driver makes them",
            f"kata-gpu release {owner.unit}, then apply again"
            if owner
            else "give it back with the tool that took it",
        )
    if parent.binding.driver is None:
        return objections.refusal(
            str(address),
            f"{asks}, but it has no driver, and only its host driver makes them",
            "load the driver's module, or bind it by hand, then apply again",
        )
    return None


def _not_to_change(
    now: Situation, parent: PciAddress, made: MadeVirtuals | None, active: int, pool: Pool
) -> Finding | None:
    """Object to another number where it is not ours, or somebody has one of them."""
    asks = f"pool {pool.name} asks for {virtual_functions(pool.virtual_functions or 0)} of it"
    if made is None or made.count != active:
        return objections.refusal(
            str(parent),
            f"{asks}, but it has {active}, which somebody else made",
            f"set virtual_functions = {active} to use them, or {_by_hand(parent)}",
        )
    return _in_the_way(
        now,
        parent,
        (),
        what=f"{asks}, which keeps the {active} that it has",
        remedy=f"kata-gpu release {parent} gives all back; then apply again",
    )


def _in_the_way(
    now: Situation, parent: PciAddress, leaving: Collection[str], *, what: str, remedy: str
) -> Finding | None:
    """Object if a virtual function stays somebody's when the units *leaving* are given back."""
    for function in of(now, parent):
        owner = now.ledger.owner(function.address)
        if owner is not None and owner.unit in leaving:
            continue
        holders = now.holders((function.address,))
        driver = function.binding.driver
        reason = f"{what}, for {function.address} is"
        if holders:
            who = "; ".join(map(str, holders))
            return objections.waiting(str(parent), f"{reason} in use: {who}", remedy)
        if owner is not None:
            return objections.refusal(str(parent), f"{reason} a unit of ours still", remedy)
        if driver is not None:
            return objections.refusal(
                str(parent), f"{reason} on {driver} by somebody else's hand", "unbind it"
            )
    return None


def _by_hand(parent: PciAddress) -> str:
    return f"remove them (echo 0 > /sys/bus/pci/devices/{parent}/sriov_numvfs)"


# Parts


def _active(parent: PciFunction) -> int:
    return parent.sriov.active_vfs if isinstance(parent.sriov, PhysicalFunction) else 0


def _refused(parent: PciAddress, reason: str, remedy: str) -> Virtuals:
    return Virtuals(
        findings=(objections.refusal(str(parent), reason, remedy),), unsettled=frozenset({parent})
    )


def _said(severity: Severity, parent: PciAddress, reason: str, remedy: str) -> Virtuals:
    finding = Finding(severity=severity, subject=str(parent), reason=reason, remedy=remedy)
    return Virtuals(findings=(finding,))


def _all(found: Iterable[Virtuals]) -> Virtuals:
    every = tuple(found)
    return Virtuals(
        steps=tuple(step for one in every for step in one.steps),
        findings=tuple(finding for one in every for finding in one.findings),
        unsettled=frozenset().union(*(one.unsettled for one in every)),
    )
