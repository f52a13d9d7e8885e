"""Which IOMMU groups must go to a guest together, though the IOMMU could tell them apart.

- A GPU's card may carry functions (audio, USB, UCSI) that the IOMMU isolates into groups of
  their own; a guest that has the one and a host that drives the other share the card.
- A function whose only reset is that of its bus resets everything there with it.

Virtual functions share a bus with their parent and are isolated from it by design.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Final

from kata_gpu.model.iommu import is_on_gpu_cards
from kata_gpu.model.pci import PciFunction, VirtualFunction

_BUS_RESETS: Final = frozenset({"bus", "cxl_bus"})


def bonds(functions: Iterable[PciFunction]) -> dict[int, tuple[int, ...]]:
    """Return for each group all that must move with it, itself included, by number."""
    by_bus: dict[tuple[int, int], list[PciFunction]] = {}
    for function in functions:
        if function.iommu_group is not None and not _is_apart(function):
            by_bus.setdefault((function.address.domain, function.address.bus), []).append(function)
    sets: dict[int, set[int]] = {}
    for together in by_bus.values():
        for one, other in combinations(together, 2):
            if one.iommu_group != other.iommu_group and _move_together(one, other):
                _join(sets, one.iommu_group or 0, other.iommu_group or 0)
    return {group: tuple(sorted(mates)) for group, mates in sets.items()}


def all_bonded(group: int, bonded: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the groups that move with *group*."""
    return bonded.get(group, (group,))


def _is_apart(function: PciFunction) -> bool:
    return function.is_bridge or isinstance(function.sriov, VirtualFunction)


def _move_together(one: PciFunction, other: PciFunction) -> bool:
    """Tell whether two functions of one bus share a card or a reset."""
    is_one_card = one.address.slot == other.address.slot and any(
        gpu.is_gpu and is_on_gpu_cards(mate) for gpu, mate in ((one, other), (other, one))
    )
    return is_one_card or any(
        f.reset_methods and _BUS_RESETS.issuperset(f.reset_methods) for f in (one, other)
    )


def _join(sets: dict[int, set[int]], one: int, other: int) -> None:
    together = sets.get(one, {one}) | sets.get(other, {other})
    for group in together:
        sets[group] = together
