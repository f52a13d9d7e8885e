"""Ask another process before each system call that touches a file, as the kernel offers it.

A seccomp filter with SECCOMP_RET_USER_NOTIF needs no privilege, no package and no ptrace. The
caller waits in the kernel until whoever has the listener says that it goes on, with which
errno it ends, or kills it.

Source: seccomp_unotify(2); include/uapi/linux/seccomp.h; arch/*/include for the numbers.
"""

import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Iterable
from typing import Final

_NUMBERS: Final = {
    "x86_64": {
        **{0: "read", 1: "write", 2: "open", 3: "close", 4: "stat", 5: "stat", 6: "stat"},
        **{74: "fsync", 75: "fsync", 82: "rename", 83: "mkdir", 87: "unlink", 91: "fchmod"},
        **{257: "open", 258: "mkdir", 262: "stat", 263: "unlink", 264: "rename", 316: "rename"},
        **{73: "flock", 77: "ftruncate"},
    },
    "aarch64": {
        **{63: "read", 64: "write", 56: "open", 57: "close", 79: "stat", 80: "stat"},
        **{82: "fsync", 83: "fsync", 38: "rename", 276: "rename", 34: "mkdir", 35: "unlink"},
        **{52: "fchmod", 32: "flock", 46: "ftruncate"},
    },
}
NAMES: Final = _NUMBERS[platform.machine()]
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}[platform.machine()]
_ARCHITECTURE: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[platform.machine()]

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
_ALLOW: Final = 0x7FFF0000
_USER_NOTIF: Final = 0x7FC00000
_CONTINUE: Final = 1
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_NOTICE_BYTES: Final = 80
_LOAD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def listen() -> int:
    """Filter this thread's calls from now on, and return the listener's descriptor."""
    code = b"".join(struct.pack("=HBBI", *line) for line in _filter(sorted(NAMES)))
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        fd = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
        if fd >= 0:
            return int(fd)
    error = ctypes.get_errno()
    raise OSError(error, f"cannot filter system calls: {os.strerror(error)}; a container needs "
                  "a seccomp profile that allows seccomp(2) with a listener")  # fmt: skip


def _filter(numbers: list[int]) -> Iterable[tuple[int, int, int, int]]:
    yield _LOAD, 0, 0, 4
    yield _JUMP_IF_EQUAL, 0, len(numbers) + 1, _ARCHITECTURE
    yield _LOAD, 0, 0, 0
    for index, number in enumerate(numbers):
        yield _JUMP_IF_EQUAL, len(numbers) - index, 0, number
    yield _RETURN, 0, 0, _ALLOW
    yield _RETURN, 0, 0, _USER_NOTIF


def receive(listener: int) -> tuple[int, str]:
    """Return the id and the name of the call that waits."""
    notice = bytearray(_NOTICE_BYTES)
    fcntl.ioctl(listener, _RECEIVE, notice, True)
    identity, _pid, _flags, number = struct.unpack_from("=QIIi", notice)
    return identity, NAMES[number]


def let_go_on(listener: int, identity: int) -> None:
    """Let the kernel do the call."""
    fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", identity, 0, 0, _CONTINUE))


def refuse(listener: int, identity: int, error: int) -> None:
    """End the call with an errno instead."""
    fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", identity, 0, -error, 0))
