"""What each attribute does with a value that is written to it.

Sources, all Linux: driver_override_store, reset_store, remove_store and bus_rescan_store in
drivers/pci/pci-sysfs.c; driver_set_override in drivers/base/driver.c; pci_reset_function and
reset_method_store in drivers/pci/pci.c; sriov_numvfs_store in drivers/pci/iov.c; control_store in
drivers/base/power/sysfs.c.
"""

import errno
from typing import Final

from tests.kernel.answers import parse_number, refuse
from tests.kernel.bus import Bus, Function
from tests.kernel.specs import Sriov
from tests.kernel.tree import OVERRIDE_UNSET

MODELLED: Final = frozenset(
    {
        "bind", "unbind", "new_id", "remove_id", "drivers_probe", "drivers_autoprobe", "rescan",
        "driver_override", "reset", "reset_method", "remove", "sriov_numvfs",
        "sriov_drivers_autoprobe", "control",
    }
)  # fmt: skip

_PAGE_SIZE: Final = 4096


def store(bus: Bus, folder: str, attribute: str, value: str) -> Function | None:
    """Act on a value written to an attribute; *folder* is its real one, below ``/sys``.

    A function that is returned has a user, so that its unbind has yet to happen.
    """
    match folder.split("/"):
        case ["bus", "pci"]:
            _store_bus(bus, attribute, value)
        case ["bus", "pci", "drivers", driver]:
            return _store_driver(bus, driver, attribute, value)
        case [*_, address, "power"] if address in bus.functions and attribute == "control":
            _store_control(bus, bus.functions[address], value)
        case [*_, address] if address in bus.functions:
            _store_function(bus, bus.functions[address], attribute, value)
        case _:
            _not_modelled(folder, attribute, value)
    return None


def _store_bus(bus: Bus, attribute: str, value: str) -> None:
    match attribute:
        case "drivers_probe":
            bus.probe_all(value)
        case "drivers_autoprobe":
            bus.autoprobe = not value.startswith("0")
            bus.tree.show_bus(attribute, str(int(bus.autoprobe)))
        case "rescan":
            if parse_number(value):
                bus.rescan()
        case _:
            _not_modelled("bus/pci", attribute, value)


def _store_driver(bus: Bus, name: str, attribute: str, value: str) -> Function | None:
    driver = bus.drivers[name]
    match attribute:
        case "bind":
            bus.bind(driver, value)
        case "unbind":
            function = bus.held_by(driver, value)
            if function.holders:
                return function
            bus.detach(function)
        case "new_id":
            bus.new_id(driver, value)
        case "remove_id":
            bus.remove_id(driver, value)
        case _:
            _not_modelled(f"bus/pci/drivers/{name}", attribute, value)
    return None


def _store_function(bus: Bus, function: Function, attribute: str, value: str) -> None:
    match attribute:
        case "driver_override":
            _store_override(bus, function, value)
        case "reset":
            _store_reset(bus, function, value)
        case "reset_method":
            _store_reset_method(bus, function, value)
        case "remove":
            if parse_number(value):
                bus.pull(function.spec.address)
        case "sriov_numvfs":
            _store_numvfs(bus, function, value)
        case "sriov_drivers_autoprobe":
            _store_virtuals_probe(bus, function, value)
        case _:
            _not_modelled(function.spec.address, attribute, value)


def _store_override(bus: Bus, function: Function, value: str) -> None:
    """Keep the only driver that may bind; nothing else happens."""
    if len(value) >= _PAGE_SIZE - 1:
        refuse(errno.EINVAL)
    name = value.split("\0", 1)[0].split("\n", 1)[0]
    function.override = name or None
    bus.tree.show(function.spec.address, "driver_override", name or OVERRIDE_UNSET)


def _store_reset(bus: Bus, function: Function, value: str) -> None:
    """Reset a function by the first method that can; also while a user has it open."""
    bus.ensure_not_stuck(function)
    if parse_number(value) != 1:
        refuse(errno.EINVAL)
    if not any(method != "bus" or bus.is_alone(function) for method in function.methods):
        refuse(errno.ENOTTY)


def _store_reset_method(bus: Bus, function: Function, value: str) -> None:
    """Choose how to reset: nothing at all, or some of what can be done as things are now."""
    possible = [m for m in function.spec.reset_methods if m != "bus" or bus.is_alone(function)]
    names = value.split()
    if names == ["default"]:
        names = possible
    if not set(names) <= set(possible):
        refuse(errno.EINVAL)
    function.methods = tuple(names)
    bus.tree.show(function.spec.address, "reset_method", " ".join(names))


def _store_numvfs(bus: Bus, function: Function, value: str) -> None:
    """Enable virtual functions, or disable them all."""
    number = parse_number(value)
    if number > function.spec.total_vfs:
        refuse(errno.ERANGE)
    if number == len(function.virtuals):
        return
    if function.driver is None or bus.drivers[function.driver].spec.sriov is Sriov.NONE:
        refuse(errno.ENOENT)
    if number and function.virtuals:
        refuse(errno.EBUSY)
    if function.driver in bus.deaf:
        return
    if number:
        bus.enable_virtuals(function, number - (function.driver in bus.stingy))
    else:
        bus.disable_virtuals(function)


def _store_control(bus: Bus, function: Function, value: str) -> None:
    """Choose whether it may sleep while nobody uses it."""
    bus.ensure_not_stuck(function)
    may = {"auto": True, "on": False}.get(value.removesuffix("\n"))
    if may is None:
        refuse(errno.EINVAL)
    bus.let_sleep(function, may=may)


def _store_virtuals_probe(bus: Bus, function: Function, value: str) -> None:
    """Choose whether virtual functions without an override may be bound at all."""
    answer = {"0": False, "n": False, "1": True, "y": True}.get(value[:1].lower())
    if answer is None:
        refuse(errno.EINVAL)
    function.virtuals_probe = answer
    bus.tree.show(function.spec.address, "sriov_drivers_autoprobe", str(int(answer)))


def _not_modelled(folder: str, attribute: str, value: str) -> None:
    raise AssertionError(f"not modelled: write {value!r} to {folder}/{attribute}")
