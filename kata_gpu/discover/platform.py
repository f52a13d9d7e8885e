"""Read what the host can do for passthrough.

Boot messages are no proof (they say "enabled" of an IOMMU that was switched off later), so
only what the kernel shows of its present state is used.
"""

import os
from collections.abc import Mapping
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files
from kata_gpu.host.sysfs import is_character_device
from kata_gpu.model.inventory import Problem
from kata_gpu.model.platform import IommuKind, Platform, Tee

_IOMMU_KINDS: Final[Mapping[str, IommuKind]] = {
    "dmar": IommuKind.INTEL,
    "ivhd": IommuKind.AMD,
    "smmu": IommuKind.ARM_SMMU,
    "arm-smmu": IommuKind.ARM_SMMU,
    "riscv": IommuKind.RISCV,
    "s390": IommuKind.S390,
}
_TEES: Final[Mapping[str, Tee]] = {
    "module/kvm_amd/parameters/sev_snp": Tee.SEV_SNP,
    "module/kvm_intel/parameters/tdx": Tee.TDX,
}
_INTERRUPTS_MAX_BYTES: Final = 64 << 20


def read(host: Host) -> tuple[Platform, tuple[Problem, ...]]:
    """Return the platform's facts, and what could not be told."""
    problems: list[Problem] = []
    release = _first_line(host, "/proc/sys/kernel/osrelease")
    if release is None:
        problems.append(Problem(subject="node", reason="cannot read the kernel's release"))
    remapping = _interrupt_remapping(host)
    return Platform(
        kernel_release=release or "unknown",
        machine=os.uname().machine,
        iommu=_iommu(host),
        interrupt_remapping=remapping,
        unsafe_interrupts=_is_set(
            host, "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        ),
        noiommu_mode=_is_set(host, "module/vfio/parameters/enable_unsafe_noiommu_mode"),
        iommufd=is_character_device(host.path("/dev/iommu")),
        tees=tuple(tee for parameter, tee in _TEES.items() if _is_set(host, parameter)),
    ), tuple(problems)


def _iommu(host: Host) -> IommuKind | None:
    """Name the IOMMU if one is in use: it is listed, and it made groups."""
    units = host.sysfs.names("class/iommu")
    if not units or not host.sysfs.names("kernel/iommu_groups"):
        return None
    for prefix, kind in _IOMMU_KINDS.items():
        if units[0].startswith(prefix):
            return kind
    return IommuKind.OTHER


def _interrupt_remapping(host: Host) -> bool | None:
    """Tell by the interrupt chips in use, whose names begin with ``IR-`` when remapped."""
    try:
        text = files.read(host.path("/proc/interrupts"), max_bytes=_INTERRUPTS_MAX_BYTES)
    except HostError:
        return None
    if text is None or not ("PCI-MSI" in text or "IO-APIC" in text):
        return None  # not an x86 host: the interrupt controller does it, or does not say
    return "IR-IO-APIC" in text or "IR-PCI-MSI" in text


def _is_set(host: Host, parameter: str) -> bool:
    try:
        return host.sysfs.exists(parameter) and host.sysfs.read(parameter)[:1] in {"Y", "1"}
    except HostError:
        return False


def _first_line(host: Host, path: str) -> str | None:
    try:
        text = files.read(host.path(path))
    except HostError:
        return None
    return text.split("\n", 1)[0] if text else None
