"""``kata-gpu inventory -o json`` of a node, as functions and verdicts once more.

Only what a device's attributes and a pool's selectors are made of is read; the rest may be as it
is in any version of the command.
"""

from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.pci import (
    Bar,
    Binding,
    Identity,
    Link,
    PciAddress,
    PciFunction,
    SriovRole,
    VirtualFunction,
)
from kata_gpu.plan.simulate.offered import Group, Snapshot
from kata_gpu.settings.manifests.documents import Document
from kata_gpu.settings.manifests.objects import Name, Part, validate

_ADDRESS: Final = r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$"
_Address = Annotated[str, Field(pattern=_ADDRESS)]
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

    max_speed_gt_s: float | int | None = None
    max_width: _Small | None = None


class BarRecord(_Record):
    """One of ``bars``."""

    index: _Small
    size_bytes: Annotated[int, Field(ge=0, lt=1 << 62)]
    is_prefetchable: bool = False
    is_64_bit: bool = False


class SriovRecord(_Record):
    """``sriov``; a virtual function names its parent."""

    parent: _Address | None = None


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
    bars: list[BarRecord] = Field(default_factory=list)
    link: LinkRecord | None = None
    reset_methods: list[Name] = Field(default_factory=list)
    sriov: SriovRecord | None = None
    is_boot_display: bool = False
    product_name: Name | None = None
    memory_bytes: Annotated[int, Field(gt=0, lt=1 << 62)] | None = None

    def as_value(self) -> PciFunction:
        """Return the function; what does not matter here is empty."""
        return PciFunction(
            identity=Identity(
                address=PciAddress.parse(self.address),
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
            bridges=tuple(PciAddress.parse(bridge) for bridge in self.bridges),
            header_type=None,
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
            sriov=self._sriov(),
            power_state=None,
            is_boot_display=self.is_boot_display,
            is_on_vfio=False,
            vfio_cdev=None,
            slot=None,
            serial=None,
            vendor_name=None,
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

    def _sriov(self) -> SriovRole | None:
        if self.sriov is None or self.sriov.parent is None:
            return None
        return VirtualFunction(parent=PciAddress.parse(self.sriov.parent))


class VerdictRecord(_Record):
    """One of ``verdicts``."""

    groups: list[_Small] = Field(default_factory=list)
    passengers: list[_Address]
    blockers: list[object] = Field(default_factory=list)


class SnapshotRecord(_Record):
    """The whole of it."""

    functions: list[FunctionRecord]
    verdicts: list[VerdictRecord]


def is_snapshot(document: Document) -> bool:
    """Tell whether a document is an inventory of ours, and no Kubernetes object."""
    return "kind" not in document.tree and {"functions", "verdicts"} <= document.tree.keys()


def snapshot_of(document: Document, node: str, blueprint: Blueprint | None) -> Snapshot:
    """Return the groups of the node that may be given away."""
    found = validate(document, SnapshotRecord)
    return Snapshot(node=node, groups=tuple(_groups(found)), blueprint=blueprint)


def _groups(found: SnapshotRecord) -> Iterator[Group]:
    functions = {record.address: record.as_value() for record in found.functions}
    for verdict in found.verdicts:
        members = [functions[address] for address in verdict.passengers if address in functions]
        whole = len(members) == len(verdict.passengers)
        if members and whole and not verdict.blockers:
            yield Group(functions=tuple(members))
