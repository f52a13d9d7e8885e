"""Units and bundles as devices: what Kubernetes may give to pods, and by which door.

What always holds:

- a unit has one door, and a bundle stands in place of its units at the device plugin, beside
  them in DRA;
- what overlaps within a driver takes the same counters; across two drivers nothing can, so of a
  bundle with GPUs the switches are offered in no other way than in it;
- nobody is evicted: a device that cannot be given any more stays with who has it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, TypeVar

from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.kubernetes import GPU_DRIVER, BindWhen, Device, Door, Effect, Taint, driver_of
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import PciAddress, PciFunction
from kata_gpu.model.report import UnitStatus
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import cdi
from kata_gpu.plan.kubernetes import attributes
from kata_gpu.plan.kubernetes.attributes import Passengers

T = TypeVar("T")

_HEALTHY: Final = frozenset({UnitState.AVAILABLE, UnitState.IN_USE, UnitState.UNCLAIMED})
"""One that is pending is not: it may turn out that it cannot be bound."""

_READY: Final = frozenset({UnitState.AVAILABLE, UnitState.IN_USE})
_YES: Final = "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A unit that can be offered, and the device that it is by itself."""

    pool: Pool
    functions: Sequence[PciFunction]
    device: Device


def devices(
    blueprint: Blueprint,
    inventory: Inventory,
    ledger: Ledger,
    units: Iterable[UnitStatus],
    *,
    cdi_directory: str,
) -> tuple[Device, ...]:
    """Return every device of this node, by id.

    *units* are as `plan.state` has them of the same inventory. One that is gone is no unit, and
    no device either: who had listed it says that it is not healthy.
    """
    known = inventory.by_address()
    pools = {pool.name: pool for pool in blueprint.pools}
    members = _with_counts(
        [
            _member(unit, pool, functions, inventory, ledger)
            for unit in units
            if (pool := pools.get(unit.pool)) is not None
            and pool.mode is Mode.PASSTHROUGH
            and pool.door is not Door.NONE
            and (functions := _functions(unit, known))
        ]
    )
    by_pool: dict[str, list[_Member]] = {}
    for member in members:
        by_pool.setdefault(member.pool.name, []).append(member)
    found = [d for mates in by_pool.values() for d in _of_pool(mates, inventory, cdi_directory)]
    return tuple(sorted(found, key=lambda device: device.id))


def drivers(blueprint: Blueprint, found: Iterable[Device]) -> set[str]:
    """Return the DRA drivers that offer one of the devices that were *found*, or may come to."""
    names = {device.driver for device in found if device.door is Door.DRA}
    if any(pool.door is Door.DRA for pool in blueprint.pools):
        names.add(GPU_DRIVER)
    return names


def _functions(
    unit: UnitStatus, known: Mapping[PciAddress, PciFunction]
) -> tuple[PciFunction, ...]:
    """Return its functions, the primary first; none where one is gone."""
    if any(function.address not in known for function in unit.functions):
        return ()
    functions = (known[function.address] for function in unit.functions)
    return tuple(sorted(functions, key=lambda f: (str(f.address) != unit.id, f.address)))


def _member(
    unit: UnitStatus,
    pool: Pool,
    functions: Sequence[PciFunction],
    inventory: Inventory,
    ledger: Ledger,
) -> _Member:
    primary = functions[0]
    driver = driver_of(functions)
    is_ready = unit.state in _READY and bool(unit.nodes)
    passengers = Passengers(
        pool=pool,
        functions=functions,
        entry=ledger.entry(unit.id),
        platform=inventory.platform,
        is_ready=is_ready,
    )
    found = attributes.of_unit(passengers)
    device = Device(
        id=unit.id,
        name=_label(primary.address),
        door=pool.door,
        driver=driver,
        resource=pool.resource or "",
        units=(unit.id,),
        is_healthy=unit.state in _HEALTHY,
        is_ready=is_ready,
        is_in_use=unit.state is UnitState.IN_USE,
        on_claim=pool.bind is BindWhen.ON_CLAIM,
        reason=unit.reason,
        nodes=unit.nodes if is_ready else (),
        numa_node=primary.numa_node,
        root=primary.root,
        path=tuple(map(str, primary.bridges)),
        attributes=found,
        capacity_bytes=attributes.capacity_bytes(passengers),
        taints=(*_taints(driver, unit.state), *_unconfidential(driver, found)),
    )
    return _Member(pool=pool, functions=functions, device=device)


def _taints(driver: str, state: UnitState) -> Iterator[Taint]:
    """Yield why it cannot be given; who has it keeps it."""
    if state not in _HEALTHY:
        yield Taint(key=f"{driver}/{state}", value=_YES, effect=Effect.NO_SCHEDULE)


def _unconfidential(driver: str, found: Mapping[str, object]) -> Iterator[Taint]:
    """Tell of a GPU that it cannot be confidential, where the host can."""
    if found.get("teeReady") and found.get("confidential") is False:
        yield Taint(key=f"{driver}/not-confidential-ready", value=_YES, effect=Effect.NONE)


# Counters


def _with_counts(members: Sequence[_Member]) -> list[_Member]:
    """Give the same counters to what cannot be given at once; none where nothing overlaps."""
    counted = {m.device.id for m in members if m.pool.bundle is not None}
    children: dict[str, tuple[str, ...]] = {}
    by_parent: dict[PciAddress | None, list[str]] = {}
    for member in members:
        for address in dict.fromkeys(function.parent for function in member.functions):
            by_parent.setdefault(address, []).append(member.device.id)
    for parent in members:
        found = (by_parent.get(function.address, ()) for function in parent.functions)
        slices = tuple(dict.fromkeys(unit for units in found for unit in units))
        if slices:
            children[parent.device.id] = slices
            counted.update((parent.device.id, *slices))
    return [
        replace(m, device=replace(m.device, counts=_counts(m.device, children)))
        if m.device.id in counted and m.pool.door is Door.DRA
        else m
        for m in members
    ]


def _counts(device: Device, children: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Return its own counter, and those of its virtual functions."""
    taken = (device.id, *children.get(device.id, ()))
    return {f"fn-{_label(PciAddress.parse(unit))}": 1 for unit in taken}


def _label(address: PciAddress) -> str:
    """Return an address as a DNS label."""
    return str(address).replace(":", "-").replace(".", "-")


# Bundles


def _of_pool(
    members: Sequence[_Member], inventory: Inventory, cdi_directory: str
) -> Iterator[Device]:
    pool = members[0].pool
    found = [member.device for member in members]
    if pool.bundle is None:
        yield from found
        return
    bundle = _bundle(pool, pool.bundle, members)
    if pool.door is Door.DEVICE_PLUGIN:
        content = inventory.content(cdi.path(cdi_directory, bundle.resource))
        nodes = cdi.published(content or "", bundle.id) if bundle.is_ready else ()
        yield replace(bundle, nodes=nodes, is_ready=bool(nodes))
        return
    yield bundle
    yield from (device for device in found if device.driver == bundle.driver)


def _bundle(pool: Pool, name: str, members: Sequence[_Member]) -> Device:
    """Return all units of a pool as one device; it is what the least of them is."""
    parts = sorted((member.device for member in members), key=lambda device: device.id)
    driver = driver_of(function for member in members for function in member.functions)
    lacking = max(pool.min_units - len(parts), 0)
    is_ready = not lacking and all(part.is_ready for part in parts)
    common = attributes.of_bundle([part.attributes for part in parts])
    taints = [taint for part in parts for taint in _for_driver(part, driver)]
    if lacking:
        taints.append(Taint(key=f"{driver}/incomplete", value=_YES, effect=Effect.NO_SCHEDULE))
    return Device(
        id=name,
        name=name,
        door=pool.door,
        driver=driver,
        resource=pool.resource or "",
        units=tuple(part.id for part in parts),
        is_bundle=True,
        is_healthy=not lacking and all(part.is_healthy for part in parts),
        is_ready=is_ready,
        is_in_use=any(part.is_in_use for part in parts),
        on_claim=pool.bind is BindWhen.ON_CLAIM,
        reason=_reason(pool, parts),
        nodes=tuple(node for part in parts for node in part.nodes) if is_ready else (),
        numa_node=_shared(part.numa_node for part in parts),
        root=_shared(part.root for part in parts) or "",
        path=_prefix([part.path for part in parts]),
        attributes=common,
        capacity_bytes=_sums(parts),
        counts={name: count for part in parts for name, count in part.counts.items()},
        taints=tuple(dict.fromkeys(taints)),
    )


def _for_driver(part: Device, driver: str) -> Iterator[Taint]:
    """Yield the taints of a part that keep all from being given, as those of the bundle."""
    for taint in part.taints:
        yield replace(taint, key=f"{driver}/{taint.key.partition('/')[2]}")


def _reason(pool: Pool, parts: Sequence[Device]) -> str:
    if len(parts) < pool.min_units:
        return f"pool {pool.name} has {len(parts)} of at least {pool.min_units} units"
    ailing = next((part for part in parts if not part.is_healthy), None)
    if ailing is not None:
        return f"{ailing.id}: {ailing.reason}"
    return f"all {len(parts)} units of pool {pool.name}"


def _sums(parts: Sequence[Device]) -> dict[str, int]:
    """Return what all have together; of those with GPUs, if there are any."""
    counted = [part for part in parts if part.attributes.get("gpuCount")] or list(parts)
    names = set.intersection(*(set(part.capacity_bytes) for part in counted))
    return {name: sum(part.capacity_bytes[name] for part in counted) for name in sorted(names)}


def _shared(values: Iterable[T]) -> T | None:
    """Return what all of *values* are; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _prefix(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the bridges above all."""
    together = takewhile(lambda row: len(set(row)) == 1, zip(*paths, strict=False))
    return tuple(row[0] for row in together)
