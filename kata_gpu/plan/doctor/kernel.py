"""The kernel: IOMMU, interrupts, taint, pages, trusted environments.

Sources: Linux drivers/vfio/vfio_iommu_type1.c (interrupt remapping),
Documentation/admin-guide/tainted-kernels.rst, drivers/iommu/amd/init.c (SEV-SNP).
"""

from collections.abc import Iterable
from typing import Final

from kata_gpu.model.doctor import Answer, Grade
from kata_gpu.model.node_facts import NodeFacts, Unknown
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning

_X86: Final = frozenset({"x86_64", "i686"})
_TAINTS: Final = {
    4: (Grade.WARNING, "M", "a machine check happened: hardware may be failing"),
    5: (Grade.WARNING, "B", "the kernel met a bad page: memory may be failing"),
    7: (Grade.ERROR, "D", "the kernel has died in part (oops): an unbind may hang for ever"),
    9: (Grade.WARNING, "W", "the kernel has warned of a state that must not be"),
    14: (Grade.WARNING, "L", "a processor was locked up for many seconds"),
}


def iommu(facts: NodeFacts) -> Iterable[Answer]:
    """An IOMMU translates: it is listed, and it made groups."""
    platform, groups = facts.kernel.platform, facts.kernel.iommu_groups
    if isinstance(platform, Unknown):
        yield unknown(platform)
    elif isinstance(groups, Unknown):
        yield unknown(groups)
    elif platform.iommu is None:
        yield error(
            f"no IOMMU is in use ({groups} groups)",
            "without one a device could read and write all of the host's memory, so VFIO "
            "refuses it",
            "enable VT-d, AMD-Vi or SMMU in the firmware, boot with intel_iommu=on on Intel, and "
            "see kernel-command-line",
        )
    else:
        yield ok(f"{platform.iommu} with {groups} groups")


def interrupt_remapping(facts: NodeFacts) -> Iterable[Answer]:
    """Interrupts of a device reach only who they are meant for."""
    platform = facts.kernel.platform
    if isinstance(platform, Unknown):
        yield unknown(platform)
    elif platform.interrupt_remapping is None and platform.machine not in _X86:
        yield info(f"part of the interrupt controller on {platform.machine}")
    elif platform.interrupt_remapping is None:
        yield unknown(Unknown(reason="/proc/interrupts does not tell"))
    elif platform.interrupt_remapping:
        yield ok("on")
    else:
        yield error(
            "off: no interrupt in /proc/interrupts is remapped",
            "a guest could raise any interrupt of the host, so VFIO refuses its container (EPERM)",
            "enable interrupt remapping (often with x2APIC) in the firmware, and remove "
            "intremap=off and nointremap from the kernel command line",
        )


def unsafe_interrupts(facts: NodeFacts) -> Iterable[Answer]:
    """VFIO insists on interrupt remapping."""
    value = facts.kernel.unsafe_interrupts
    if isinstance(value, Unknown):
        yield unknown(value)
    elif value:
        platform = facts.kernel.platform
        is_moot = not isinstance(platform, Unknown) and platform.interrupt_remapping
        yield (warning if is_moot else error)(
            "vfio_iommu_type1.allow_unsafe_interrupts is Y",
            "where interrupts are not remapped, a guest can raise any interrupt of the host",
            "remove it from the kernel command line and from modprobe.d, and reboot",
        )
    else:
        yield ok("refused" if value is not None else "vfio_iommu_type1 is not loaded yet")


def noiommu_mode(facts: NodeFacts) -> Iterable[Answer]:
    """VFIO does not work without an IOMMU."""
    value = facts.kernel.noiommu_mode
    if isinstance(value, Unknown):
        yield unknown(value)
    elif value:
        yield error(
            "vfio.enable_unsafe_noiommu_mode is Y",
            "a device without an IOMMU can then be handed out, and writes wherever it likes",
            "remove it from the kernel command line and from modprobe.d, and reboot",
        )
    else:
        yield ok("off" if value is not None else "vfio is not loaded, or built without it")


def taint(facts: NodeFacts) -> Iterable[Answer]:
    """Nothing happened to the kernel since it started."""
    value = facts.kernel.taint
    if isinstance(value, Unknown):
        yield unknown(value)
        return
    serious = [row for bit, row in _TAINTS.items() if value >> bit & 1]
    for grade, letter, why in serious:
        yield Answer(
            grade=grade,
            found=f"tainted: {letter} of {value}",
            why=why,
            remedy="read dmesg for the cause, drain the node and reboot it",
        )
    if not serious and value:
        yield info(f"tainted ({value}), by nothing that matters here")
    elif not serious:
        yield ok("not tainted")


def stuck_operations(facts: NodeFacts) -> Iterable[Answer]:
    """No unbind, bind or reset of the agent hangs in the kernel."""
    operations = facts.kernel.operations
    if isinstance(operations, Unknown):
        yield unknown(operations)
        return
    for operation in operations:
        yield Answer(
            grade=Grade.ERROR,
            found=str(operation),
            why="its unit is stuck, and a reboot will hang too",
            remedy="end what uses the device; if nothing does, only a power cycle helps",
        )
    if not operations:
        yield ok("none")


def hugepages(facts: NodeFacts) -> Iterable[Answer]:
    """How many pages are set aside for guests."""
    pages = facts.kernel.hugepages
    if isinstance(pages, Unknown):
        yield unknown(pages)
        return
    reserved = [f"{p.free} of {p.total} x {p.size_kib} KiB free" for p in pages if p.total]
    yield info(", ".join(reserved) or "none reserved; guests that ask for them will not start")


def confidential_computing(facts: NodeFacts) -> Iterable[Answer]:
    """What KVM says of trusted environments; it proves nothing to a guest."""
    parameters = facts.kernel.tee_parameters
    if isinstance(parameters, Unknown):
        yield unknown(parameters)
        return
    yield info(
        ", ".join(f"{name} {value or 'not loaded'}" for name, value in parameters)
        + "; the host's word, no attestation"
    )
