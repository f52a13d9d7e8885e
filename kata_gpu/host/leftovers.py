"""What children of this agent, or of an earlier one, still wait for in the kernel.

They say by themselves what they do, see `child`. So could others: what counts is root's and in
this agent's PID namespace, where no container is that does not see the host's processes.

Source: proc(5); pid_namespaces(7).
"""

import os
import re
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import child, procfs
from kata_gpu.model.operation import Operation

_LINK: Final = re.compile(r"/memfd:kata-gpu:([\w:./-]+)(?:=([ -~]*?))?(?: \(deleted\))?", re.ASCII)
_SYMBOL: Final = re.compile(r"[A-Za-z_][\w.]{0,127}", re.ASCII)


def find(proc: Path) -> tuple[Operation, ...]:
    """Return what children of this agent, or of an earlier one, still wait for.

    Raises:
        HostError: the processes cannot be listed, so nothing is known to be safe.
    """
    found = []
    try:
        names = os.listdir(proc)
    except OSError as error:
        raise HostError(f"cannot list {proc}: {error.strerror}") from error
    own_namespace = _namespace(proc / "self")
    for process in sorted(filter(str.isdigit, names), key=int):
        if _first_line(f"{proc}/{process}/comm") in child.NAMES:
            operation = _operation(proc, process, own_namespace)
            if operation is not None:
                found.append(operation)
    return tuple(found)


def _operation(proc: Path, process: str, own_namespace: str | None) -> Operation | None:
    """Return what a child says that it does; None for one that ends, or is not ours."""
    folder = proc / process
    try:
        if folder.stat().st_uid != os.geteuid() or _namespace(folder) != own_namespace:
            return None
        targets = [os.readlink(folder / "fd" / name) for name in os.listdir(folder / "fd")]
    except OSError:
        return None
    for target in targets:
        label = _LINK.fullmatch(target)
        if label is not None:
            channel = _first_line(folder / "wchan")
            return Operation(
                pid=int(process),
                attribute=label[1],
                value=label[2],
                age_s=_age_s(proc, process),
                wait_channel=channel if _SYMBOL.fullmatch(channel) else None,
            )
    return None


def _namespace(folder: Path) -> str | None:
    """Return the PID namespace of a process; None where the kernel has none, or does not say."""
    try:
        return os.readlink(folder / "ns/pid")
    except OSError:
        return None


def _age_s(proc: Path, process: str) -> float:
    """Return how long a process has been there; 0 where that cannot be told."""
    ticks = procfs.start_ticks(proc, int(process))
    uptime = _first_line(proc / "uptime").split()
    try:
        started_s = (ticks or 0) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(uptime[0]) - started_s) if ticks is not None else 0.0
    except (ValueError, IndexError):
        return 0.0


def _first_line(path: Path | str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:  # of every process, where pathlib is slow
            return file.read().partition(b"\n")[0].decode(errors="replace")
    except OSError:
        return ""
