"""A user of VFIO as a VM is one, without the VM: it opens a function and keeps it.

Source: Linux include/uapi/linux/vfio.h.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

_BASE: Final = 0x3B64  # _IO(';', 100)
_SET_IOMMU: Final = _BASE + 2
_GROUP_SET_CONTAINER: Final = _BASE + 4
_GROUP_GET_DEVICE_FD: Final = _BASE + 6
_TYPE1_IOMMU: Final = 1

_OPEN: Final = os.O_RDWR | os.O_CLOEXEC


@contextmanager
def holding(address: str, *, root: Path = Path("/")) -> Iterator[None]:
    """Have a function open; OSError where the kernel refuses a step of it."""
    with ExitStack() as files:
        _open(address, root, files)
        yield


@contextmanager
def hidden(address: str, *, root: Path = Path("/")) -> Iterator[None]:
    """Have a function open and no descriptor: they are on their way between two sockets.

    Nobody finds such a user in /proc, as nobody finds one that comes after the look.
    """
    sending, receiving = socket.socketpair()
    with sending, receiving:
        with ExitStack() as files:
            socket.send_fds(sending, [b"!"], _open(address, root, files))
        yield


def _open(address: str, root: Path, files: ExitStack) -> list[int]:
    """Open group, container and device until *files* ends, and return them."""
    group = os.open(_node(root, address), _OPEN)
    files.callback(os.close, group)
    container = os.open(root / "dev/vfio/vfio", _OPEN)
    files.callback(os.close, container)
    fcntl.ioctl(group, _GROUP_SET_CONTAINER, bytearray(container.to_bytes(4, "little")))
    fcntl.ioctl(container, _SET_IOMMU, _TYPE1_IOMMU)
    device = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, bytearray(f"{address}\0".encode()))
    files.callback(os.close, device)
    return [group, container, device]


def _node(root: Path, address: str) -> Path:
    link = root / "sys/bus/pci/devices" / address / "iommu_group"
    if not link.is_symlink():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(link))
    return root / "dev/vfio" / link.readlink().name
