"""The guest's view of itself: where its devices are, and the monitor of its own QEMU.

The third serial port is connected to a monitor of the QEMU that runs this guest, so that a
test can plug and unplug without help from outside.
"""

import json
import os
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from tests.lab import process, qemu
from tests.lab.errors import LabError
from tests.lab.topologies import TOPOLOGIES
from tests.lab.topology import Function, Place, Topology, place_of, places

GUEST_VARIABLE: Final = "KATA_GPU_LAB_GUEST"
_MONITOR_LINE: Final = Path("/dev/ttyS2")
_PARSER_RESET: Final = b"\xff\n"  # QMP drops what it has read so far of a request
_PLUG_TIMEOUT_S: Final = 20.0
_QMP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.05


def topology_name() -> str | None:
    """Return the topology of the guest this runs in; None outside of a guest."""
    return os.environ.get(GUEST_VARIABLE)


class Machine:
    """The guest that a test runs in. One per process: its monitor has one reader."""

    def __init__(self, topology: Topology, sysfs: Path = Path("/sys")) -> None:
        self.topology = topology
        self.roles = tuple(place.role for place in places(topology))
        self._devices = sysfs / "devices"
        self._monitor: _Monitor | None = None

    @classmethod
    def here(cls) -> Self:
        """Return the machine this runs in; raise LabError outside of a guest."""
        name = topology_name()
        if name is None:
            raise LabError("cannot look at the lab's machine: this is not inside its guest")
        return cls(TOPOLOGIES[name])

    def address(self, role: str) -> str:
        """Return the PCI address of a function, port or bridge, found by its place.

        Raises:
            KeyError: the topology has no such role.
            LabError: the device is not there now.
        """
        address = self._address(place_of(self.topology, role))
        if address is None:
            raise LabError(f"cannot find {role}: nothing is in its place now")
        return address

    def is_present(self, role: str) -> bool:
        """Tell whether the kernel shows the device now."""
        return self._address(place_of(self.topology, role)) is not None

    def qmp(self, command: str, **arguments: object) -> Any:
        """Return the result of a command of QEMU's monitor; raise LabError if it fails."""
        if self._monitor is None:
            self._monitor = _Monitor(_MONITOR_LINE)
        return self._monitor.execute(command, arguments)

    def plug(self, role: str) -> str:
        """Plug in a device that was not there, wait for the kernel and return its address."""
        place = place_of(self.topology, role)
        _pluggable(place)
        driver, *options = qemu.device_argument(place).split(",")
        self.qmp("device_add", driver=driver, **dict(option.split("=", 1) for option in options))
        self._wait(role, present=True)
        return self.address(role)

    def unplug(self, role: str) -> None:
        """Ask for the device's removal and wait until the kernel has let go of it."""
        _pluggable(place_of(self.topology, role))
        self.qmp("device_del", id=role)
        self._wait(role, present=False)

    def console(self) -> str:
        """Return what this guest's kernel has logged."""
        return process.output(("dmesg",), timeout_s=30)

    def close(self) -> None:
        """Let go of the monitor."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _address(self, place: Place) -> str | None:
        found = [path.name for path in self._devices.glob(place.sysfs_glob)]
        return found[0] if found else None

    def _wait(self, role: str, *, present: bool) -> None:
        deadline = time.monotonic() + _PLUG_TIMEOUT_S
        while self.is_present(role) is not present:
            if time.monotonic() >= deadline:
                what = "appear" if present else "go away"
                raise LabError(f"{role} did not {what} within {_PLUG_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)


def _pluggable(place: Place) -> Function:
    if place.function is None or place.function.shown:
        raise LabError(f"cannot plug {place.role}: it is not made for that")
    return place.function


class _Monitor:
    """A monitor at the other end of a serial line."""

    def __init__(self, line: Path) -> None:
        self._file = os.open(line, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._file)
        attributes = termios.tcgetattr(self._file)
        attributes[6][termios.VMIN] = 0
        attributes[6][termios.VTIME] = 1  # a read waits for 0.1 s
        termios.tcsetattr(self._file, termios.TCSANOW, attributes)
        self._unread = b""
        self._count = 0
        # the greeting, of which the line may have lost a part, is passed over
        os.write(self._file, _PARSER_RESET)
        self.execute("qmp_capabilities", {})

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        self._count += 1
        request = {"execute": command, "arguments": arguments, "id": self._count}
        os.write(self._file, json.dumps(request).encode() + b"\n")
        for answer in self._answers(time.monotonic() + _QMP_TIMEOUT_S):
            if answer.get("id") != self._count:
                continue  # an event, or an answer to noise
            if "error" in answer:
                raise LabError(f"cannot {command}: {answer['error']['desc']}")
            return answer["return"]
        raise LabError(f"cannot {command}: no answer within {_QMP_TIMEOUT_S:g} s")

    def _answers(self, deadline: float) -> Iterator[dict[str, Any]]:
        while time.monotonic() < deadline:
            self._unread += os.read(self._file, 4096)
            while b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue  # the rest of a greeting
                if isinstance(answer, dict):
                    yield answer

    def close(self) -> None:
        os.close(self._file)
