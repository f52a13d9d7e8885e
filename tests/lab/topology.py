"""Machines as data: which devices sit where, and what follows from that.

A topology is a tree of parts. Everything else is derived from it, so that it cannot
disagree: QEMU's arguments, the identities to give, where sysfs shows each device, which
IOMMU groups the kernel must make, and the tree that a person reads.

Facts this rests on, measured with QEMU 7.2 and 10.0 and Linux 6.1 and 6.12: a
``pcie-root-port`` has ACS, so that what is behind it has a group of its own, also where it
serves as a switch's downstream port; without ACS the port joins the group; functions of one
slot, and everything behind a PCIe-to-PCI bridge with the bridge itself, share a group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, assert_never


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a PCI function says it is."""

    vendor: int
    device: int
    class_code: int
    """The 24 bits of base class, subclass and programming interface."""

    revision: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x} class {self.class_code:06x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One of QEMU's devices, and the driver that the guest's kernel has for it."""

    device: str
    """The name for ``-device``, with its fixed options."""

    emulates: Identity
    """Its own identity; the class code is informative."""

    module: str | None = None
    """The module of its driver; None where it has none."""

    driver: str | None = None
    """The driver's name in sysfs; None where it has none."""

    backends: tuple[str, ...] = ()
    """Arguments for what stands behind the device; ``{role}`` is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One PCI function with a role, the name by which tests ask for it."""

    role: str
    model: Model
    identity: Identity | None = None
    """The identity it is given; None where the model's own is kept."""

    options: str = ""
    """Further options for ``-device``, with a leading comma."""

    shown: bool = True
    """Whether the device is there at boot (False: it can be plugged in)."""

    @property
    def seen_as(self) -> Identity:
        """The identity that the kernel sees."""
        return self.identity or self.model.emulates


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A root port, or a downstream port of a switch, with the functions of its one slot."""

    role: str
    slot: tuple[Function, ...] = ()
    acs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A PCIe-to-PCI bridge on a root port of its own, each function in a slot of its own."""

    role: str
    slots: tuple[Function, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A PCIe switch on a root port of its own."""

    role: str
    ports: tuple[Port, ...]


Part = Port | Bridge | Switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A whole machine."""

    name: str
    summary: str
    parts: tuple[Part, ...]
    far_parts: tuple[Part, ...] = ()
    """Parts on a host bridge of their own, on NUMA node 1."""

    iommu: bool = True
    memory_mib: int = 2048
    needs: str | None = None
    """A device that not every QEMU has: without it there is no such machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a function, a port or a bridge is: enough to find it in sysfs."""

    role: str
    root_bus: int
    devfns: tuple[str, ...]
    """Device and function of each bridge on the way, and of itself, as ``02.0``."""

    parent: str
    """The bus in QEMU's terms."""

    group: str
    """The role of the first member of its IOMMU group."""

    qemu_device: str
    function: Function | None = None
    """None for ports and bridges."""

    @property
    def sysfs_glob(self) -> str:
        """A pattern that matches its folder only, below ``/sys/devices``."""
        steps = [f"pci0000:{self.root_bus:02x}"]
        buses = [f"{self.root_bus:02x}", *["??"] * (len(self.devfns) - 1)]
        steps += [f"0000:{bus}:{devfn}" for bus, devfn in zip(buses, self.devfns, strict=True)]
        return "/".join(steps)


_FAR_BUS: Final = 0x40
_FIRST_SLOT: Final = 2  # 00 is the host bridge, 01 is left to QEMU
_PORTS_PER_SLOT: Final = 8


def places(topology: Topology) -> tuple[Place, ...]:
    """Return every port, bridge and function, each after the bridge it is behind."""
    found = [*_on_root_bus(topology.parts, "pcie.0", 0, first_chassis=1)]
    if topology.far_parts:
        found += _on_root_bus(topology.far_parts, "far", _FAR_BUS, first_chassis=128)
    return tuple(found)


def place_of(topology: Topology, role: str) -> Place:
    """Return the place with that role; raise KeyError with the roles there are."""
    for place in places(topology):
        if place.role == role:
            return place
    roles = ", ".join(place.role for place in places(topology))
    raise KeyError(f"topology {topology.name} has no {role!r}; it has: {roles}")


def _on_root_bus(
    parts: tuple[Part, ...], bus: str, number: int, first_chassis: int
) -> Iterator[Place]:
    for index, part in enumerate(parts):
        # the far root bus has no other devices, pcie.0 keeps slots for the platform's own
        device = index // _PORTS_PER_SLOT + (_FIRST_SLOT if bus == "pcie.0" else 0)
        devfn = (f"{device:02x}.{index % _PORTS_PER_SLOT}",)
        chassis = first_chassis + 8 * index
        match part:
            case Port():
                yield from _port(part, bus, number, devfn, chassis)
            case Bridge():
                yield from _bridge(part, bus, number, devfn, chassis)
            case Switch():
                yield from _switch(part, bus, number, devfn, chassis)
            case _:
                assert_never(part)


def _port(
    port: Port, bus: str, number: int, devfns: tuple[str, ...], chassis: int
) -> Iterator[Place]:
    acs = "" if port.acs else ",disable-acs=on"
    multifunction = ",multifunction=on" if devfns[-1].endswith(".0") and len(devfns) == 1 else ""
    yield Place(
        role=port.role,
        root_bus=number,
        devfns=devfns,
        parent=bus,
        group=port.role,
        qemu_device=f"pcie-root-port,chassis={chassis},slot={chassis}{acs}{multifunction}",
    )
    for index, function in enumerate(port.slot):
        several = ",multifunction=on" if len(port.slot) > 1 and index == 0 else ""
        yield Place(
            role=function.role,
            root_bus=number,
            devfns=(*devfns, f"00.{index}"),
            parent=port.role,
            group=port.slot[0].role if port.acs else port.role,
            qemu_device=f"{function.model.device}{several}{function.options}",
            function=function,
        )


def _bridge(
    bridge: Bridge, bus: str, number: int, devfns: tuple[str, ...], chassis: int
) -> Iterator[Place]:
    root = Port(role=f"{bridge.role}-root")
    yield from _port(root, bus, number, devfns, chassis)
    yield Place(
        role=bridge.role,
        root_bus=number,
        devfns=(*devfns, "00.0"),
        parent=root.role,
        group=bridge.role,
        qemu_device="pcie-pci-bridge",
    )
    for index, function in enumerate(bridge.slots, start=1):
        yield Place(
            role=function.role,
            root_bus=number,
            devfns=(*devfns, "00.0", f"{index:02x}.0"),
            parent=bridge.role,
            group=bridge.role,
            qemu_device=f"{function.model.device}{function.options}",
            function=function,
        )


def _switch(
    switch: Switch, bus: str, number: int, devfns: tuple[str, ...], chassis: int
) -> Iterator[Place]:
    root = Port(role=f"{switch.role}-root")
    yield from _port(root, bus, number, devfns, chassis)
    yield Place(
        role=switch.role,
        root_bus=number,
        devfns=(*devfns, "00.0"),
        parent=root.role,
        group=switch.role,
        qemu_device="x3130-upstream",
    )
    for index, port in enumerate(switch.ports):
        way = (*devfns, "00.0", f"{index:02x}.0")
        yield from _port(port, switch.role, number, way, chassis + 1 + index)
