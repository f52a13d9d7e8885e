"""Which devices a pod had best be given together, for kubelet's GetPreferredAllocation.

Devices on one board or behind one switch share bridges, and the more of them the nearer they
are; then come those below one host bridge, then those of one NUMA node. Of sets that are
equally near, the one is best that has the least to do with what is left: a pod that wants one
GPU gets the odd one, and the four of a board stay together for a pod that wants four.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from kata_gpu.model.kubernetes import Device

_COMBINATIONS_MAX: Final = 2000  # some ten milliseconds, while kubelet admits no other pod
_STARTS_MAX: Final = 16
_DEVICES_MAX: Final = 256  # every two of them are compared
_BRIDGE: Final = 4
_ROOT: Final = 2
_NUMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Devices by their place in the order of ids, and how near any two are."""

    near: tuple[tuple[int, ...], ...]
    bonds: tuple[tuple[int, ...], ...]
    """How bad it is to part two: one pair of a board is worth more than many of a NUMA node."""

    total: tuple[int, ...]
    """The bonds of a device to all others together."""

    required: tuple[int, ...]
    free: tuple[int, ...]
    missing: int

    def merit(self, chosen: Sequence[int]) -> tuple[int, int]:
        """Rate a set: how near its members are to each other, how little is parted for it."""
        pairs = tuple(combinations(chosen, 2))
        within = sum(self.near[a][b] for a, b in pairs)
        kept = sum(self.bonds[a][b] for a, b in pairs)
        return within, 2 * kept - sum(self.total[a] for a in chosen)


def prefer(available: Sequence[Device], required: Sequence[str], size: int) -> tuple[str, ...]:
    """Return *size* ids of *available*, the *required* among them, in the order of ids.

    Nothing when there are no such, or too many devices to compare: kubelet then chooses as it
    likes.
    """
    devices = {device.id: device for device in sorted(available, key=lambda device: device.id)}
    needed = set(required)
    if not needed <= devices.keys() or not max(1, len(needed)) <= size <= len(devices):
        return ()
    if len(devices) > _DEVICES_MAX:
        return ()
    ids = tuple(devices)
    choice = _choice(devices, needed, size)
    if math.comb(len(choice.free), choice.missing) <= _COMBINATIONS_MAX:
        chosen = max(_all_sets(choice), key=choice.merit)  # of equals the first
    else:
        chosen = _grown(choice)
    return tuple(ids[place] for place in sorted(chosen))


def _choice(devices: Mapping[str, Device], needed: set[str], size: int) -> _Choice:
    values = tuple(devices.values())
    near = tuple(tuple(0 if a is b else _nearness(a, b) for b in values) for a in values)
    bonds = tuple(tuple(4**value - 1 for value in row) for row in near)
    required = tuple(place for place, name in enumerate(devices) if name in needed)
    return _Choice(
        near=near,
        bonds=bonds,
        total=tuple(map(sum, bonds)),
        required=required,
        free=tuple(place for place, name in enumerate(devices) if name not in needed),
        missing=size - len(required),
    )


def _nearness(a: Device, b: Device) -> int:
    shared = 0
    for one, other in zip(a.path, b.path, strict=False):
        if one != other:
            break
        shared += 1
    is_one_root = bool(a.root) and a.root == b.root
    is_one_node = a.numa_node is not None and a.numa_node == b.numa_node
    return shared * _BRIDGE + is_one_root * _ROOT + is_one_node * _NUMA


def _all_sets(choice: _Choice) -> Iterator[tuple[int, ...]]:
    for more in combinations(choice.free, choice.missing):
        yield (*choice.required, *more)


def _grown(choice: _Choice) -> tuple[int, ...]:
    """Return the best of the sets that grow from some starts, always by what is nearest."""
    crowded = sorted(choice.free, key=lambda place: choice.total[place], reverse=True)
    starts = [choice.required] if choice.required else [(p,) for p in crowded[:_STARTS_MAX]]
    size = len(choice.required) + choice.missing
    return max((_grow(choice, start, size) for start in starts), key=choice.merit)


def _grow(choice: _Choice, start: tuple[int, ...], size: int) -> tuple[int, ...]:
    chosen = list(start)
    gain = [
        sum(choice.near[place][member] for member in chosen) for place in range(len(choice.near))
    ]
    left = [place for place in choice.free if place not in chosen]
    while len(chosen) < size:
        nearest = max(left, key=lambda place: (gain[place], -choice.total[place]))
        left.remove(nearest)
        chosen.append(nearest)
        for place in left:
            gain[place] += choice.near[place][nearest]
    return tuple(chosen)
