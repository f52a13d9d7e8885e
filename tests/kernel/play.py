"""How a row of the contract is carried out on a kernel, and taken back whatever came of it."""

import errno
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final, assert_never

from kata_gpu.errors import HostError
from kata_gpu.host.sysfs import Sysfs
from tests.kernel.contract import (
    Act,
    Check,
    Exists,
    HasVfioDevice,
    Hold,
    Leads,
    Load,
    Reads,
    Row,
    Unload,
    Write,
)
from tests.kernel.targets import Target

_DEVICES: Final = "bus/pci/devices"
_MODPROBE_TIMEOUT_S: Final = 30.0
_SETTLE_S: Final = 5.0  # some drivers probe on their own time
_POLL_S: Final = 0.05


def play(target: Target, row: Row, home: Mapping[str, str | None]) -> None:
    """Carry out a row; afterwards every function is where *home* says, also if it failed."""
    stage = _Stage(target, home)
    assert stage.strays() == {}
    try:
        for act in row.given:
            stage.do(act)
        with stage.held(row.held):
            assert stage.answer(row.act) == row.refusal
            for check in (stage.has_7 and row.then_from_7) or row.then:
                stage.see(check)
    finally:
        stage.clear(row.undo)
    assert stage.strays() == {}


class _Names(dict[str, str]):
    """Addresses by role; those of virtual functions are looked up when they are asked for."""

    def __init__(self, sysfs: Sysfs, known: Mapping[str, str]) -> None:
        super().__init__(known)
        self._sysfs = sysfs

    def __missing__(self, role: str) -> str:
        assert role == "vf"
        address = self._sysfs.link(f"{_DEVICES}/{self['nvme-pf']}/virtfn0")
        assert address is not None
        return address


class _Stage:
    """One kernel while a row is played on it."""

    def __init__(self, target: Target, home: Mapping[str, str | None]) -> None:
        self._target = target
        self._home = home
        self._host = target.host
        self._sysfs = target.host.sysfs
        self._names = _Names(self._sysfs, {role: target.address(role) for role in home})
        self._reset_methods = {role: self._read_reset_methods(role) for role in home}
        release = self._host.path("/proc/sys/kernel/osrelease").read_text(encoding="ascii")
        self.has_7 = int(release.partition(".")[0]) >= 7

    def do(self, act: Act) -> None:
        """Do one thing; what the kernel says against it is raised."""
        match act:
            case Write(path=path, value=value):
                self._sysfs.write(self._named(path), self._named(value))
            case Load(module=module):
                self._host.run(("modprobe", "--", module), timeout_s=_MODPROBE_TIMEOUT_S)
            case Unload(module=module):
                self._host.run(("modprobe", "-r", "--", module), timeout_s=_MODPROBE_TIMEOUT_S)
            case Hold(role=role):
                with self._target.holding(self._names[role]):
                    pass
            case _:
                assert_never(act)

    def answer(self, act: Act) -> str | None:
        """Do one thing and return the refusal; None when it is accepted."""
        try:
            self.do(act)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        except HostError as error:
            if isinstance(error.__cause__, OSError):
                return errno.errorcode[error.__cause__.errno or 0]
            status = re.search(r"exit status \d+", str(error))
            return status.group() if status else str(error)
        return None

    def held(self, role: str | None) -> AbstractContextManager[None]:
        """Let a VM have a function open meanwhile, if any."""
        return nullcontext() if role is None else self._target.holding(self._names[role])

    def see(self, check: Check) -> None:
        """Assert what the kernel shows; a driver that probes on its own time is waited for."""
        deadline = time.monotonic() + _SETTLE_S
        while self._shown(check) != _expected(check, self._names):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        assert (check, self._shown(check)) == (check, _expected(check, self._names))

    def strays(self) -> dict[str, str]:
        """Return the functions that are not as they are at home, and how they are."""
        found = {}
        for role, driver in self._home.items():
            directory = f"{_DEVICES}/{self._names[role]}"
            shown = self._sysfs.attributes(directory, ("driver_override", "sriov_numvfs"))
            held_by = self._sysfs.link(f"{directory}/driver")
            override, vfs = shown.get("driver_override"), shown.get("sriov_numvfs", "0")
            if (held_by, override, vfs) != (driver, "(null)", "0"):
                found[role] = f"on {held_by}, override {override}, {vfs} virtual functions"
        return found

    def clear(self, undo: tuple[Act, ...]) -> None:
        """Take back what the row did; each step may be one that it did not need."""
        for act in undo:
            self.answer(act)
        for role in self._home:
            if not self._sysfs.exists(f"{_DEVICES}/{self._names[role]}"):
                self.do(Write("bus/pci/rescan", "1"))
        for role, driver in self._home.items():
            self._send_home(f"{_DEVICES}/{{{role}}}", role, driver)

    def _send_home(self, directory: str, role: str, driver: str | None) -> None:
        at = self._named(directory)
        names = ("driver_override", "sriov_numvfs", "sriov_drivers_autoprobe", "reset_method")
        shown = self._sysfs.attributes(at, names)
        if shown["driver_override"] != "(null)":
            self.do(Write(f"{directory}/driver_override", "\n"))
        now = self._sysfs.link(f"{at}/driver")
        if now != driver and now is not None:
            self.do(Write(f"bus/pci/drivers/{now}/unbind", f"{{{role}}}"))
        if now != driver and driver is not None:
            self.do(Write(f"bus/pci/drivers/{driver}/bind", f"{{{role}}}"))
        if shown.get("sriov_numvfs", "0") != "0":
            self.do(Write(f"{directory}/sriov_numvfs", "0"))
        if shown.get("sriov_drivers_autoprobe", "1") != "1":
            self.do(Write(f"{directory}/sriov_drivers_autoprobe", "1"))
        if shown.get("reset_method") != self._reset_methods[role]:
            self.do(Write(f"{directory}/reset_method", "default"))

    def _read_reset_methods(self, role: str) -> str | None:
        directory = f"{_DEVICES}/{self._names[role]}"
        return self._sysfs.attributes(directory, ("reset_method",)).get("reset_method")

    def _shown(self, check: Check) -> str | bool | None:
        match check:
            case Reads(path=path):
                return self._sysfs.read(self._named(path))
            case Leads(path=path):
                return self._sysfs.link(self._named(path))
            case Exists(path=path):
                return self._host.path(f"/{self._named(path)}").exists()
            case HasVfioDevice(role=role):
                return self._has_vfio_device(self._names[role])
            case _:
                assert_never(check)

    def _has_vfio_device(self, address: str) -> bool | None:
        """Return whether device and node are there; None when only one of them is."""
        device = self._sysfs.names(f"{_DEVICES}/{address}/vfio-dev") != []
        group = self._sysfs.link(f"{_DEVICES}/{address}/iommu_group")
        node = group is not None and self._host.path(f"/dev/vfio/{group}").exists()
        return device if device == node else None

    def _named(self, text: str) -> str:
        return text.format_map(self._names)


def _expected(check: Check, names: Mapping[str, str]) -> str | bool | None:
    match check:
        case Reads(text=text):
            return text
        case Leads(name=name):
            return None if name is None else name.format_map(names)
        case Exists(there=there):
            return there
        case HasVfioDevice(has=has):
            return has
        case _:
            assert_never(check)
