"""What a child does that an operation on sysfs is left to: see `children`, which starts it.

It is forked from a process that may have anything open, and first leaves all of it.
"""

import errno
import mmap
import os
import signal
import struct
from contextlib import suppress
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

_BEFORE_ATTRIBUTES: Final = 3
_LABEL_MAX_BYTES: Final = 249  # memfd_create(2)
_ATTRIBUTE_MAX_BYTES: Final = 4096
_REGISTER_BYTES: Final = 4
_OFFSET_MAX: Final = 1 << 32


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


def fork(request: bytes, writing: int) -> int | None:
    """Start a child that does what *request* says, and answers into *writing*; return its pid.

    The request is the child's name, the value to store or the offset to peek at in hexadecimal,
    the root, and the attributes, with a NUL between each two. None where there can be no further
    process: that is the answer about each attribute then, and the next request may have its child.
    """
    try:
        pid = os.fork()
    except OSError as error:
        _refuse(request, writing, error.errno or errno.EAGAIN)
        return None
    if pid == 0:
        try:
            leave_everything(but=writing)
            _do(request, writing)
        finally:
            os._exit(0)
    return pid


def _refuse(request: bytes, writing: int, code: int) -> None:
    count = request.count(b"\0") - _BEFORE_ATTRIBUTES + 1
    with suppress(OSError):  # nobody waits for it any more
        os.write(writing, b"".join(FRAME.pack(number, code, 0) for number in range(count)))


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
            text = _peeked(path, value) if name == PEEK else _touch(path, value)
        except OSError as error:
            code = error.errno or errno.EIO
        os.close(described)
        os.write(writing, FRAME.pack(number, code, len(text)) + text)


def _peeked(path: bytes, offset: bytes) -> bytes:
    return peek(path, int.from_bytes(offset, "big")).encode()


def offset_bytes(offset: int) -> bytes:
    """Return an offset as a request to peek has it in place of a value.

    Raises:
        ValueError: no register is there.
    """
    if offset % _REGISTER_BYTES or not 0 <= offset < _OFFSET_MAX:
        raise ValueError(f"no register is at offset {offset:#x}")
    return offset.to_bytes(_REGISTER_BYTES, "big")


def peek(path: bytes, offset: int) -> str:
    """Return a register of a device's memory, through the file of its BAR.

    Raises:
        OSError: it cannot be opened or mapped; the BAR may end before *offset*.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    within = offset % mmap.ALLOCATIONGRANULARITY
    try:
        with (
            mmap.mmap(
                fd, within + _REGISTER_BYTES, prot=mmap.PROT_READ, offset=offset - within
            ) as memory,
            memoryview(memory) as view,
            view.cast("I") as registers,  # a device need not answer for single bytes
        ):
            return f"{registers[within // _REGISTER_BYTES]:#010x}"
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
