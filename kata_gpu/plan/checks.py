"""What a Kata runtime cannot take, or the host should not allow, though the kernel gives it.

Source: Kata 4.1.0: vfio_device/core.rs gives all functions of a legacy group one root port;
qemu.go ends at 16 root ports.
"""

from collections.abc import Iterable

from kata_gpu.model.blueprint import Blueprint, KataHandler, Runtime
from kata_gpu.model.pci import CLASS_AUDIO, PciFunction
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.platform import Platform
from kata_gpu.model.unit import Unit


def unit(
    subject: str, functions: Iterable[PciFunction], handlers: Iterable[KataHandler]
) -> Iterable[Finding]:
    """Warn of each handler whose VMs cannot have a unit of these functions."""
    guests = list(functions)
    heard = [f for f in guests if f.identity.subclass != CLASS_AUDIO]
    has_cdevs = all(function.vfio_cdev for function in guests)
    for handler in handlers:
        from kata_gpu.plan.kata.dialect import DIALECTS  # noqa: PLC0415 - for who has handlers

        limit = DIALECTS[handler.runtime].root_ports_max
        if handler.runtime is Runtime.RUST and len(heard) > 1 and not has_cdevs:
            reason = (
                f"it has {len(heard)} functions beside audio in one IOMMU group, and handler "
                f"{handler.name} (rust) takes one"
            )
        elif len(guests) > limit:
            reason = _too_many(len(guests), handler, limit)
        else:
            continue
        yield Finding(
            severity=Severity.WARNING,
            subject=subject,
            reason=reason,
            remedy="pods that ask for it need another handler",
        )


def bundles(blueprint: Blueprint, units: Iterable[Unit]) -> Iterable[Finding]:
    """Warn of each handler whose VMs cannot have all units of a pool together."""
    found = list(units)
    for pool in blueprint.pools if blueprint.handlers else ():
        if pool.bundle is None:
            continue
        from kata_gpu.plan.kata.dialect import DIALECTS  # noqa: PLC0415 - for who has handlers

        count = sum(len(unit.functions) for unit in found if unit.pool == pool.name)
        for handler in blueprint.handlers:
            limit = DIALECTS[handler.runtime].root_ports_max
            if count > limit:
                yield Finding(
                    severity=Severity.WARNING,
                    subject=f"bundle {pool.bundle}",
                    reason=_too_many(count, handler, limit),
                    remedy="pods that ask for it need another handler",
                )


def _too_many(count: int, handler: KataHandler, limit: int) -> str:
    return (
        f"it has {count} functions, and a VM of handler {handler.name} ({handler.runtime}) has at "
        f"most {limit} root ports"
    )


def platform(found: Platform) -> Iterable[Finding]:
    """Warn of what the host allows and should not, once it passes anything through."""
    if found.unsafe_interrupts:
        yield Finding(
            severity=Severity.WARNING,
            subject="node",
            reason="vfio_iommu_type1.allow_unsafe_interrupts is set, so a guest may send the host "
            "interrupts of its own making",
            remedy="unset it; a node that needs it cannot isolate its guests",
        )
