"""How the kernel's driver core, VFIO, SR-IOV and IOMMU groups behave, on a tree of files.

Every refusal is an OSError with the kernel's errno. Sources, all Linux: bind_store,
unbind_store and drivers_probe_store in drivers/base/bus.c; really_probe, device_attach and
device_driver_attach in drivers/base/dd.c; pci_match_device, pci_dma_configure, new_id_store
and remove_id_store in drivers/pci/pci-driver.c; sriov_numvfs_store in drivers/pci/iov.c;
iommu_device_use_default_domain in drivers/iommu/iommu.c; vfio_pci_core_register_device in
drivers/vfio/pci/vfio_pci_core.c.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.kernel.answers import WouldBlockForever, refuse
from tests.kernel.specs import DeviceSpec, DriverSpec, PciId, Sriov
from tests.kernel.tree import Tree


@dataclass(slots=True)
class Function:
    """One PCI function on the bus, and everything that changes about it."""

    spec: DeviceSpec
    driver: str | None = None
    override: str | None = None
    vfio: int | None = None
    """The number of its VFIO device; None unless a VFIO driver holds it."""

    methods: tuple[str, ...] = ()
    virtuals: list[str] = field(default_factory=list)
    virtuals_probe: bool = True
    holders: int = 0
    unbinder: int | None = None
    """How many users have it open through VFIO."""

    may_sleep: bool = False
    """Whether it may sleep while nobody uses it (power/control)."""

    stuck: bool = False
    """Whether an unbind waits for its user."""


@dataclass(slots=True)
class Driver:
    """One registered driver, and the ids it was taught."""

    spec: DriverSpec
    dynamic: list[tuple[int, int]] = field(default_factory=list)


class Bus:
    """The PCI bus of one host."""

    def __init__(
        self, tree: Tree, *, hotplug_honours_autoprobe: bool, cdevs: bool, noiommu: bool
    ) -> None:
        self.tree = tree
        self.functions: dict[str, Function] = {}
        self.drivers: dict[str, Driver] = {}
        self.deaf: set[str] = set()
        self.stingy: set[str] = set()
        self.autoprobe = True
        self.gone: list[DeviceSpec] = []
        self._hotplug_honours_autoprobe = hotplug_honours_autoprobe
        self._cdevs = cdevs
        self._noiommu = noiommu

    # functions come and go

    def add(self, spec: DeviceSpec) -> Function:
        """Put a function on the bus without offering it to a driver."""
        self.tree.add_device(spec)
        function = Function(spec, methods=spec.reset_methods)
        self.functions[spec.address] = function
        return function

    def plug(self, spec: DeviceSpec) -> None:
        """Put a function on the bus as hot-plug does, and offer it to the drivers."""
        if self._comes_without_its_slot(spec):
            spec = replace(spec, group=self.next_group())
        function = self.add(spec)
        if self.autoprobe or not self._hotplug_honours_autoprobe:
            try:
                self._offer(function)
            except OSError:
                return  # it stays without a driver, and nobody is told

    def _comes_without_its_slot(self, spec: DeviceSpec) -> bool:
        """Whether the IOMMU sees it before the kernel knows that its slot has more functions.

        pci_device_group() asks pdev->multifunction, which pci_scan_slot() sets too late.
        """
        above = self.functions.get(spec.parent or "")
        shares_with_bridge = above is not None and above.spec.group == spec.group
        is_first = spec.address.endswith(".0")
        return spec.group is not None and not is_first and not shares_with_bridge

    def pull(self, address: str) -> None:
        """Take a function and all behind it off the bus; a rescan brings them back as new."""
        self.gone += self._remove(address)

    def rescan(self) -> None:
        """Find what is there: virtual functions come back only when they are enabled."""
        back, self.gone = self.gone, []
        for spec in back:
            if spec.physfn is None:
                self.plug(spec)

    def _remove(self, address: str) -> list[DeviceSpec]:
        function = self.functions[address]
        if function.holders:
            raise WouldBlockForever(f"{address} cannot go while a user has it open")
        gone = [function.spec]
        for other in list(self.functions.values()):
            if other.spec.parent == address and other.spec.address in self.functions:
                gone += self._remove(other.spec.address)
        self.disable_virtuals(function)
        self.detach(function)
        self.tree.remove_device(function.spec)
        del self.functions[address]
        return gone

    def find(self, address: str) -> Function:
        """Return a function by its address, with or without a newline; ENODEV without it."""
        function = self.functions.get(address.removesuffix("\n"))
        return function or refuse(errno.ENODEV)

    # drivers

    def register(self, spec: DriverSpec) -> None:
        """Register a driver, which takes every matching function that has none."""
        self.tree.add_driver(spec)
        self.drivers[spec.name] = Driver(spec)
        if self.autoprobe:
            self._take_all(self.drivers[spec.name])

    def unregister(self, name: str) -> None:
        """Forget a driver, which lets go of everything it holds."""
        for function in self.functions.values():
            if function.driver == name:
                if function.holders:
                    raise WouldBlockForever(f"{name} cannot go while a user has a function")
                self.detach(function)
        self.tree.remove_driver(self.drivers.pop(name).spec)

    def bind(self, driver: Driver, address: str) -> None:
        """Give a function to a driver that matches it."""
        function = self.find(address)
        self.ensure_not_stuck(function)
        if not _matches(driver, function):
            refuse(errno.ENODEV)
        if function.driver is not None:
            refuse(errno.EBUSY)
        self._use_default_domain(driver, function)
        self._probe(driver, function)

    def held_by(self, driver: Driver, address: str) -> Function:
        """Return a function that a driver holds; ENODEV for any other."""
        function = self.find(address)
        self.ensure_not_stuck(function)
        if function.driver != driver.spec.name:
            refuse(errno.ENODEV)
        return function

    def detach(self, function: Function) -> None:
        """Take a function from whatever driver it has."""
        if function.driver is None:
            return
        driver = self.drivers[function.driver].spec
        if driver.sriov is Sriov.REMOVES_VFS:
            self.disable_virtuals(function)
        if function.vfio is not None and function.spec.group is not None:
            last = sum(other.vfio is not None for other in self.group(function)) == 1
            self.tree.hide_vfio(
                function.spec.address, function.spec.group, function.vfio, last=last
            )
            self.let_sleep(function, may=False)
        function.driver = function.vfio = None
        self.tree.show_driver(function.spec, None)

    def probe_all(self, address: str) -> None:
        """Offer a function to every driver; that none takes it is no error."""
        function = self.find(address)
        if function.driver is None and not function.stuck:
            try:
                self._offer(function)
            except OSError:
                refuse(errno.EINVAL)

    def new_id(self, driver: Driver, text: str) -> None:
        """Teach a driver an id, and let it take every matching function that has none."""
        vendor, device = _ids(text)
        data = text.split()[6:7]
        if data and int(data[0], 16) and driver.spec.ids:  # no fake table has driver data
            refuse(errno.EINVAL)
        known = (PciId(vendor=v, device=d) for v, d in driver.dynamic)
        probe = DeviceSpec(
            address="", vendor=vendor, device=device, class_code=0, parent=None, group=None
        )
        if any(row.matches(probe) for row in (*known, *driver.spec.ids)):
            refuse(errno.EEXIST)
        driver.dynamic.append((vendor, device))
        self._take_all(driver)

    def remove_id(self, driver: Driver, text: str) -> None:
        """Let a driver forget an id that it was taught; what it holds it keeps."""
        ids = _ids(text)
        if ids not in driver.dynamic:
            refuse(errno.ENODEV)
        driver.dynamic.remove(ids)

    # virtual functions

    def enable_virtuals(self, function: Function, number: int) -> None:
        spec = function.spec
        first = self.next_group()
        for index in range(number):
            virtual = replace(
                spec,
                address=_virtual_address(spec.address, index),
                device=spec.vf_device or spec.device,
                group=None if spec.group is None else first + index,
                reset_methods=("flr",),
                bars=(),
                total_vfs=0,
                boot_vga=False,
                physfn=spec.address,
            )
            function.virtuals.append(virtual.address)
            self.plug(virtual)
            self.tree.show_virtual(spec.address, index, virtual.address)
        self.tree.show(spec.address, "sriov_numvfs", str(number))

    def disable_virtuals(self, function: Function) -> None:
        if any(self.functions[address].holders for address in function.virtuals):
            raise WouldBlockForever(f"a user has a virtual function of {function.spec.address}")
        if not function.virtuals:
            return
        for index, address in enumerate(function.virtuals):
            self.tree.hide_virtual(function.spec.address, index)
            self._remove(address)
        function.virtuals.clear()
        self.tree.show(function.spec.address, "sriov_numvfs", "0")

    # users and groups

    def ensure_not_stuck(self, function: Function) -> None:
        if function.stuck:
            raise WouldBlockForever(f"{function.spec.address} is locked by an unbind that waits")

    def is_alone(self, function: Function) -> bool:
        """Tell whether nothing else is on a function's bus."""
        bus = function.spec.domain_and_bus
        return [f for f in self.functions.values() if f.spec.domain_and_bus == bus] == [function]

    def group(self, function: Function) -> Iterator[Function]:
        """Return a function's IOMMU group, itself included."""
        number = function.spec.group
        return (f for f in self.functions.values() if f.spec.group == number is not None)

    def next_group(self) -> int:
        """Return a number that no group has, nor had one that may come back."""
        specs = (*(f.spec for f in self.functions.values()), *self.gone)
        return max((spec.group for spec in specs if spec.group is not None), default=-1) + 1

    def open(self, function: Function) -> None:
        """Let a user open a function as a VM does: group, container, device."""
        members = tuple(self.group(function))
        if not any(member.vfio is not None for member in members):
            refuse(errno.ENOENT)  # the group has no node
        if any(member.holders for member in members):
            refuse(errno.EBUSY)
        if any(m.driver and not self._manages_dma(m.driver) for m in members):
            refuse(errno.EPERM)
        if function.vfio is None:
            refuse(errno.ENODEV)
        function.holders += 1
        self.settle_power(function)

    # power

    def let_sleep(self, function: Function, *, may: bool) -> None:
        """Let a function sleep while nobody uses it, or keep it awake; it does so at once."""
        function.may_sleep = may
        self.tree.show(function.spec.address, "power/control", "auto" if may else "on")
        self.settle_power(function)

    def settle_power(self, function: Function) -> None:
        """Show whether it sleeps: of all drivers VFIO's alone are known to let it."""
        is_idle = function.vfio is not None and function.may_sleep and not function.holders
        sleeps = is_idle and function.spec.sleeps
        self.tree.show(function.spec.address, "power_state", "D3hot" if sleeps else "D0")

    # the parts of the above

    def _take_all(self, driver: Driver) -> None:
        for function in list(self.functions.values()):
            if function.driver is None and not function.stuck and _matches(driver, function):
                try:
                    self._use_default_domain(driver, function)
                    self._probe(driver, function)
                except OSError:
                    continue

    def _offer(self, function: Function) -> None:
        """Walk the drivers until one takes it; a group's user ends the walk with an error."""
        for driver in self.drivers.values():
            if not _matches(driver, function):
                continue
            self._use_default_domain(driver, function)
            try:
                self._probe(driver, function)
            except OSError:
                continue
            return

    def _use_default_domain(self, driver: Driver, function: Function) -> None:
        if not self._manages_dma(driver.spec.name) and any(
            member.holders for member in self.group(function)
        ):
            refuse(errno.EBUSY)

    def _probe(self, driver: Driver, function: Function) -> None:
        parent = self.functions[function.spec.physfn] if function.spec.physfn else None
        if parent and not parent.virtuals_probe and function.override is None:
            refuse(errno.ENODEV)
        if driver.spec.name in self.deaf:
            return
        if not (driver.spec.vfio or driver.spec.takes_anything or _knows(driver, function.spec)):
            refuse(errno.ENODEV)
        number = self._probe_vfio(function) if driver.spec.vfio else None
        function.driver, function.vfio = driver.spec.name, number
        self.tree.show_driver(function.spec, driver.spec.name)
        if number is not None and function.spec.group is not None:
            self.tree.show_vfio(
                function.spec.address, function.spec.group, number, cdev=self._cdevs
            )
            self.let_sleep(function, may=True)

    def _probe_vfio(self, function: Function) -> int:
        if function.spec.header_type != 0:
            refuse(errno.EINVAL)
        if function.virtuals:
            refuse(errno.EBUSY)
        if function.spec.group is None:
            assert not self._noiommu, "not modelled: VFIO without an IOMMU"
            refuse(errno.EINVAL)
        used = {other.vfio for other in self.functions.values()}
        return next(number for number in range(len(used) + 1) if number not in used)

    def _manages_dma(self, driver: str) -> bool:
        spec = self.drivers[driver].spec
        return spec.managed_dma or spec.vfio


def _matches(driver: Driver, function: Function) -> bool:
    """Tell whether the bus would let a driver try: by the override if any, else by its ids."""
    if function.override is not None:
        return function.override == driver.spec.name
    return _knows(driver, function.spec)


def _knows(driver: Driver, spec: DeviceSpec) -> bool:
    """Tell whether a function is in a driver's table, or among what it was taught."""
    return (spec.vendor, spec.device) in driver.dynamic or any(
        row.matches(spec) for row in driver.spec.ids
    )


def _ids(text: str) -> tuple[int, int]:
    fields = text.split()
    try:
        vendor, device = (int(part, 16) for part in fields[:2])
    except ValueError:
        refuse(errno.EINVAL)
    return vendor, device


def _virtual_address(physical: str, index: int) -> str:
    """Return the routing id after the physical function's; it may be on the next bus."""
    domain, bus, devfn = physical.split(":")
    device, function = devfn.split(".")
    number = (int(bus, 16) << 8) + (int(device, 16) << 3) + int(function) + 1 + index
    return f"{domain}:{number >> 8:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"
