"""What a child does that an operation on sysfs is left to: see `children`, which starts it.

It is forked from a process that may have anything open, and first leaves all of it.
"""

import errno
import mmap
import os
import signal
import struct
from typing import Final

STORE: Final = b"kata-gpu-store"
READ: Final = b"kata-gpu-read"
PEEK: Final = b"kata-gpu-peek"
NAMES: Final = frozenset(name.decode() for name in (STORE, READ, PEEK))
_LABEL: Final = "kata-gpu:"
FRAME: Final = struct.Struct("=iiH")
"""Number of the operation, errno, length of the text that follows."""

PID: Final = -1
"""In place of a number: what follows is the child's pid."""

_LABEL_MAX_BYTES: Final = 249  # memfd_create(2)
_ATTRIBUTE_MAX_BYTES: Final = 4096
_REGISTER_BYTES: Final = 4


def leave_everything(*, but: int) -> None:
    """Have no descriptor but one, no terminal, no folder and nobody's signals."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, but)
    os.closerange(but + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def fork(request: bytes, writing: int) -> int:
    """Start a child that does what *request* says, and answers into *writing*; return its pid.

    The request is the child's name, the value to store in hexadecimal, the root, and the
    attributes, with a NUL between each two.
    """
    pid = os.fork()
    if pid == 0:
        try:
            leave_everything(but=writing)
            _do(request, writing)
        finally:
            os._exit(0)
    return pid


def _do(request: bytes, writing: int) -> None:
    name, value_hex, root, *attributes = request.split(b"\0")
    value = bytes.fromhex(value_hex.decode())
    said = value.decode("latin-1").encode("unicode_escape")  # a name has no NUL and no newline
    os.write(writing, FRAME.pack(PID, os.getpid(), 0))
    with open("/proc/self/comm", "wb", buffering=0) as comm:
        comm.write(name)
    for number, attribute in enumerate(attributes):
        label = _LABEL.encode() + attribute + (b"=" + said if name == STORE else b"")
        described = os.memfd_create(os.fsdecode(label[:_LABEL_MAX_BYTES]))
        code, text = 0, b""
        try:
            path = root + b"/" + attribute
            text = peek(path).encode() if name == PEEK else _touch(path, value)
        except OSError as error:
            code = error.errno or errno.EIO
        os.close(described)
        os.write(writing, FRAME.pack(number, code, len(text)) + text)


def peek(path: bytes) -> str:
    """Return the first register of a device's memory, through the file of its BAR.

    Raises:
        OSError: it cannot be opened or mapped.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with (
            mmap.mmap(fd, _REGISTER_BYTES, prot=mmap.PROT_READ) as memory,
            memoryview(memory) as view,
            view.cast("I") as registers,  # a device need not answer for single bytes
        ):
            return f"{registers[0]:#010x}"
    except ValueError as error:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
    finally:
        os.close(fd)


def _touch(path: bytes, value: bytes) -> bytes:
    """Store *value*, or read where there is none."""
    mode = os.O_WRONLY if value else os.O_RDONLY
    fd = os.open(path, mode | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if value:
            os.write(fd, value)
            return b""
        return os.read(fd, _ATTRIBUTE_MAX_BYTES)
    finally:
        os.close(fd)
