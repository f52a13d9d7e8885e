"""What a fake node is made of, as values: functions, drivers, and the ids that match them."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

VGA: Final = 0x0300
PCI_BRIDGE: Final = 0x060400


class Sriov(Enum):
    """What a driver does with the virtual functions of a device it holds."""

    NONE = auto()
    KEEPS_VFS = auto()  # can enable them, and leaves them on when it lets go (nvme)
    REMOVES_VFS = auto()  # can enable them, and disables them when it lets go (igb, xe)


@dataclass(frozen=True, slots=True, kw_only=True)
class PciId:
    """One row of a driver's table; None matches anything."""

    vendor: int | None = None
    device: int | None = None
    subclass: int | None = None
    """Base class and sub-class: 16 bits."""

    def matches(self, function: "DeviceSpec") -> bool:
        """Tell whether a function is what this row means."""
        return (
            self.vendor in {None, function.vendor}
            and self.device in {None, function.device}
            and self.subclass in {None, function.class_code >> 8}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverSpec:
    """One PCI driver."""

    name: str
    module: str
    ids: tuple[PciId, ...] = ()
    managed_dma: bool = False
    """Whether it may hold a function whose group a user owns (driver_managed_dma)."""

    vfio: bool = False
    """Whether it gives its functions to users; it takes any function, and manages DMA."""

    takes_anything: bool = False
    """Whether its probe accepts functions that are not in its table (pci-stub)."""

    sriov: Sriov = Sriov.NONE
    aliases: tuple[str, ...] = ()
    """Its module's lines in modules.alias, as ``vfio_pci:v000010DEd…``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One PCI function, as it is when it appears on the bus: all but who holds it."""

    address: str
    vendor: int
    device: int
    class_code: int
    """24 bits."""

    parent: str | None
    """The bridge it is behind; None on the root bus."""

    group: int | None
    """The IOMMU group; None where no IOMMU translates for it."""

    subsystem: tuple[int, int] = (0, 0)
    revision: int = 0
    numa_node: int = -1
    boot_vga: bool = False
    reset_methods: tuple[str, ...] = ()
    header_type: int = 0
    multifunction: bool = False
    total_vfs: int = 0
    vf_device: int = 0
    bars: tuple[int, ...] = ()
    """Sizes in bytes; from 256 MiB on they are 64-bit and prefetchable."""

    pcie: bool = True
    link: tuple[str, int] = ("16.0 GT/s PCIe", 16)
    sleeps: bool = True
    """Whether it has a power management capability."""

    physfn: str | None = None
    """The physical function, for a virtual one."""

    @property
    def domain_and_bus(self) -> str:
        """What addresses on one bus share, as ``0000:01``."""
        return self.address.rpartition(":")[0]
