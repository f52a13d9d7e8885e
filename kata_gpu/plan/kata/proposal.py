"""Whether our drop-in of a handler may be written, and what an admin should know of its like.

What always holds:

- nothing is written with which the runtime would start no pod;
- where it starts none whatever we write, because of the base file or of somebody else's
  drop-in, ours stays as it is: it is not the cause, and would be missed when that is mended;
- where it is ours that the others do not go with any more, ours is removed, and comes back
  when they change: the folder is watched;
- the files of others are never touched, only named; `plan.quarantine` moves what the blueprint
  says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.model.blueprint import KataHandler
from kata_gpu.model.inventory import DROP_IN_NAME
from kata_gpu.model.kata import (
    ABSENT_FILE,
    Configuration,
    Effective,
    Fault,
    Key,
    Tee,
)
from kata_gpu.model.kubernetes import PodResources
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.unit import UnitState
from kata_gpu.plan.kata import drop_in, effective, handlers
from kata_gpu.plan.kata.dialect import DIALECTS
from kata_gpu.plan.kata.parsing import thawed

_KUBELET: Final = PodResources()
_MEND = "mend that file, or have it mended by the program it belongs to"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Our drop-in as it should be; with no content nothing is written."""

    content: str | None
    stays: bool
    """Whether a file of ours that is there stays as it is; only without content."""

    findings: tuple[Finding, ...]


def propose(
    handler: KataHandler,
    configuration: Configuration,
    functions: int,
    *,
    iommufd: bool,
    asked: PodResources = _KUBELET,
) -> Proposal:
    """Return what becomes of the drop-in of *handler* beside a base file.

    *functions* is how many the node passes through; *iommufd* whether it has what a
    confidential guest needs; *asked* whom Kata is to ask for a pod's devices.
    """
    dialect = DIALECTS[handler.runtime]
    others = effective.merge(configuration.without(DROP_IN_NAME), dialect)
    before = effective.merge(configuration.without(DROP_IN_NAME).before(DROP_IN_NAME), dialect)
    foreign = tuple(_of_others(handler, others))
    fatal = _certain(others)
    if fatal:
        refused = tuple(_refused(handler, fault, _MEND) for fault in fatal)
        return Proposal(content=None, stays=True, findings=(*refused, *foreign))
    forbidden = _forbidden(handler, others, iommufd=iommufd)
    if forbidden is not None:
        return Proposal(content=None, stays=False, findings=(forbidden, *foreign))
    wanted = drop_in.values(handler, functions, before, asked)
    content = drop_in.render(handler, functions, before, asked)
    merged = effective.merge(configuration.with_drop_in(DROP_IN_NAME, content), dialect)
    fatal = _certain(merged)
    if fatal:
        remedy = "change the blueprint's handler, or what it does not go with"
        refused = tuple(_refused(handler, fault, remedy) for fault in fatal)
        return Proposal(content=None, stays=False, findings=(*refused, *foreign))
    ours = f"{configuration.directory}/{DROP_IN_NAME}"
    findings = (
        *foreign,
        *_unheard(handler, merged),
        *_overridden(handler, wanted, merged, ours),
    )
    return Proposal(content=content, stays=False, findings=findings)


def _certain(found: Effective) -> tuple[Fault, ...]:
    """Return the faults with which no pod starts, less what may be only absent to us."""
    return tuple(fault for fault in found.fatal if fault.rule != ABSENT_FILE)


def _unheard(handler: KataHandler, merged: Effective) -> Iterable[Finding]:
    """Tell that the runtime goes by another hypervisor than the blueprint says."""
    if merged.hypervisor != handler.hypervisor:
        yield _warning(
            handler,
            f"the runtime goes by hypervisor {merged.hypervisor}, and the drop-in is for "
            f"{handler.hypervisor}",
            "correct the handler's hypervisor, or its base file",
        )


def _forbidden(handler: KataHandler, others: Effective, *, iommufd: bool) -> Finding | None:
    """Object to what a confidential guest cannot have."""
    tee = handlers.tee(others, handler.name)
    wanted = handler.tee
    if tee is Tee.NONE and wanted == Tee.NONE:
        return None
    guest = f"its guests are confidential ({tee if tee is not Tee.NONE else wanted})"
    if handler.kernel_params:
        return _refusal(
            handler,
            f"{guest}, and kernel_params would change their measurement",
            "remove kernel_params from the handler in the blueprint",
        )
    if not iommufd:
        return _refusal(
            handler,
            f"{guest}, which needs iommufd, and this node has VFIO groups only",
            "boot a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, then modprobe iommufd",
        )
    return None


def _of_others(handler: KataHandler, others: Effective) -> Iterable[Finding]:
    """Tell what the runtime ignores or changes, what is a stray, and what is named and absent."""
    for fault in others.faults:
        if fault.rule == ABSENT_FILE:
            yield _warning(handler, str(fault), "install it, or correct the file that names it")
        elif not fault.is_fatal and "/config.d/" in fault.file:
            yield _warning(handler, str(fault), _MEND)


def _overridden(
    handler: KataHandler, wanted: Mapping[Key, Any], merged: Effective, ours: str
) -> Iterable[Finding]:
    """Tell of each value of ours that a later file replaces by another."""
    for key, value in wanted.items():
        found = merged.settings.get(key)
        if found is not None and found.file != ours and found.value != value:
            yield _warning(
                handler,
                f"{found.file} sets {'.'.join(key)} to {thawed(found.value)!r} after our "
                f"{thawed(value)!r}",
                "remove it there, or ask for that value in the blueprint",
            )


def _refused(handler: KataHandler, fault: Fault, remedy: str) -> Finding:
    return _refusal(
        handler, f"the {handler.runtime} runtime starts no pod with it: {fault}", remedy
    )


def _refusal(handler: KataHandler, reason: str, remedy: str) -> Finding:
    return Finding(
        severity=Severity.REFUSED,
        subject=f"handler {handler.name}",
        reason=reason,
        remedy=remedy,
        state=UnitState.REFUSED,
    )


def _warning(handler: KataHandler, reason: str, remedy: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        subject=f"handler {handler.name}",
        reason=reason,
        remedy=remedy,
    )
