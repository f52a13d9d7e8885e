"""``kata-gpu inventory -o json`` of a node, as an inventory once more.

What the planner and a device's attributes are made of is read; the rest may be as it is in any
version of the command. Holders and files are not in it.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, PlainValidator, model_validator

from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.inventory import Inventory, Problem
from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.pci import (
    Bar,
    Binding,
    Identity,
    Link,
    PciAddress,
    PciFunction,
    PhysicalFunction,
    SriovRole,
    VirtualFunction,
)
from kata_gpu.model.platform import IommuKind, Platform, Tee
from kata_gpu.model.vfio import VFIO_PCI, VfioDriver
from kata_gpu.plan.simulate.offered import Snapshot
from kata_gpu.settings.manifests.documents import Document
from kata_gpu.settings.manifests.objects import Name, Part, Text, validate

FUNCTIONS_MAX: Final = 4096
"""Of a node, as of its groups: some rules hold every unit against every other."""

_UNDATED: Final = datetime(1970, 1, 1, tzinfo=UTC)  # nothing that is offered hangs on when


def _address(found: Any) -> PciAddress:
    if not isinstance(found, str):
        raise ValueError("expected a PCI address")  # noqa: TRY004 - pydantic wants it
    return PciAddress.parse(found)


_Address = Annotated[PciAddress, PlainValidator(_address)]
_Hex4 = Annotated[str, Field(pattern=r"^[0-9a-f]{4}$")]
_Small = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Record(Part):
    model_config = ConfigDict(alias_generator=lambda name: name)


class BindingRecord(_Record):
    """``binding``."""

    driver: Name | None = None
    override: Name | None = None


class LinkRecord(_Record):
    """``link``."""

    max_speed_gt_s: Annotated[float | int, Field(ge=0, lt=1 << 31)] | None = None
    max_width: _Small | None = None


class BarRecord(_Record):
    """One of ``bars``."""

    index: _Small
    size_bytes: Annotated[int, Field(ge=0, lt=1 << 62)]
    is_prefetchable: bool = False
    is_64_bit: bool = False


class SriovRecord(_Record):
    """``sriov``; a virtual function names its parent, and a physical one has numbers."""

    parent: _Address | None = None
    total_vfs: _Small | None = None
    active_vfs: _Small = 0
    probes_vfs: bool = True

    def as_value(self) -> SriovRole | None:
        """Return the role; None where neither is said."""
        if self.parent is not None:
            return VirtualFunction(parent=self.parent)
        if self.total_vfs is None:
            return None
        return PhysicalFunction(
            total_vfs=self.total_vfs, active_vfs=self.active_vfs, probes_vfs=self.probes_vfs
        )


class FunctionRecord(_Record):
    """One of ``functions``."""

    address: _Address
    vendor: _Hex4
    device: _Hex4
    class_: Annotated[str, Field(pattern=r"^[0-9a-f]{6}$", alias="class")]
    binding: BindingRecord = Field(default_factory=BindingRecord)
    numa_node: _Small | None = None
    iommu_group: _Small | None = None
    root: Annotated[str, Field(max_length=64)] = ""
    bridges: list[_Address] = Field(default_factory=list)
    header_type: _Small | None = None
    bars: list[BarRecord] = Field(default_factory=list)
    link: LinkRecord | None = None
    reset_methods: list[Name] = Field(default_factory=list)
    sriov: SriovRecord | None = None
    is_boot_display: bool = False
    is_on_vfio: bool = False
    vfio_cdev: Name | None = None
    vendor_name: Name | None = None
    product_name: Name | None = None
    memory_bytes: Annotated[int, Field(gt=0, lt=1 << 62)] | None = None

    def as_value(self) -> PciFunction:
        """Return the function; what does not matter here is empty."""
        return PciFunction(
            identity=Identity(
                address=self.address,
                vendor=int(self.vendor, 16),
                device=int(self.device, 16),
                class_code=int(self.class_, 16),
            ),
            subsystem_vendor=0,
            subsystem_device=0,
            revision=0,
            binding=Binding(driver=self.binding.driver, override=self.binding.override),
            numa_node=self.numa_node,
            iommu_group=self.iommu_group,
            root=self.root,
            bridges=tuple(self.bridges),
            header_type=self.header_type,
            bars=tuple(
                Bar(
                    index=bar.index,
                    size_bytes=bar.size_bytes,
                    is_prefetchable=bar.is_prefetchable,
                    is_64_bit=bar.is_64_bit,
                )
                for bar in self.bars
            ),
            link=self._link(),
            reset_methods=tuple(self.reset_methods),
            sriov=None if self.sriov is None else self.sriov.as_value(),
            power_state=None,
            is_boot_display=self.is_boot_display,
            is_on_vfio=self.is_on_vfio,
            vfio_cdev=self.vfio_cdev,
            slot=None,
            serial=None,
            vendor_name=self.vendor_name,
            product_name=self.product_name,
            memory_bytes=self.memory_bytes,
        )

    def _link(self) -> Link | None:
        if self.link is None:
            return None
        speed = self.link.max_speed_gt_s
        return Link(
            speed_gt_s=None,
            width=None,
            max_speed_gt_s=None if speed is None else float(speed),
            max_width=self.link.max_width,
        )


class GroupRecord(_Record):
    """One of ``groups``."""

    number: _Small
    members: list[_Address]
    has_direct_region: bool = False
    is_noiommu: bool = False

    def as_value(self) -> IommuGroup:
        """Return the group."""
        return IommuGroup(
            number=self.number,
            members=tuple(self.members),
            domain_type=None,
            has_direct_region=self.has_direct_region,
            is_noiommu=self.is_noiommu,
        )


class PlatformRecord(_Record):
    """``platform``."""

    iommu: Name | None = None
    interrupt_remapping: bool | None = None
    unsafe_interrupts: bool = False
    noiommu_mode: bool = False
    iommufd: bool = False
    tees: list[Name] = Field(default_factory=list)

    def as_value(self) -> Platform:
        """Return the platform; an IOMMU of a kind that is not known is one all the same."""
        kinds, tees = {kind.value: kind for kind in IommuKind}, {tee.value: tee for tee in Tee}
        return Platform(
            kernel_release="unknown",
            machine="unknown",
            iommu=None if self.iommu is None else kinds.get(self.iommu, IommuKind.OTHER),
            interrupt_remapping=self.interrupt_remapping,
            unsafe_interrupts=self.unsafe_interrupts,
            noiommu_mode=self.noiommu_mode,
            iommufd=self.iommufd,
            tees=tuple(tees[name] for name in self.tees if name in tees),
        )


class ProblemRecord(_Record):
    """One of ``problems``."""

    subject: Text
    reason: Text


class VfioDriverRecord(_Record):
    """One of ``vfio_drivers``."""

    address: _Address
    module: Name
    driver: Name | None = None
    is_loaded: bool = False

    def as_value(self) -> VfioDriver:
        """Return the driver."""
        return VfioDriver(
            address=self.address,
            module=self.module,
            driver=self.driver,
            is_loaded=self.is_loaded,
        )


class SnapshotRecord(_Record):
    """The whole of it."""

    functions: Annotated[list[FunctionRecord], Field(max_length=FUNCTIONS_MAX)]
    groups: Annotated[list[GroupRecord], Field(max_length=FUNCTIONS_MAX)]
    platform: PlatformRecord
    problems: list[ProblemRecord] = Field(default_factory=list)
    vfio_drivers: list[VfioDriverRecord] = Field(default_factory=list)

    @model_validator(mode="after")
    def _each_once(self) -> "SnapshotRecord":
        for name in _twice(str(function.address) for function in self.functions):
            raise ValueError(f"function {name} is there twice")
        for name in _twice(str(group.number) for group in self.groups):
            raise ValueError(f"group {name} is there twice")
        return self

    def as_value(self) -> Inventory:
        """Return the inventory; a function whose VFIO driver is not in it has vfio-pci."""
        functions = sorted((f.as_value() for f in self.functions), key=lambda f: f.address)
        suited = {driver.address: driver.as_value() for driver in self.vfio_drivers}
        return Inventory(
            functions=tuple(functions),
            groups=tuple(group.as_value() for group in self.groups),
            platform=self.platform.as_value(),
            kata=(),
            files=(),
            holders={},
            operations=(),
            problems=tuple(Problem(subject=p.subject, reason=p.reason) for p in self.problems),
            read_at=_UNDATED,
            vfio_drivers=tuple(
                suited.get(f.address, _plain(f.address)) for f in functions if not f.is_bridge
            ),
        )


def _twice(names: Iterable[str]) -> Iterable[str]:
    met: set[str] = set()
    for name in names:
        if name in met:
            yield name
        met.add(name)


def _plain(address: PciAddress) -> VfioDriver:
    return VfioDriver(address=address, module=VFIO_PCI, driver=VFIO_PCI, is_loaded=True)


def is_snapshot(document: Document) -> bool:
    """Tell whether a document is an inventory of ours, and no Kubernetes object."""
    return "kind" not in document.tree and {"functions", "verdicts"} <= document.tree.keys()


def snapshot_of(document: Document, node: str, blueprint: Blueprint | None) -> Snapshot:
    """Return the node as it was when the inventory was taken.

    Raises:
        InvalidBlueprint: it is not what the command prints.
    """
    found = validate(document, SnapshotRecord)
    return Snapshot(node=node, inventory=found.as_value(), blueprint=blueprint)
