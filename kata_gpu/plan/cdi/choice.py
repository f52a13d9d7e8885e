"""Which device nodes give a unit to a VM: decided once for a node, not for each unit.

A confidential VM takes an iommufd character device and no legacy group; runtime-rs opens
/dev/iommu for either. A node that gave one unit by its group and the next by its devices could
not say which handler its resource is for.

Source: Kata 4.1.0: RT/virtcontainers/qemu.go:1421 (ConfidentialGuest needs IOMMUFD),
RS/crates/hypervisor/src/qemu/cmdline_generator.rs:3520.
"""

from collections.abc import Iterable
from enum import StrEnum

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.pci import PciFunction
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.platform import Platform
from kata_gpu.model.unit import Unit


class Access(StrEnum):
    """How a VM opens what it is given."""

    GROUP = "group"
    """/dev/vfio/GROUP, with the container /dev/vfio/vfio."""

    CDEV = "cdev"
    """/dev/vfio/devices/vfioN for each function, with /dev/iommu."""


def choose(*, iommufd: bool, any_cdev: bool, all_cdevs: bool, is_confidential: bool) -> Access:
    """Return how VMs open the units of a node.

    *iommufd*: the host has /dev/iommu; *any_cdev*, *all_cdevs*: functions that are offered have
    a character device; *is_confidential*: a handler for confidential VMs may ask for them.
    """
    if iommufd and (all_cdevs or (any_cdev and is_confidential)):
        return Access.CDEV
    return Access.GROUP


def for_node(
    platform: Platform, functions: Iterable[PciFunction], handlers: Iterable[KataHandler]
) -> Access:
    """Return the same, of a node that offers *functions* to *handlers*."""
    cdevs = [function.vfio_cdev is not None for function in functions]
    return choose(
        iommufd=platform.iommufd,
        any_cdev=any(cdevs),
        all_cdevs=bool(cdevs) and all(cdevs),
        is_confidential=any(handler.is_confidential for handler in handlers),
    )


def nodes(unit: Unit, functions: Iterable[PciFunction], access: Access) -> tuple[str, ...]:
    """Return the device nodes that give *unit* to a VM; none when *access* has no way to it."""
    if access is Access.GROUP:
        return tuple(f"/dev/vfio/{group}" for group in unit.groups)
    cdevs = [function.vfio_cdev for function in functions]
    return tuple(f"/dev/vfio/devices/{cdev}" for cdev in cdevs) if all(cdevs) else ()


def findings(
    access: Access, platform: Platform, handlers: Iterable[KataHandler]
) -> Iterable[Finding]:
    """Warn of each handler whose VMs can have nothing of a node that gives *access*.

    Less confidential ones on a node without iommufd, which get no drop-in for that reason.
    """
    for handler in handlers:
        match handler.is_confidential, platform.iommufd:
            case True, True if access is Access.GROUP:
                yield _cannot(
                    handler,
                    "its VMs are confidential and take iommufd devices only, and the functions "
                    "of this node have VFIO groups only",
                )
            case False, False if handler.runtime is Runtime.RUST:
                yield _cannot(
                    handler, "runtime-rs opens /dev/iommu for any device, and it is not here"
                )


def _cannot(handler: KataHandler, reason: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        subject=f"handler {handler.name}",
        reason=reason,
        remedy="modprobe iommufd, on a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV",
    )
