"""What of all ResourceSlices a node may use, pool by pool, in the order of the allocator.

Of a pool the newest generation counts, and nothing of it while not all its slices are there.

Source: k8s.io/dynamic-resource-allocation/structured, GatherPools.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from kata_gpu.plan.simulate.values import Device, Key, Node, Slice, Where

_NUMBER_MAX_DIGITS: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool of one driver, as one node sees it."""

    driver: str
    name: str
    devices: tuple[Device, ...]
    """By slice and place: the order in which they are tried."""

    elsewhere: tuple[Device, ...]
    """Those for other nodes alone that take of the same counters."""

    counters: Mapping[tuple[str, str], Fraction]
    fault: str | None
    """Why none of its devices may be had; None when they may."""


_Id = tuple[str, str]  # driver and name


def of_nodes(slices: Iterable[Slice], nodes: Iterable[Node]) -> dict[str, tuple[Pool, ...]]:
    """Return the pools with devices or counters for each of *nodes*, by driver and name."""
    current = _current(slices)
    of_one: dict[str, list[_Id]] = {}
    of_several: list[_Id] = []
    for pool, parts in current.items():
        for name in {None if part.where is None else part.where.node for part in parts}:
            (of_several if name is None else of_one.setdefault(name, [])).append(pool)
    found: dict[str, tuple[Pool, ...]] = {}
    for node in nodes:
        ids = sorted({*of_several, *of_one.get(node.name, ())})
        near = ([part for s in current[id_] if (part := _near(s, node))] for id_ in ids)
        found[node.name] = tuple(
            _pool(parts, current[id_]) for id_, parts in zip(ids, near, strict=True) if parts
        )
    return found


def _current(slices: Iterable[Slice]) -> dict[_Id, list[Slice]]:
    """Return the newest generation of each pool, by name."""
    by_pool: dict[_Id, list[Slice]] = {}
    for slice_ in slices:
        by_pool.setdefault((slice_.driver, slice_.pool), []).append(slice_)
    newest = {pool: max(s.generation for s in parts) for pool, parts in by_pool.items()}
    return {
        pool: sorted((s for s in parts if s.generation == newest[pool]), key=lambda s: s.name)
        for pool, parts in by_pool.items()
    }


def _near(slice_: Slice, node: Node) -> Slice | None:
    """Return the slice with the devices that are for *node*; None when nothing of it is."""
    if slice_.where is not None:
        return slice_ if matches(slice_.where, node) else None
    devices = tuple(d for d in slice_.devices if d.where is not None and matches(d.where, node))
    return replace(slice_, devices=devices) if devices or slice_.counters else None


def _pool(near: Sequence[Slice], current: Sequence[Slice]) -> Pool:
    devices = tuple(device for slice_ in near for device in slice_.devices)
    here = {device.id for device in devices}
    elsewhere = tuple(d for s in current for d in s.devices if d.counts and d.id not in here)
    counters = {key: value for slice_ in current for key, value in slice_.counters.items()}
    expected = near[0].count
    fault = (
        f"its pool has {len(current)} of {expected} slices of generation {near[0].generation}"
        if len(current) != expected
        else _twice(devices) or _uncounted((*devices, *elsewhere), counters)
    )
    return Pool(
        driver=near[0].driver,
        name=near[0].pool,
        devices=devices,
        elsewhere=elsewhere,
        counters=counters,
        fault=fault,
    )


def _twice(devices: Iterable[Device]) -> str | None:
    names: set[str] = set()
    for device in devices:
        if device.id.name in names:
            return f"its pool has two devices that are called {device.id.name}"
        names.add(device.id.name)
    return None


def _uncounted(
    devices: Iterable[Device], counters: Mapping[tuple[str, str], Fraction]
) -> str | None:
    for device in devices:
        for group, counter in device.counts:
            if (group, counter) not in counters:
                return f"its pool has no counter {counter} in a set {group}, for {device.id.name}"
    return None


def matches(where: Where, node: Node) -> bool:
    """Tell whether *node* is meant; of unknown labels none is there."""
    if where.node is not None:
        return where.node == node.name
    return where.is_everywhere or any_term(where.terms, node)


def any_term(terms: Iterable[Sequence[Key]], node: Node) -> bool:
    """Tell whether all conditions of one term hold; an empty term holds for nothing."""
    return any(term and all(_holds(key, node) for key in term) for term in terms)


def _holds(key: Key, node: Node) -> bool:
    labels = {"metadata.name": node.name} if key.is_field else node.labels or {}
    value = labels.get(key.key)
    match key.operator:
        case "In":
            return value in key.values
        case "NotIn":
            return value not in key.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return _is_beyond(key, value)


def _is_beyond(key: Key, value: str | None) -> bool:
    found, bound = _integer(value), _integer(key.values[0] if key.values else None)
    if found is None or bound is None:
        return False
    return found > bound if key.operator == "Gt" else found < bound


def _integer(text: str | None) -> int | None:
    if text is None or len(text) > _NUMBER_MAX_DIGITS or not text.lstrip("-").isdecimal():
        return None
    return int(text) if text.isascii() and text.count("-") <= 1 else None
