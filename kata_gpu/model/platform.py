"""What the host can do for passthrough: IOMMU, VFIO interfaces, trusted execution."""

from dataclasses import dataclass
from enum import StrEnum


class IommuKind(StrEnum):
    """Who made the IOMMU, from the names under /sys/class/iommu."""

    INTEL = "intel-vt-d"
    AMD = "amd-vi"
    ARM_SMMU = "arm-smmu"
    RISCV = "riscv"
    S390 = "s390"
    OTHER = "other"


class Tee(StrEnum):
    """A trusted execution environment that KVM and the platform agree on."""

    SEV_SNP = "sev-snp"
    TDX = "tdx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Facts of the host that decide whether and how a device can be passed through."""

    kernel_release: str
    machine: str

    iommu: IommuKind | None
    """None when no IOMMU translates: no unit can be passed through."""

    interrupt_remapping: bool | None
    """None when /proc/interrupts cannot tell."""

    unsafe_interrupts: bool
    """vfio_iommu_type1.allow_unsafe_interrupts: set, a guest may inject interrupts."""

    noiommu_mode: bool
    """vfio.enable_unsafe_noiommu_mode: set, VFIO works without any isolation."""

    iommufd: bool
    """/dev/iommu exists; whether a function also has a cdev shows once it is bound."""

    tees: tuple[Tee, ...]
