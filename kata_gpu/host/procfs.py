"""Who has a device open: descriptors of every process, matched by device number.

A name proves nothing, since containers have paths of their own; major and minor are the
same everywhere. Reading another user's descriptors needs CAP_SYS_PTRACE, and a pod of the
agent needs hostPID. Descriptors in flight between processes are not seen: what this finds
is in use, what it does not find is only probably free.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kata_gpu.errors import HostError


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """A process that has one of the devices open."""

    pid: int
    command: str
    device: str
    """The path it was asked about."""

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}) has {self.device} open"


def openers(proc: Path, devices: Iterable[Path]) -> tuple[Opener, ...]:
    """Return every process that has one of the character *devices* open, but this one.

    Raises:
        HostError: the processes cannot be listed, so nobody can say that a device is free.
    """
    numbers: dict[int, str] = {}
    for path in devices:
        number = _character_device(path)
        if number is not None:
            numbers[number] = str(path)
    if not numbers:
        return ()
    found: list[Opener] = []
    try:
        processes = os.listdir(proc)
    except OSError as error:
        raise HostError(f"cannot list {proc}: {error.strerror}") from error
    for process in processes:
        if process.isdigit() and int(process) != os.getpid():
            found.extend(
                Opener(pid=int(process), command=_command(proc, process), device=numbers[number])
                for number in _open_numbers(proc / process / "fd") & numbers.keys()
            )
    return tuple(sorted(found, key=lambda opener: (opener.pid, opener.device)))


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
    return {int(name): _command(proc, name) for name in processes if name.isdecimal()}


def _open_numbers(descriptors: Path) -> set[int]:
    try:
        names = os.listdir(descriptors)
    except OSError:  # it ended, or is not ours to see
        return set()
    numbers = (_character_device(descriptors / name) for name in names)
    return {number for number in numbers if number is not None}


def _character_device(path: Path) -> int | None:
    """Return the number of the device behind *path*; None when it is none, or is gone.

    Block devices have numbers of their own, which may be the same.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_rdev if stat.S_ISCHR(status.st_mode) else None


def _command(proc: Path, process: str) -> str:
    try:
        text = (proc / process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
    return "".join(c if c.isprintable() else "?" for c in text) or "?"
