"""Who uses a device: descriptors and mappings of every process, in one pass over /proc.

Devices are known by number, since names prove nothing across containers. Reading another
user's descriptors needs CAP_SYS_PTRACE, and a pod of the agent needs hostPID. Descriptors
in flight between processes are not seen: what this finds is in use, what it does not find
is only probably free.

A process may have files of a server that does not answer, or that it serves itself, so no
file system is asked for more than it has at hand (AT_STATX_DONT_SYNC). One bound is missing:
to list mappings waits while the process itself changes them, so a process that hangs in the
kernel at that holds up the look.

Source: Linux Documentation/filesystems/proc.rst; include/uapi/linux/stat.h.
"""

import ctypes
import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.model.holder import How
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.text import printable

_MAPPING: Final = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) \S{4} [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+ [1-9][0-9]* +(.*))$",
    re.MULTILINE,
)
"""Range; what tells the file from others (its file system, inode and path); path."""

_VFIO_DEVICE: Final = b"anon_inode:[vfio-device]"
_SYSPATH: Final = re.compile(r"^vfio-device-syspath:\s+/\S*/([^/\s]+)$", re.MULTILINE)
_UID: Final = re.compile(r"^Uid:\s+([0-9]+)", re.MULTILINE)
_START_TIME: Final = 19
"""Index of starttime in /proc/PID/stat after the command, proc(5)."""

_PIECE_BYTES: Final = 1 << 16
_FILES_KEPT: Final = 8192
_FILE_MAX_BYTES: Final = 256
"""A process may map 65,530 files with paths of 4 KiB; what is kept of them is less."""

_NONE: Final = 0  # as a device's number: no device has it

_AT_FDCWD: Final = -100
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_TYPE: Final = 1
_statx: Final = ctypes.CDLL(None, use_errno=True).statx
"""Made once: each CDLL brings classes of its own, which only a full collection frees."""

_KTHREADD: Final = 2  # the parent of every other thread of the kernel, where /proc is the host's
_FLAGS: Final = 6
"""Index of flags in /proc/PID/stat after the command, proc(5)."""

_PF_KTHREAD: Final = 0x200000  # include/linux/sched.h


class _Statx(ctypes.Structure):
    _fields_ = (
        ("before_mode", ctypes.c_uint8 * 28),
        ("mode", ctypes.c_uint16),
        ("after_mode", ctypes.c_uint8 * 98),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("after_rdev", ctypes.c_uint8 * 120),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One process and one device that it has."""

    pid: int
    device: int | PciAddress
    """A character device's number; the address where a descriptor tells that alone."""

    how: How


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What a process says of itself; None for what it does not, as when it has ended."""

    command: str
    uid: int | None
    cgroups: str
    """Its /proc/PID/cgroup; empty when it cannot be read."""


def uses(proc: Path, numbers: Collection[int]) -> tuple[Use, ...]:
    """Return who has one of the character devices *numbers*, by pid; never this process.

    With it comes whoever has a VFIO device, where the kernel tells which (from 7.x on). A
    device that is open and mapped is told once. Nobody is looked at when no number is asked.

    Raises:
        HostError: the processes cannot be listed, so nobody can say that a device is free.
    """
    if not numbers:
        return ()
    try:
        processes = [int(name) for name in os.listdir(proc) if name.isdecimal()]
    except OSError as error:
        raise HostError(f"cannot list {proc}: {error.strerror}") from error
    passed_over = {os.getpid(), *kernel_threads(proc)}
    scan = _Scan(os.fsencode(proc), frozenset(numbers))
    return tuple(
        use for pid in sorted(processes) if pid not in passed_over for use in scan.process(pid)
    )


def kernel_threads(proc: Path) -> frozenset[int]:
    """Return threads of the kernel, which have no files: often most of what *proc* shows.

    It may be only some, or none: where process 2 is somebody else's, or the kernel is built
    without the list (CONFIG_PROC_CHILDREN). What is in the list says itself what it is, since
    programs that the kernel starts are there too.
    """
    at = os.fsencode(proc)
    if not _is_kernels(at, b"%d" % _KTHREADD):
        return frozenset()
    listed = _read(b"%s/%d/task/%d/children" % (at, _KTHREADD, _KTHREADD)).split()
    return frozenset({_KTHREADD, *(int(pid) for pid in listed if _is_kernels(at, pid))})


def _is_kernels(proc: bytes, pid: bytes) -> bool:
    fields = _read(b"%s/%s/stat" % (proc, pid)).rpartition(b")")[2].split(None, _FLAGS + 1)
    flags = fields[_FLAGS] if len(fields) > _FLAGS else b""
    return flags.isdigit() and bool(int(flags) & _PF_KTHREAD)


def process(proc: Path, pid: int) -> Process:
    """Return what is known of a process, which may have ended."""
    return Process(
        command=_command(proc, pid),
        uid=_uid(_text(proc / f"{pid}/status")),
        cgroups=_text(proc / f"{pid}/cgroup"),
    )


def commands(proc: Path) -> dict[int, str]:
    """Return the name of every process that *proc* shows, by pid.

    The kernel keeps the first 15 bytes of a name.

    Raises:
        HostError: the processes cannot be listed.
    """
    try:
        processes = os.listdir(proc)
    except OSError as error:
        raise HostError(f"cannot list {proc}: {error.strerror}") from error
    return {int(name): _command(proc, int(name)) for name in processes if name.isdecimal()}


def _command(proc: Path, pid: int) -> str:
    text = _text(proc / f"{pid}/comm").strip()
    return printable(text) or "?"


class _Scan:
    """One pass, which looks at a file that many processes have mapped only once."""

    def __init__(self, proc: bytes, wanted: frozenset[int]) -> None:
        self._proc = proc
        self._wanted = wanted
        self._mapped_files: dict[bytes, int] = {}
        self._status = _Statx()

    def process(self, pid: int) -> Iterator[Use]:
        """Tell what a process has; nothing of one that ended or is not ours to see."""
        at = b"%s/%d" % (self._proc, pid)
        opened = self._open(at)
        for device in sorted(opened, key=str):
            yield Use(pid=pid, device=device, how=How.OPEN)
        for device in sorted(self._mapped(at) - opened):
            yield Use(pid=pid, device=device, how=How.MAPPED)

    def _open(self, at: bytes) -> set[int | PciAddress]:
        found: set[int | PciAddress] = set()
        names = _names(at + b"/fd")
        if not names:
            return self._open_in_threads(at)
        for name in names:
            link = b"%s/fd/%s" % (at, name)
            number = self._device(link)
            if number is None and _target(link) == _VFIO_DEVICE:
                found |= _vfio_device(b"%s/fdinfo/%s" % (at, name))
            elif number in self._wanted:
                found.add(number)
        return found

    def _open_in_threads(self, at: bytes) -> set[int | PciAddress]:
        """Look at the other threads of a process whose first one has ended.

        The process then shows no descriptors, as a thread of the kernel does, which is alone.
        """
        first = at.rpartition(b"/")[2]
        others = (name for name in _names(at + b"/task") if name != first)
        return {device for name in others for device in self._open(b"%s/task/%s" % (at, name))}

    def _mapped(self, at: bytes) -> set[int]:
        found = set()
        for piece in _pieces(at + b"/maps"):
            for line in _MAPPING.finditer(piece):
                number = self._mapped_files.get(line[2])
                if number is None:
                    number = self._behind(at, line)
                if number in self._wanted:
                    found.add(number)
        return found

    def _behind(self, at: bytes, line: re.Match[bytes]) -> int:
        """Return the device that a mapping is of.

        Following the mapping itself takes CAP_CHECKPOINT_RESTORE. Without it the process's
        own path must do, of what is below a ``dev`` alone: any other could lead anywhere.
        """
        ctypes.set_errno(0)
        number = self._device(b"%s/map_files/%s" % (at, line[1]))
        if number is None and ctypes.get_errno() == errno.EPERM and b"/dev/" in line[3]:
            number = self._device(b"%s/root%s" % (at, line[3]))
        if number is None:  # another process may know
            return _NONE
        if len(self._mapped_files) < _FILES_KEPT and len(line[2]) <= _FILE_MAX_BYTES:
            self._mapped_files[line[2]] = number
        return number

    def _device(self, path: bytes) -> int | None:
        """Return a character device's number, or that of none; None when it is not a file."""
        status = self._status
        if _statx(_AT_FDCWD, path, _AT_STATX_DONT_SYNC, _STATX_TYPE, ctypes.byref(status)):
            return None
        if stat.S_ISCHR(status.mode):
            return os.makedev(status.rdev_major, status.rdev_minor)
        return _NONE if stat.S_IFMT(status.mode) else None  # an anonymous inode has no type


def start_ticks(proc: Path, pid: int) -> int | None:
    """Return when a process began, in clock ticks since the boot; None where there is none.

    With its pid that tells it from every other.
    """
    fields = _text(proc / str(pid) / "stat").rpartition(")")[2].split()
    word = fields[_START_TIME] if len(fields) > _START_TIME else ""
    return int(word) if word.isdecimal() else None


def _names(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except OSError:  # it ended, or is not ours to see
        return []


def _target(link: bytes) -> bytes | None:
    try:
        return os.readlink(link)
    except OSError:
        return None


def _read(path: bytes) -> bytes:
    """Return a file's content; nothing where there is none, or it is not ours to see."""
    try:
        with open(path, "rb", buffering=0) as file:  # of every process, where pathlib is slow
            return file.read()
    except OSError:
        return b""


def _pieces(path: bytes) -> Iterator[bytes]:
    """Yield a file's content in pieces of whole lines; no more of it is held than one."""
    rest = b""
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                whole, newline, rest = (rest + piece).rpartition(b"\n")
                yield whole + newline
    except OSError:  # it ended, or is not ours to see
        return
    yield rest


def _vfio_device(fdinfo: bytes) -> set[PciAddress]:
    match = _SYSPATH.search(_text(Path(os.fsdecode(fdinfo))))
    try:
        return set() if match is None else {PciAddress.parse(match[1])}
    except ValueError:  # a VFIO device that is no PCI function
        return set()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _uid(status: str) -> int | None:
    match = _UID.search(status)
    return None if match is None else int(match[1])
