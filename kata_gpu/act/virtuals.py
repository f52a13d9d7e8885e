"""Make the virtual functions of a physical one, or remove those that we made.

Two attributes of the physical function decide (paths below ``bus/pci/devices``):

- ``<address>/sriov_drivers_autoprobe`` 0 keeps host drivers from virtual functions as they
  appear; an override lets one be bound all the same;
- ``<address>/sriov_numvfs`` makes that many, or none. It goes from none to some and back, is
  refused with EBUSY in between, and is never read: its show waits for a store that hangs.

How many there are is told by the links to them.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci; sriov_numvfs_store in drivers/pci/iov.c;
pci_device_can_probe in drivers/pci/pci-driver.c.
"""

import errno
import logging
from typing import Final

from kata_gpu.act import holders
from kata_gpu.act.journal import Journal
from kata_gpu.errors import (
    HeldError,
    HostError,
    KataGpuError,
    RollbackError,
    StuckError,
    VerificationError,
)
from kata_gpu.host import Host, sriov
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.ledger import MadeVirtuals
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.plan import MakeVirtuals, RemoveVirtuals, virtual_functions

log = logging.getLogger(__name__)

_NONE: Final = "0"


def make(host: Host, step: MakeVirtuals, journal: Journal) -> None:
    """Announce, make, verify.

    Raises:
        HostError, VerificationError: it has none, as before, and the ledger says so.
        RollbackError: what was made could not be removed. StuckError: a store does not return.
            The ledger still says what was begun.
    """
    sysfs, parent = host.sysfs, step.parent
    there = len(sriov.virtuals(sysfs, parent))
    if there:
        raise HostError(
            f"cannot make {virtual_functions(step.count)} of {parent}: meanwhile somebody else "
            f"made {there}"
        )
    before = journal.ledger.made(parent)
    announced = MadeVirtuals(parent=parent, count=step.count, had_autoprobe=step.had_autoprobe)
    journal.update(lambda ledger: ledger.with_virtuals(announced))
    try:
        _make(sysfs, step)
    except (HostError, VerificationError) as failure:
        _undo(sysfs, step, failure)
        journal.update(
            lambda ledger: (
                ledger.with_virtuals(before) if before else ledger.without_virtuals(parent)
            )
        )
        raise
    log.info("made %s of %s", virtual_functions(step.count), parent)


def remove(host: Host, step: RemoveVirtuals, journal: Journal) -> None:
    """Remove what we made, verify, and let them probe again if they did.

    A physical function that is gone took them along.

    Raises:
        HeldError: somebody has one; nothing was changed.
        HostError, VerificationError, StuckError: the ledger still says that they are ours, so
            that it is tried again.
    """
    sysfs, parent = host.sysfs, step.parent
    made = journal.ledger.made(parent)
    if made is None:
        raise HostError(f"cannot remove the virtual functions of {parent}: they are not ours")
    there = sriov.virtuals(sysfs, parent)
    if there:
        _refuse_if_not_free(host, made, there)
        _write(sysfs, parent, "sriov_numvfs", _NONE)
        _require(sysfs, parent, 0)
    if sysfs.exists(f"bus/pci/devices/{parent}"):
        _set_autoprobe(sysfs, parent, value=made.had_autoprobe)
    journal.update(lambda ledger: ledger.without_virtuals(parent))
    log.info("removed %s of %s", virtual_functions(len(there)), parent)


def _make(sysfs: Sysfs, step: MakeVirtuals) -> None:
    _set_autoprobe(sysfs, step.parent, value=False)
    try:
        _write(sysfs, step.parent, "sriov_numvfs", str(step.count))
    except HostError as error:
        if _errno(error) == errno.ENOENT:
            raise HostError(
                f"cannot make {virtual_functions(step.count)} of {step.parent}: it has no driver, "
                f"or one that makes none; bind one that does"
            ) from error
        raise
    _require(sysfs, step.parent, step.count)


def _undo(sysfs: Sysfs, step: MakeVirtuals, failure: KataGpuError) -> None:
    """Leave it without any, as it was, or raise RollbackError."""
    try:
        if _errno(failure) != errno.EBUSY and sriov.virtuals(sysfs, step.parent):
            _write(sysfs, step.parent, "sriov_numvfs", _NONE)
            _require(sysfs, step.parent, 0)
        if sysfs.exists(f"bus/pci/devices/{step.parent}"):
            _set_autoprobe(sysfs, step.parent, value=step.had_autoprobe)
    except StuckError:
        raise
    except KataGpuError as error:
        message = (
            f"cannot take back {virtual_functions(step.count)} of {step.parent} ({error}) after "
            f"a failure: {failure}"
        )
        raise RollbackError(message, failure) from error


def _refuse_if_not_free(host: Host, made: MadeVirtuals, there: tuple[PciAddress, ...]) -> None:
    what = f"cannot remove the virtual functions of {made.parent}"
    if len(there) != made.count:
        raise HostError(
            f"{what}: there are {len(there)}, and we made {made.count}; somebody else changed that"
        )
    for virtual in there:
        driver = host.sysfs.link(f"bus/pci/devices/{virtual}/driver")
        if driver is not None:
            raise HeldError(f"{what}: {virtual} is on {driver}")
    holders.refuse_if_held(host, there)


def _require(sysfs: Sysfs, parent: PciAddress, count: int) -> None:
    there = len(sriov.virtuals(sysfs, parent))
    if there != count:
        raise VerificationError(
            f"cannot bring {parent} to {virtual_functions(count)}: the write was accepted, but it "
            f"has {there}"
        )


def _set_autoprobe(sysfs: Sysfs, parent: PciAddress, *, value: bool) -> None:
    path = f"bus/pci/devices/{parent}/sriov_drivers_autoprobe"
    wanted = str(int(value))
    if sysfs.read(path) == wanted:
        return
    _write(sysfs, parent, "sriov_drivers_autoprobe", wanted)
    reached = sysfs.read(path)
    if reached != wanted:
        raise VerificationError(
            f"cannot set sriov_drivers_autoprobe of {parent} to {wanted}: it reads {reached!r:.20}"
        )


def _write(sysfs: Sysfs, parent: PciAddress, attribute: str, value: str) -> None:
    sysfs.write(f"bus/pci/devices/{parent}/{attribute}", value)


def _errno(failure: BaseException | None) -> int | None:
    """Return the errno of the store at the bottom of a failure; None when it gave none."""
    while failure is not None and not isinstance(failure, OSError):
        failure = failure.__cause__
    return failure.errno if failure is not None else None
