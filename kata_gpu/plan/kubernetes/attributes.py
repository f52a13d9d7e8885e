"""What a unit is, in the attributes and capacities by which a claim selects it.

What always holds:

- nothing here changes while the unit does its work: no link speed of now, no holders, and of a
  unit that is bound on claim nothing that a claim changes; each change is a write to the API;
- what is not known is left out: CEL tells "absent" from "no";
- texts are printable ASCII of at most 64 characters, whatever pci.ids says.

Source: resource.k8s.io/v1 types.go (limits); KEP-4381 and KEP-6072 (standard names).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kata_gpu.model import confidential
from kata_gpu.model.blueprint import Pool
from kata_gpu.model.confidential import ARCHITECTURES
from kata_gpu.model.kubernetes import Attribute, BindWhen
from kata_gpu.model.ledger import LedgerEntry
from kata_gpu.model.pci import NVIDIA, PciFunction
from kata_gpu.model.platform import Platform

TEXT_MAX: Final = 64
_STANDARD: Final = "resource.kubernetes.io"
_VENDORS: Final = {NVIDIA: "nvidia", 0x1002: "amd", 0x8086: "intel"}
_GENERATIONS: Final = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_ROOT: Final = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_MEMORY: Final = re.compile(r"(?<!\d)(\d{1,4}) ?GB\b", re.ASCII)
_GB: Final = 10**9
_TELLS_WHO_ASKS: Final = frozenset({"nvidia"})
"""Drivers that tell of memory by a library alone, which is asked when a GPU leaves them."""

_DOMAIN_MAX: Final = 0xFFFF
_SWITCHED: Final = 3
"""Bridges above what is behind a switch: the root port, and the switch's two."""

_OF_ALL: Final = ("iommufd", "confidential", "ready")
"""What a bundle has only if everything in it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passengers:
    """A unit's functions, and what is known around them."""

    pool: Pool
    functions: Sequence[PciFunction]
    """The primary first."""

    entry: LedgerEntry | None
    platform: Platform
    is_ready: bool

    @property
    def primary(self) -> PciFunction:
        """The function by whose address the unit goes."""
        return self.functions[0]

    @property
    def gpus(self) -> tuple[PciFunction, ...]:
        """Its GPUs; none for a switch."""
        return tuple(function for function in self.functions if function.is_gpu)


def of_unit(unit: Passengers) -> dict[str, Attribute]:
    """Return the attributes of a unit; those without a domain are the driver's."""
    found: dict[str, Attribute | None] = {
        **_place(unit),
        **_product(unit.primary),
        **_link(unit.primary),
        **_access(unit),
        "unit": _kind(unit),
        "pool": _text(unit.pool.name),
        "gpuCount": len(unit.gpus),
        "resetMethod": _text(next(iter(unit.primary.reset_methods), None)),
    }
    return _known(found)


def of_bundle(units: Sequence[Mapping[str, Attribute]]) -> dict[str, Attribute]:
    """Return what all units have in common; of those with GPUs, if there are any."""
    with_gpus = [unit for unit in units if unit.get("gpuCount")] or list(units)
    common = {
        name: value
        for name, value in with_gpus[0].items()
        if all(unit.get(name) == value for unit in with_gpus)
    }
    for name in _OF_ALL:
        if any(name in unit for unit in units):
            common[name] = all(unit.get(name, True) for unit in units)
    if "confidential" in common:
        common["confidential"] = bool(common["confidential"] and common.get("iommufd"))
    count = sum(int(unit.get("gpuCount", 0)) for unit in units)
    return {**common, "unit": "bundle", "gpuCount": count}


def capacity_bytes(unit: Passengers) -> dict[str, int]:
    """Return the memory of its GPUs, as far as it is known, and the BARs that a guest maps."""
    found = {}
    sizes = [_memory(unit, gpu) for gpu in unit.gpus]
    if sizes and all(sizes) and unit.primary.parent is None:
        found["memory"] = sum(size for size in sizes if size)
    bars = sum(map(_largest_bar, unit.gpus or unit.functions))
    return {**found, "barSize": bars} if bars else found


def _place(unit: Passengers) -> dict[str, Attribute | None]:
    primary = unit.primary
    groups = {f.iommu_group for f in unit.functions}
    is_short = primary.address.domain <= _DOMAIN_MAX
    return {
        f"{_STANDARD}/pcieRoot": primary.root if _ROOT.fullmatch(primary.root) else None,
        f"{_STANDARD}/pciBusID": str(primary.address) if is_short else None,
        f"{_STANDARD}/numaNode": primary.numa_node,
        "iommuGroup": groups.pop() if len(groups) == 1 else None,
        "board": _board(primary),
    }


def _board(function: PciFunction) -> str:
    """Return the outermost switch above it; else its root port; else its own slot.

    Those that share it are on one board, or behind one switch of the mainboard.
    """
    bridges = function.bridges
    if len(bridges) >= _SWITCHED:
        return str(bridges[1])
    return str(bridges[0]) if bridges else str(function.address).rpartition(".")[0]


def _product(function: PciFunction) -> dict[str, Attribute | None]:
    chip = confidential.chip(function)
    return {
        "vendor": _VENDORS.get(function.vendor, f"{function.vendor:04x}"),
        "device": f"{function.identity.device:04x}",
        "productName": _text(function.product_name),
        "architecture": ARCHITECTURES.get(chip) if chip else None,
    }


def _link(function: PciFunction) -> dict[str, Attribute | None]:
    """Return what the link can do: what it does now changes with its power."""
    link = function.link
    if link is None:
        return {}
    speed = link.max_speed_gt_s
    return {
        "linkGeneration": None if speed is None else _GENERATIONS.get(speed),
        "linkWidth": link.max_width or None,
    }


def _access(unit: Passengers) -> dict[str, Attribute | None]:
    iommufd = unit.platform.iommufd and (
        unit.pool.bind is BindWhen.ON_CLAIM
        or all(f.vfio_cdev is not None or not f.is_on_vfio for f in unit.functions)
    )
    is_on_claim = unit.pool.bind is BindWhen.ON_CLAIM
    found: dict[str, Attribute | None] = {
        "driver": _text(_driver(unit)),
        "iommufd": iommufd,
        "teeReady": bool(unit.platform.tees),
        "bind": unit.pool.bind.value,
        "ready": None if is_on_claim else unit.is_ready,
    }
    if unit.gpus:  # whether the mode is on the guest attests; here it is whether it could be
        capable = _cc_capable(unit.gpus)
        is_confidential = bool(unit.platform.tees) and iommufd and capable is True
        found |= {"ccCapable": capable, "confidential": is_confidential}
        if not is_on_claim and unit.entry is not None and unit.entry.cc_mode is not None:
            found["ccMode"] = unit.entry.cc_mode.value
    return found


def _driver(unit: Passengers) -> str | None:
    """Return the driver bound now; of what is bound on claim, the one it has between claims."""
    if unit.pool.bind is BindWhen.ON_CLAIM and unit.entry is not None:
        for function in unit.entry.functions:
            if function.address == unit.primary.address:
                return function.original.driver
    return unit.primary.binding.driver


def _cc_capable(gpus: Iterable[PciFunction]) -> bool | None:
    """Tell whether every GPU has a confidential mode; None where one is not known to."""
    found = [confidential.has_mode(gpu) for gpu in gpus]
    if False in found:
        return False
    return None if None in found else True


def _kind(unit: Passengers) -> str:
    if unit.primary.parent is not None:
        return "virtual-function"
    return "group" if len(unit.functions) > 1 else "function"


def _memory(unit: Passengers, gpu: PciFunction) -> int | None:
    """Return what its host driver said of its memory, else what the product's name says.

    None where the name has no size, or several.
    """
    return gpu.memory_bytes or _remembered(unit, gpu) or _named_memory(gpu)


def _remembered(unit: Passengers, gpu: PciFunction) -> int | None:
    """Return what its host driver said before it left.

    Of a unit that is bound on claim only what that driver says between claims, too.
    """
    if unit.entry is None:
        return None
    for function in unit.entry.functions:
        is_told_always = function.original.driver not in _TELLS_WHO_ASKS
        if function.address == gpu.address and (
            is_told_always or unit.pool.bind is not BindWhen.ON_CLAIM
        ):
            return function.memory_bytes
    return None


def _named_memory(gpu: PciFunction) -> int | None:
    sizes = _MEMORY.findall(gpu.product_name or "")
    return int(sizes[0]) * _GB if len(sizes) == 1 else None


def _largest_bar(function: PciFunction) -> int:
    mapped = (bar.size_bytes for bar in function.bars if bar.is_prefetchable and bar.is_64_bit)
    return max(mapped, default=0)


def _text(value: str | None) -> str | None:
    """Return a text within the limits; None where nothing is left of it."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in value or "")
    return printable.strip()[:TEXT_MAX].rstrip() or None


def _known(found: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    return {name: value for name, value in found.items() if value is not None}
