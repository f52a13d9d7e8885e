"""Keep functions awake while their memory is looked at.

A function that VFIO holds and nobody uses sleeps, and its memory reads as ones then.
``devices/<address>/power/control`` (below ``bus/pci``) decides: ``on`` wakes it, and the store
returns when it is awake; with ``auto`` it may sleep again. One that somebody keeps awake for
good has ``on`` already, and is not touched.

The ledger says beforehand what is woken: an agent that ends in between leaves it awake, which
does no harm, and the next look lets it sleep again.

Source: Linux Documentation/ABI/testing/sysfs-devices-power; control_store in
drivers/base/power/sysfs.c; vfio_pci_core_register_device in drivers/vfio/pci/vfio_pci_core.c.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, KataGpuError, StuckError
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import PciAddress

log = logging.getLogger(__name__)

AWAKE: Final = "D0"

_CONTROL: Final = "power/control"
_KEEP_AWAKE: Final = "on"
_LET_SLEEP: Final = "auto"
_TIMEOUT_S: Final = 1.0
_STEP_S: Final = 0.02


def power_state(sysfs: Sysfs, address: PciAddress) -> str:
    """Return what the kernel says of it, as ``D3hot``; ``unknown`` where it says nothing.

    Raises:
        HostError: the function is gone, or the attribute answers with an error.
    """
    shown = sysfs.attributes(f"bus/pci/devices/{address}", ("power_state",))
    return shown.get("power_state", "unknown")


@contextmanager
def awake(
    sysfs: Sysfs, journal: Journal, unit: str, addresses: Iterable[PciAddress]
) -> Iterator[None]:
    """Keep functions of a unit that is ours awake meanwhile, and let them sleep again then.

    One that cannot be woken is found asleep inside.

    Raises:
        HostError: the ledger cannot be written.
        StuckError: a store does not return. What is woken stays so, and the ledger knows.
    """
    entry = journal.ledger.entry(unit)
    left_awake = () if entry is None else entry.woken
    sleepers = tuple(a for a in addresses if a in left_awake or _may_sleep(sysfs, a))
    journal.amend(unit, woken=tuple(sorted({*sleepers, *left_awake})))
    for address in sleepers:
        _wake(sysfs, address)
    try:
        yield
    except StuckError:  # what is stored now would wait for it
        raise
    except KataGpuError:
        _end(sysfs, journal, unit, sleepers)
        raise
    _end(sysfs, journal, unit, sleepers)


def let_sleep(sysfs: Sysfs, addresses: Iterable[PciAddress]) -> None:
    """Let functions sleep that are kept awake for a look; what VFIO has no more is left alone.

    One that cannot is left awake, which costs power and nothing else.

    Raises:
        StuckError: a store does not return.
    """
    for address in addresses:
        device = f"bus/pci/devices/{address}"
        try:
            if sysfs.names(f"{device}/vfio-dev"):  # else its driver decides
                sysfs.write(f"{device}/{_CONTROL}", _LET_SLEEP)
        except HostError as error:
            log.warning("cannot let %s sleep again: %s", address, error)


def _may_sleep(sysfs: Sysfs, address: PciAddress) -> bool:
    try:
        shown = sysfs.attributes(f"bus/pci/devices/{address}", (_CONTROL,))
    except HostError:
        return False  # whoever looks at it says so
    return shown.get(_CONTROL) == _LET_SLEEP


def _wake(sysfs: Sysfs, address: PciAddress) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        sysfs.write(f"bus/pci/devices/{address}/{_CONTROL}", _KEEP_AWAKE)
        while power_state(sysfs, address) != AWAKE and time.monotonic() < deadline:
            time.sleep(_STEP_S)
    except HostError as error:
        log.warning("cannot wake %s: %s", address, error)


def _end(sysfs: Sysfs, journal: Journal, unit: str, addresses: Iterable[PciAddress]) -> None:
    done = set(addresses)
    let_sleep(sysfs, sorted(done))
    entry = journal.ledger.entry(unit)
    if entry is not None:
        journal.amend(unit, woken=tuple(a for a in entry.woken if a not in done))
