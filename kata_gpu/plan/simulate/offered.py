"""What a node of which an inventory is known would offer: devices, or resources by number.

The attributes have the names and values that the agent publishes, as far as an inventory has
them: what only the running agent knows is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Door
from kata_gpu.model.pci import NVIDIA, PciFunction
from kata_gpu.plan.simulate.values import Device, DeviceId, Node, Slice, Value, Where

_STANDARD: Final = "resource.kubernetes.io"
_VENDORS: Final = {NVIDIA: "nvidia", 0x1002: "amd", 0x8086: "intel"}
_GENERATIONS: Final = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_DOMAIN_MAX: Final = 0xFFFF
_TEXT_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Functions that a guest gets together; nothing is in the way."""

    functions: tuple[PciFunction, ...]

    @property
    def primary(self) -> PciFunction:
        """The function by whose address the unit goes."""
        return min(self.functions, key=lambda f: (not f.is_gpu, f.address))

    @property
    def gpus(self) -> int:
        """How many GPUs it has."""
        return sum(function.is_gpu for function in self.functions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A node's groups, and the blueprint that it is to have."""

    node: str
    groups: tuple[Group, ...]
    blueprint: Blueprint | None
    """None for every GPU and switch, through DRA."""


def offer(snapshot: Snapshot) -> tuple[Node, tuple[Slice, ...]]:
    """Return the node with its device-plugin resources, and its ResourceSlices."""
    taken: dict[str, int] = {}
    chosen = [(_pool(snapshot.blueprint, group, taken), group) for group in snapshot.groups]
    resources: dict[str, Fraction] = {}
    by_driver: dict[str, list[Device]] = {}
    bundled: dict[str, list[Group]] = {}
    for pool, group in chosen:
        door = Door.DRA if pool is None else pool.door
        if not _is_offered(snapshot, pool, group):
            continue
        if door is Door.DRA:
            driver = GPU_DRIVER if group.gpus else FABRIC_DRIVER
            by_driver.setdefault(driver, []).append(_device(snapshot.node, driver, group, pool))
        elif door is Door.DEVICE_PLUGIN and pool is not None and pool.resource is not None:
            if pool.bundle is not None:
                bundled.setdefault(pool.resource, []).append(group)
                continue
            resources[pool.resource] = resources.get(pool.resource, Fraction(0)) + 1
    resources.update(dict.fromkeys(bundled, Fraction(1)))
    slices = tuple(_slice(snapshot.node, d, devices) for d, devices in sorted(by_driver.items()))
    return Node(name=snapshot.node, resources=resources), slices


def _is_offered(snapshot: Snapshot, pool: Pool | None, group: Group) -> bool:
    if snapshot.blueprint is None:
        return group.gpus > 0 or group.primary.identity.is_nvswitch
    return pool is not None and pool.mode is Mode.PASSTHROUGH


def _pool(blueprint: Blueprint | None, group: Group, taken: dict[str, int]) -> Pool | None:
    """Return the first pool that selects the group and has room for it."""
    for pool in () if blueprint is None else blueprint.pools:
        has = taken.get(pool.name, 0)
        is_full = pool.max_units is not None and has >= pool.max_units
        if not is_full and any(pool.selects(function) for function in group.functions):
            taken[pool.name] = has + 1
            return pool
    return None


def _slice(node: str, driver: str, devices: Sequence[Device]) -> Slice:
    return Slice(
        name=f"{node}-{driver}",
        driver=driver,
        pool=node,
        generation=1,
        count=1,
        where=Where(node=node),
        devices=tuple(sorted(devices, key=lambda device: device.id.name)),
    )


def _device(node: str, driver: str, group: Group, pool: Pool | None) -> Device:
    primary = group.primary
    name = str(primary.address).replace(":", "-").replace(".", "-")
    found = {
        **_place(primary),
        **_kind(group),
        "pool": None if pool is None else pool.name,
        "driver": primary.binding.driver,
        "resetMethod": next(iter(primary.reset_methods), None),
    }
    return Device(
        id=DeviceId(driver, node, name),
        attributes={
            key if "/" in key else f"{driver}/{key}": value[:_TEXT_MAX]
            if isinstance(value, str)
            else value
            for key, value in found.items()
            if value is not None
        },
        capacity=_capacity(driver, group.functions),
    )


def _place(function: PciFunction) -> Mapping[str, Value | None]:
    is_short = function.address.domain <= _DOMAIN_MAX
    return {
        f"{_STANDARD}/pcieRoot": function.root or None,
        f"{_STANDARD}/pciBusID": str(function.address) if is_short else None,
        f"{_STANDARD}/numaNode": function.numa_node,
        "iommuGroup": function.iommu_group,
    }


def _kind(group: Group) -> Mapping[str, Value | None]:
    primary, link = group.primary, group.primary.link
    kind = "group" if len(group.functions) > 1 else "function"
    speed = None if link is None else link.max_speed_gt_s
    return {
        "vendor": _VENDORS.get(primary.vendor, f"{primary.vendor:04x}"),
        "device": f"{primary.identity.device:04x}",
        "productName": primary.product_name,
        "unit": kind if primary.parent is None else "virtual-function",
        "gpuCount": group.gpus,
        "linkGeneration": None if speed is None else _GENERATIONS.get(speed),
        "linkWidth": None if link is None else link.max_width,
    }


def _capacity(driver: str, functions: Iterable[PciFunction]) -> dict[str, Fraction]:
    size = sum(
        max((b.size_bytes for b in f.bars if b.is_prefetchable and b.is_64_bit), default=0)
        for f in functions
    )
    return {f"{driver}/barSize": Fraction(size)} if size else {}


def merged(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Return each node once: what a snapshot says of one goes to what the cluster says of it."""
    found: dict[str, Node] = {}
    for node in nodes:
        known = found.get(node.name)
        if known is None:
            found[node.name] = node
            continue
        first, second = (known, node) if known.labels is not None else (node, known)
        found[node.name] = replace(
            first, resources={**(second.resources or {}), **(first.resources or {})}
        )
    return tuple(found.values())
