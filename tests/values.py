"""Sound values of the model, for tests to change one thing about."""

from datetime import UTC, datetime
from typing import Final

from kata_gpu.model.blueprint import Blueprint, Mode, Pool, Selector
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.pci import Binding, Identity, PciAddress, PciFunction
from kata_gpu.model.platform import IommuKind, Platform

PLATFORM: Final = Platform(
    kernel_release="6.1.0-56-amd64",
    machine="x86_64",
    iommu=IommuKind.INTEL,
    interrupt_remapping=True,
    unsafe_interrupts=False,
    noiommu_mode=False,
    iommufd=False,
    tees=(),
)

GPU_CLASS: Final = 0x030200
AUDIO_CLASS: Final = 0x040300
NETWORK_CLASS: Final = 0x020000
BRIDGE_CLASS: Final = 0x060400
SWITCH_CLASS: Final = 0x068000


def address(text: str) -> PciAddress:
    """Return an address; ``01:00.0`` is in domain 0."""
    return PciAddress.parse(text if text.count(":") == 2 else f"0000:{text}")


def function(  # noqa: PLR0913 - one argument for each fact a test may change
    where: str,
    class_code: int = GPU_CLASS,
    *,
    vendor: int = 0x10DE,
    device: int = 0x2330,
    group: int | None = 1,
    binding: Binding = Binding(driver="nvidia", override=None),  # noqa: B008 - frozen
    numa_node: int | None = 0,
    product_name: str | None = None,
    vfio_cdev: str | None = None,
) -> PciFunction:
    """Return an endpoint on its host driver: an H100 unless told otherwise."""
    return PciFunction(
        identity=Identity(
            address=address(where), vendor=vendor, device=device, class_code=class_code
        ),
        subsystem_vendor=0x10DE,
        subsystem_device=0x16C1,
        revision=0xA1,
        binding=binding,
        numa_node=numa_node,
        iommu_group=group,
        root="pci0000:00",
        bridges=(),
        header_type=1 if class_code == BRIDGE_CLASS else 0,
        bars=(),
        link=None,
        reset_methods=("flr",),
        sriov=None,
        power_state="D0",
        is_boot_display=False,
        is_on_vfio=binding.driver == "vfio-pci",
        vfio_cdev=vfio_cdev,
        slot=None,
        serial=None,
        vendor_name=None,
        product_name=product_name,
    )


def group_of(*functions: PciFunction, number: int = 1) -> IommuGroup:
    """Return the group that these functions make."""
    return IommuGroup(
        number=number,
        members=tuple(f.address for f in functions),
        domain_type="DMA-FQ",
        has_direct_region=False,
        is_noiommu=False,
    )


def inventory_of(*functions: PciFunction, platform: Platform = PLATFORM) -> Inventory:
    """Return the inventory of a node that has these functions, grouped as they say."""
    numbers = sorted({f.iommu_group for f in functions if f.iommu_group is not None})
    return Inventory(
        functions=tuple(sorted(functions, key=lambda f: f.address)),
        groups=tuple(
            group_of(*(f for f in functions if f.iommu_group == number), number=number)
            for number in numbers
        ),
        platform=platform,
        kata=(),
        files=(),
        holders={},
        operations=(),
        problems=(),
        read_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def pool(
    name: str,
    *selectors: Selector,
    mode: Mode = Mode.PASSTHROUGH,
    min_units: int = 0,
    max_units: int | None = None,
) -> Pool:
    """Return a pool; without a selector it selects every NVIDIA GPU."""
    return Pool(
        name=name,
        mode=mode,
        selectors=selectors or (Selector(vendor=0x10DE),),
        resource="nvidia.com/pgpu" if mode is Mode.PASSTHROUGH else None,
        min_units=min_units,
        max_units=max_units,
    )


def blueprint_of(*pools: Pool) -> Blueprint:
    """Return a blueprint with these pools, in order."""
    return Blueprint(version="test", pools=pools)
