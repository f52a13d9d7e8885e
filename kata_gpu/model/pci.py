"""PCI functions as values: what sits where, who holds it, what it can do.

Source of the class codes: PCI Code and ID Assignment Specification; of the attributes:
Linux Documentation/ABI/testing/sysfs-bus-pci.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

_ADDRESS: Final = re.compile(
    r"([0-9a-f]{4}|[1-9a-f][0-9a-f]{4,7}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])"
)

NVIDIA: Final = 0x10DE

OVERRIDE_UNSET: Final = frozenset({"(null)", ""})
"""What ``driver_override`` reads when any matching driver may bind."""

CLASS_STORAGE: Final = 0x01
CLASS_DISPLAY: Final = 0x03
CLASS_AUDIO: Final = 0x0403
CLASS_HOST_BRIDGE: Final = 0x0600
CLASS_PCI_BRIDGE: Final = 0x0604
CLASS_OTHER_BRIDGE: Final = 0x0680
CLASS_SERIAL_BUS: Final = 0x0C
CLASS_ACCELERATOR: Final = 0x12


@dataclass(frozen=True, order=True, slots=True)
class PciAddress:
    """Domain, bus, device and function of one PCI function, as in ``0000:41:00.0``.

    A domain has 16 bits on most hosts and 32 behind a VMD controller, a bus 8,
    a device 5, a function 3.
    """

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the form the kernel prints; raise ValueError on any other."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(
                f"not a PCI address: {text[:64]!r} (expected DDDD:BB:DD.F, lower case)"
            )
        domain, bus, device, function = match.groups()
        return cls(int(domain, 16), int(bus, 16), int(device, 16), int(function, 16))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"

    @property
    def slot(self) -> tuple[int, int, int]:
        """Domain, bus and device: what the functions of one card share."""
        return self.domain, self.bus, self.device


def addresses_in(text: str) -> tuple[PciAddress, ...]:
    """Return every address that *text* names, in order."""
    return tuple(PciAddress.parse(match[0]) for match in _ADDRESS.finditer(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a function is and where it sits: all that is read of one that does not matter."""

    address: PciAddress
    vendor: int
    device: int

    class_code: int
    """Base class, sub-class and programming interface: 24 bits, 0x030200 for a 3D controller."""

    @property
    def class_hex(self) -> str:
        """The class as six hex digits."""
        return f"{self.class_code:06x}"

    @property
    def subclass(self) -> int:
        """Base class and sub-class: 16 bits, 0x0302 for a 3D controller."""
        return self.class_code >> 8

    @property
    def is_gpu(self) -> bool:
        """Whether this is a display controller or processing accelerator."""
        return self.class_code >> 16 in {CLASS_DISPLAY, CLASS_ACCELERATOR}

    @property
    def is_nvswitch(self) -> bool:
        """Whether this is an NVSwitch: an NVIDIA "Bridge: Other" that is no PCI bridge."""
        return self.vendor == NVIDIA and self.subclass == CLASS_OTHER_BRIDGE

    @property
    def is_bridge(self) -> bool:
        """Whether VMMs and VFIO pass this function over: a host or PCI-PCI bridge, exactly."""
        return self.subclass in {CLASS_HOST_BRIDGE, CLASS_PCI_BRIDGE}


@dataclass(frozen=True, slots=True)
class Binding:
    """Who holds a function, and who alone may: all that a rebind changes."""

    driver: str | None
    """The driver bound now; None when the function is unclaimed."""

    override: str | None
    """The only driver that may bind; None when any matching driver may."""

    def __str__(self) -> str:
        only = f" (override {self.override})" if self.override else ""
        return f"{self.driver or 'no driver'}{only}"


@dataclass(frozen=True, slots=True)
class Bar:
    """One memory or I/O window of a function (``resource`` in sysfs)."""

    index: int
    size_bytes: int
    is_prefetchable: bool
    is_64_bit: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A PCI Express link as it runs and as it could; None where the kernel does not know."""

    speed_gt_s: float | None
    width: int | None
    max_speed_gt_s: float | None
    max_width: int | None


@dataclass(frozen=True, slots=True)
class PhysicalFunction:
    """The owner of SR-IOV virtual functions."""

    total_vfs: int
    active_vfs: int
    probes_vfs: bool = True
    """Whether drivers may take its virtual functions as they appear (sriov_drivers_autoprobe)."""


@dataclass(frozen=True, slots=True)
class VirtualFunction:
    """An SR-IOV virtual function and the physical one it belongs to."""

    parent: PciAddress


SriovRole = PhysicalFunction | VirtualFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFunction:
    """One PCI function as sysfs shows it, read once."""

    identity: Identity
    subsystem_vendor: int
    subsystem_device: int
    revision: int

    binding: Binding

    numa_node: int | None
    """None when the firmware does not say."""

    iommu_group: int | None
    """None when no IOMMU translates for this function."""

    root: str
    """The host bridge's name, ``pci0000:40``: what Kubernetes calls the PCIe root."""

    bridges: tuple[PciAddress, ...]
    """Every bridge between the root and this function, outermost first."""

    header_type: int | None
    """0 for an endpoint, 1 for a bridge; None when config space does not answer."""

    bars: tuple[Bar, ...]
    link: Link | None
    reset_methods: tuple[str, ...]
    """In the order the kernel tries them; empty when it has no way to reset this function."""

    sriov: SriovRole | None
    power_state: str | None
    is_boot_display: bool

    is_on_vfio: bool
    """Whether it has a VFIO device: what holds it is vfio-pci or a variant, however called."""

    vfio_cdev: str | None
    """The ``vfioN`` whose character device /dev/vfio/devices/vfioN exists; None without one."""

    slot: str | None
    """Name of the physical slot; None where the firmware names none."""

    serial: str | None
    """The PCIe device serial number; None where there is none, or the kernel does not show it
    (before 7.0, or without CAP_SYS_ADMIN)."""

    vendor_name: str | None
    product_name: str | None
    """From the pci.ids database; None when it has no entry, or is not installed."""

    memory_bytes: int | None = None
    """A GPU's memory as the driver that has it says; None where it says nothing."""

    @property
    def address(self) -> PciAddress:
        """Where it sits."""
        return self.identity.address

    @property
    def vendor(self) -> int:
        """The vendor id; 0xffff when the device has fallen off the bus."""
        return self.identity.vendor

    @property
    def class_code(self) -> int:
        """Base class, sub-class and programming interface: 24 bits."""
        return self.identity.class_code

    @property
    def is_gpu(self) -> bool:
        """Whether this is a display controller or processing accelerator."""
        return self.identity.is_gpu

    @property
    def is_bridge(self) -> bool:
        """Whether VMMs and VFIO pass this function over: a host or PCI-PCI bridge, exactly."""
        return self.identity.is_bridge

    @property
    def parent(self) -> PciAddress | None:
        """The physical function that this one is a virtual one of; None when it is none."""
        return self.sriov.parent if isinstance(self.sriov, VirtualFunction) else None

    @property
    def label(self) -> str:
        """What a person calls it: ``NVIDIA … GH100 [10de:2330]``, or the ids alone."""
        ids = f"[{self.vendor:04x}:{self.identity.device:04x}]"
        names = " ".join(name for name in (self.vendor_name, self.product_name) if name)
        return f"{names} {ids}" if names else ids
