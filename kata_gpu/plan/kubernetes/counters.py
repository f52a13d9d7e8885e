"""Counters that devices share, so that a bundle and its members are never both given away.

A counter that one device alone takes says nothing and is not published. Each has as much as
the device takes that takes most of it: all of a bundle's members, or all functions of a card.

Source: resource.k8s.io/v1, sharedCounters and consumesCounters; KEP-4815 (limits).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kata_gpu.model.kubernetes import Device
from kata_gpu.model.slices import Object
from kata_gpu.plan.kubernetes.names import dns_label

SETS_MAX: Final = 8
"""Counter sets of a slice."""

COUNTERS_MAX: Final = 32
"""Counters of a set."""

CONSUMED_SETS_MAX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The counter sets of a pool, and which set each counter is in."""

    sets: tuple[Object, ...]
    places: Mapping[str, str]

    def consumed(self, device: Device) -> list[Object]:
        """Return what *device* takes of each set, as its ``consumesCounters``."""
        taken: dict[str, dict[str, Object]] = {}
        for name, number in sorted(_counts(device).items()):
            if name in self.places:
                taken.setdefault(self.places[name], {})[name] = {"value": str(number)}
        return [{"counterSet": where, "counters": taken[where]} for where in sorted(taken)]


def share(devices: Sequence[Device]) -> Shared:
    """Return the counters that more than one of *devices* takes from, in sets."""
    takers = Counter(name for device in devices for name in _counts(device))
    most: dict[str, int] = {}
    for device in devices:
        for name, number in _counts(device).items():
            if takers[name] > 1:
                most[name] = max(number, most.get(name, 0))
    packed = [part for part in _packed(_connected(devices, most)) if part]
    named = {f"counters-{index}": part for index, part in enumerate(packed)}
    return Shared(
        sets=tuple(
            {"name": name, "counters": {c: {"value": str(most[c])} for c in part}}
            for name, part in named.items()
        ),
        places={counter: name for name, part in named.items() for counter in part},
    )


def within_limits(devices: Sequence[Device]) -> list[Device]:
    """Return the devices that the API lets take all they take: from two sets, 64 counters.

    Without those that are left out the sets may be others, so they are looked at anew.
    """
    found = list(devices)
    while True:
        shared = share(found)
        kept = [d for d in found if len(shared.consumed(d)) <= CONSUMED_SETS_MAX]
        if len(kept) == len(found):
            return kept
        found = kept


def _counts(device: Device) -> dict[str, int]:
    """Return what a device takes, by names that the API has for counters."""
    found: dict[str, int] = {}
    for key, number in device.counts.items():
        name = dns_label(key)
        if name and number > 0:
            found[name] = found.get(name, 0) + number
    return found


def _connected(devices: Iterable[Device], wanted: Iterable[str]) -> list[list[str]]:
    """Return the counters in groups: those that one device takes together are in one."""
    groups: dict[str, set[str]] = {name: {name} for name in wanted}
    for device in devices:
        names = [name for name in _counts(device) if name in groups]
        if len({id(groups[name]) for name in names}) < 2:  # noqa: PLR2004 - one is together
            continue
        merged = set[str]().union(*(groups[name] for name in names))
        groups.update(dict.fromkeys(merged, merged))
    unique = {id(group): group for group in groups.values()}
    return sorted(map(sorted, unique.values()))


def _packed(groups: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    """Fill sets with groups in order; only a group that is too large for one is divided."""
    current: list[str] = []
    for group in groups:
        if len(current) + len(group) > COUNTERS_MAX:
            yield current
            current = []
        for name in group:
            if len(current) == COUNTERS_MAX:
                yield current
                current = []
            current.append(name)
    yield current
