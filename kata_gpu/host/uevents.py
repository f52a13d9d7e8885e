"""Hints from the kernel that a device came, went or changed hands.

Events are hints and never state: whoever gets one looks at sysfs again. The kernel's own
multicast group is read, not udev's, so no udev need run and a network namespace of our own
does no harm. libudev drops what is not from the kernel or root.

An overflow of the socket loses the newest events silently after one ENOBUFS, so that error
is a hint like any other.
"""

import errno
import os
import socket
from typing import Final, Self

import pyudev

from kata_gpu.errors import HostError
from kata_gpu.host.hint import Hint

_BUFFER_BYTES: Final = 16 << 20
_SUBSYSTEMS: Final = ("pci", "vfio", "vfio-dev")


class Uevents:
    """An open subscription; close it with ``with``."""

    def __init__(self, monitor: pyudev.Monitor) -> None:
        self._monitor = monitor

    @classmethod
    def subscribe(cls) -> Self:
        """Listen from now on; HostError where the kernel gives no netlink socket."""
        try:
            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            for subsystem in _SUBSYSTEMS:
                monitor.filter_by(subsystem)
            monitor.start()
        except (OSError, ImportError) as error:
            raise HostError(f"cannot listen for uevents: {error}") from error
        try:
            monitor.set_receive_buffer_size(_BUFFER_BYTES)
        except OSError as error:
            if error.errno != errno.EPERM:  # without CAP_NET_ADMIN the default must do
                raise HostError(f"cannot size the uevent buffer: {error}") from error
        return cls(monitor)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a hint."""
        return int(self._monitor.fileno())

    def drain(self) -> tuple[Hint, ...]:
        """Take all waiting hints; empty when there are none.

        An overflow is the hint "events were lost"; events after it stay for the next call,
        so that an error that lasts cannot hold anybody here.
        """
        hints = []
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                text = ascii(f"{device.action} {device.device_path}")[1:-1]
                hints.append(Hint(text=text))
        except UnicodeDecodeError as error:
            hints.append(Hint(text=f"an event has no readable path: {error}"))
        except OSError as error:
            number = self._take_error() or error.errno or errno.ENOBUFS
            hints.append(Hint(text=f"events were lost: {os.strerror(number)}"))
        return tuple(hints)

    def _take_error(self) -> int:
        """Take the socket's waiting error; 0 when the read that failed took it.

        pyudev asks poll(2) first and then reads nothing while an error waits, so that
        one would wait for ever. Of what it found it tells only the descriptor.
        """
        with socket.socket(fileno=os.dup(self._monitor.fileno())) as channel:
            return channel.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
