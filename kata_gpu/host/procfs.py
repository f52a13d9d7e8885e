"""Who has a device open: descriptors of every process, matched by device number.

A name proves nothing, since containers have paths of their own; major and minor are the
same everywhere. Reading another user's descriptors needs CAP_SYS_PTRACE, and a pod of the
agent needs hostPID. Descriptors in flight between processes are not seen: what this finds
is in use, what it does not find is only probably free.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


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
    """Return every process that has one of the character *devices* open, but this one."""
    numbers: dict[int, str] = {}
    for path in devices:
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_rdev:
            numbers[status.st_rdev] = str(path)
    if not numbers:
        return ()
    found: list[Opener] = []
    for process in os.listdir(proc):
        if process.isdigit() and int(process) != os.getpid():
            found.extend(
                Opener(pid=int(process), command=_command(proc, process), device=numbers[number])
                for number in _open_numbers(proc / process / "fd") & numbers.keys()
            )
    return tuple(sorted(found, key=lambda opener: (opener.pid, opener.device)))


def _open_numbers(descriptors: Path) -> set[int]:
    try:
        names = os.listdir(descriptors)
    except OSError:  # it ended, or is not ours to see
        return set()
    numbers = set()
    for name in names:
        try:
            numbers.add(os.stat(descriptors / name).st_rdev)
        except OSError:
            continue
    return numbers


def _command(proc: Path, process: str) -> str:
    try:
        text = (proc / process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
    return "".join(c if c.isprintable() else "?" for c in text) or "?"
