"""IOMMU groups, and whether one may be given to a guest.

A group is the smallest set of functions the IOMMU can tell from the others, so it is
handed out whole. Rules and sources:

- every function that is not exactly a host or PCI-PCI bridge goes to the guest, and VFIO
  binds header type 0 only (vfio_pci_probe; Kata's group walk skips 0x0600 and 0x0604);
- a bridge may stay, unless its driver takes part in DMA ownership: pcieport does not,
  shpchp does (driver_managed_dma; iommu_group_claim_dma_owner answers EPERM);
- a firmware region of type "direct" keeps the kernel from attaching the group to a guest
  (iommu_group/reserved_regions; "1:1 IOMMU mapping, rejecting");
- a physical function with virtual functions stays where it is (EBUSY, or lost VFs);
- no storage controller and no boot display, ever;
- of the rest only what makes up an accelerator: GPUs, NVSwitches, and the audio, USB and
  management functions in a GPU's own slot. Anything else is the node's, unless a pool names
  it; and where a pool names no accelerator of the group, it must name every function.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kata_gpu.model.pci import (
    CLASS_AUDIO,
    CLASS_SERIAL_BUS,
    CLASS_STORAGE,
    PciAddress,
    PciFunction,
    PhysicalFunction,
)
from kata_gpu.model.platform import Platform

_HARMLESS_BRIDGE_DRIVERS: Final = frozenset({None, "pcieport", "pci-stub", "vfio-pci"})
_VENDOR_GONE: Final = 0xFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class IommuGroup:
    """One isolation domain of the IOMMU."""

    number: int
    """Valid until the next boot or hot-plug; never an identity."""

    members: tuple[PciAddress, ...]
    domain_type: str | None
    """DMA, DMA-FQ or identity; None when the kernel does not say."""

    has_direct_region: bool
    """Firmware demands a 1:1 mapping, which no guest can have."""

    is_noiommu: bool
    """Made by VFIO's unsafe no-IOMMU mode: it isolates nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """One reason why a group may not be given to a guest."""

    address: PciAddress | None
    """The function in the way; None when it is the node or the whole group."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.address}: " if self.address else ""
        return f"{where}{self.reason}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a group may be given to a guest, and if not, what is in the way."""

    groups: tuple[int, ...]
    """All that go together; empty without an IOMMU."""

    passengers: tuple[PciAddress, ...]
    """The functions a guest gets: all members but bridges, by address."""

    blockers: tuple[Blocker, ...]

    @property
    def is_viable(self) -> bool:
        """Whether nothing is in the way."""
        return not self.blockers


def judge(
    groups: Sequence[IommuGroup],
    functions: Mapping[PciAddress, PciFunction],
    platform: Platform,
    *,
    named: frozenset[PciAddress] = frozenset(),
) -> Verdict:
    """Decide whether *groups* may be given to a guest together.

    *named* are functions that a pool selects; they may be of any kind but storage and
    the boot display. A member missing from *functions* could not be read, and blocks.
    """
    blockers = _node_blockers(platform)
    for group in groups:
        blockers += _group_blockers(group)
    members = sorted(address for group in groups for address in group.members)
    passengers: list[PciAddress] = []
    known = [functions[address] for address in members if address in functions]
    welcome = named | _company(known, named)
    for address in members:
        function = functions.get(address)
        if function is None:
            blockers.append(
                Blocker(
                    address=address,
                    reason="it cannot be read",
                    remedy="see the inventory's problems",
                )
            )
        elif function.is_bridge:
            blockers.extend(_bridge_blockers(function))
        else:
            passengers.append(address)
            blockers.extend(_passenger_blockers(function, is_welcome=address in welcome))
    if not passengers and not blockers:
        blockers.append(
            Blocker(address=None, reason="it holds only bridges", remedy="select an endpoint")
        )
    return Verdict(
        groups=tuple(group.number for group in groups),
        passengers=tuple(passengers),
        blockers=tuple(blockers),
    )


def judge_without_group(function: PciFunction, platform: Platform) -> Verdict:
    """Return the verdict on a function that no IOMMU group holds: never viable."""
    blockers = list(_node_blockers(platform)) or [
        Blocker(
            address=function.address,
            reason="it is in no IOMMU group",
            remedy="the IOMMU does not cover it: check the firmware's and the kernel's settings",
        )
    ]
    return Verdict(groups=(), passengers=(function.address,), blockers=tuple(blockers))


def _node_blockers(platform: Platform) -> list[Blocker]:
    if platform.iommu is None:
        return [
            Blocker(
                address=None,
                reason="no IOMMU is in use on this node",
                remedy="enable VT-d or AMD-Vi in the firmware and add intel_iommu=on "
                "(Intel) to the kernel's command line",
            )
        ]
    if platform.interrupt_remapping is False and not platform.unsafe_interrupts:
        return [
            Blocker(
                address=None,
                reason="the IOMMU does not remap interrupts, so VFIO will refuse the group",
                remedy="enable x2APIC or interrupt remapping in the firmware",
            )
        ]
    return []


def _group_blockers(group: IommuGroup) -> list[Blocker]:
    blockers = []
    if group.is_noiommu:
        blockers.append(
            Blocker(
                address=None,
                reason=f"group {group.number} comes from VFIO's unsafe no-IOMMU mode",
                remedy="unset vfio.enable_unsafe_noiommu_mode",
            )
        )
    if group.has_direct_region:
        blockers.append(
            Blocker(
                address=None,
                reason=f"firmware demands a 1:1 mapping for group {group.number} (RMRR)",
                remedy="disable the firmware feature that uses this device",
            )
        )
    return blockers


def _bridge_blockers(bridge: PciFunction) -> list[Blocker]:
    if bridge.binding.driver in _HARMLESS_BRIDGE_DRIVERS:
        return []
    return [
        Blocker(
            address=bridge.address,
            reason=f"bridge driver {bridge.binding.driver} claims DMA for the group",
            remedy=f"unload or blacklist {bridge.binding.driver}",
        )
    ]


def _passenger_blockers(function: PciFunction, *, is_welcome: bool) -> list[Blocker]:
    found = _forbidden(function) or _unmovable(function)
    if found is None and not is_welcome:
        found = (
            f"class {function.identity.subclass:04x} is no part of the GPU and would leave the "
            f"host",
            "name it in a pool, or move it to another slot",
        )
    if found is None:
        return []
    reason, remedy = found
    return [Blocker(address=function.address, reason=reason, remedy=remedy)]


def _forbidden(function: PciFunction) -> tuple[str, str] | None:
    """Tell why a function may never leave the host, whatever a pool says."""
    if function.class_code >> 16 == CLASS_STORAGE:
        return (
            "it is a storage controller, which the host may run on",
            "leave it on the host: exclude it, or move it to another slot",
        )
    if function.is_boot_display:
        return (
            "it is the boot display, which holds the console",
            "exclude it, or make another display the boot display in the firmware",
        )
    return None


def _unmovable(function: PciFunction) -> tuple[str, str] | None:
    if function.vendor == _VENDOR_GONE or function.header_type is None:
        return "its config space does not answer", "reset or replace the device"
    if function.header_type != 0:
        return f"header type {function.header_type} cannot be bound to VFIO", "exclude it"
    match function.sriov:
        case PhysicalFunction(active_vfs=active) if active:
            return f"it has {active} virtual functions in use", "remove them (sriov_numvfs)"
        case _:
            return None


def _company(members: Iterable[PciFunction], named: frozenset[PciAddress]) -> frozenset[PciAddress]:
    """Return what goes along unnamed: accelerators, and what their cards carry besides."""
    accelerators = {f.address for f in members if f.is_gpu or f.identity.is_nvswitch}
    if named and not named & accelerators:
        return frozenset()
    slots = {address.slot for address in accelerators}
    return frozenset(
        f.address
        for f in members
        if f.address in accelerators or (f.address.slot in slots and is_on_gpu_cards(f))
    )


def is_on_gpu_cards(function: PciFunction) -> bool:
    """Tell whether it is of a kind that GPU cards carry: audio, USB, UCSI."""
    return (
        function.identity.subclass == CLASS_AUDIO or function.class_code >> 16 == CLASS_SERIAL_BUS
    )


def forbidden_reason(function: PciFunction) -> str | None:
    """Tell why no pool may select this function; None when one may."""
    found = _forbidden(function)
    return found[0] if found else None
