"""Move the functions of a unit to other drivers together, or leave them where they were.

Three attributes decide who holds a function (paths below ``bus/pci``):

- ``devices/<address>/driver_override`` names the only driver that may claim it;
- ``drivers/<driver>/unbind`` takes it away, and returns when the driver lets go;
- ``drivers/<driver>/bind`` gives it to that driver, or fails with an errno.

All overrides are written first: a host driver that loads in the middle then finds no
function it may take. One that somebody set for another driver than the target's follows when
that driver has the function: before, it would keep it off. ``bind`` rather than
``drivers_probe``, which succeeds when no driver answers. Nothing is done because a write
returned: the bindings are read back.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci; bind_store and drivers_probe_store in
drivers/base/bus.c; driver_override_store in drivers/base/dd.c.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from kata_gpu.errors import HostError, KataGpuError, RollbackError, StuckError, VerificationError
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import OVERRIDE_UNSET, Binding, PciAddress

log = logging.getLogger(__name__)

Targets = Mapping[PciAddress, Binding]

_OVERRIDE_CLEARED: Final = "\n"  # an empty write never reaches the store


def read(sysfs: Sysfs, address: PciAddress) -> Binding:
    """Return the binding the kernel reports now; raise HostError without the function."""
    return read_all(sysfs, [address])[address]


def read_all(sysfs: Sysfs, addresses: Collection[PciAddress]) -> dict[PciAddress, Binding]:
    """Return the bindings the kernel reports now; raise HostError without one of the functions."""
    paths = {address: f"bus/pci/devices/{address}/driver_override" for address in addresses}
    overrides = sysfs.locked(list(paths.values()))  # all in one child, which is most of the cost
    found = {}
    for address, path in paths.items():
        override = overrides[path]
        if isinstance(override, KataGpuError):
            raise override
        found[address] = Binding(
            driver=sysfs.link(f"bus/pci/devices/{address}/driver"),
            override=None if override in OVERRIDE_UNSET else override,
        )
    return found


def rebind(sysfs: Sysfs, targets: Targets, last_check: Callable[[], None] = lambda: None) -> None:
    """Give every function its target binding, in the order of *targets*, or none of them.

    A function that has it already is not written to. *last_check* is asked when the overrides
    keep new drivers away and no driver has let go yet; what it raises undoes them.

    Raises:
        HostError: the kernel refused a step, or a function vanished; what is still there has
            its old binding.
        VerificationError: no step was refused, yet a binding read back is not the target;
            the old bindings are in place.
        RollbackError: the old bindings could not be restored.
        StuckError: a step does not return; nothing else was touched since.
    """
    before = read_all(sysfs, targets)
    for address, target in targets.items():
        if target.driver is not None and not sysfs.exists(f"bus/pci/drivers/{target.driver}"):
            raise HostError(
                f"cannot bind {address} to {target.driver}: no such driver is loaded; "
                f"load its module (modprobe) and try again"
            )
    started = time.monotonic()
    try:
        _move(sysfs, before, targets, last_check)
    except StuckError:  # whatever is written now would wait for it
        raise
    except KataGpuError as failure:
        gone = [a for a in targets if not sysfs.exists(f"bus/pci/devices/{a}")]
        _roll_back(sysfs, {a: b for a, b in before.items() if a not in gone}, failure)
        if gone:
            where = ", ".join(map(str, gone))
            raise HostError(
                f"cannot bind {where}: it vanished from the bus meanwhile ({failure})"
            ) from failure
        raise
    elapsed_s = time.monotonic() - started
    for address, target in targets.items():
        log.info("bound %s: %s, was %s (%.2f s)", address, target, before[address], elapsed_s)


def _move(
    sysfs: Sysfs, current: Targets, targets: Targets, last_check: Callable[[], None] = lambda: None
) -> None:
    """Take the steps that are missing from *current* to *targets*; then read them back."""
    changing = [a for a, target in targets.items() if current[a].driver != target.driver]
    overrides = {address: current[address].override for address in targets}
    for address, target in targets.items():
        if address in changing and target.driver and target.override:
            _override(sysfs, address, target.driver, overrides)
        else:
            _override(sysfs, address, target.override, overrides)
    last_check()
    for address in changing:
        driver = current[address].driver
        if driver is not None:
            sysfs.write(f"bus/pci/drivers/{driver}/unbind", str(address))
    for address in changing:
        driver = targets[address].driver
        if driver is not None:
            sysfs.write(f"bus/pci/drivers/{driver}/bind", str(address))
    for address, target in targets.items():
        _override(sysfs, address, target.override, overrides)
    verify(sysfs, targets)


def _override(
    sysfs: Sysfs, address: PciAddress, driver: str | None, now: dict[PciAddress, str | None]
) -> None:
    """Let no driver but *driver* have the function, if that is not so *now*."""
    if now[address] != driver:
        sysfs.write(f"bus/pci/devices/{address}/driver_override", driver or _OVERRIDE_CLEARED)
        now[address] = driver


def verify(sysfs: Sysfs, targets: Targets) -> None:
    """Raise VerificationError unless every function has its target binding."""
    reached = read_all(sysfs, targets)
    for address, target in targets.items():
        if reached[address] != target:
            raise VerificationError(
                f"cannot bind {address} to {target}: every write was accepted, but it has "
                f"{reached[address]}"
            )


def _roll_back(sysfs: Sysfs, before: Targets, failure: KataGpuError) -> None:
    """Return the functions to *before* and say so, or raise RollbackError."""
    undo = {address: before[address] for address in reversed(list(before))}
    try:
        _move(sysfs, read_all(sysfs, undo), undo)
    except StuckError:
        raise
    except KataGpuError as error:
        where = ", ".join(f"{address} to {binding}" for address, binding in before.items())
        message = f"cannot return {where} ({error}) after a failure: {failure}"
        raise RollbackError(message, failure) from error
    log.warning("returned %s to the old driver after a failure: %s", [*map(str, undo)], failure)
