"""What this process may do and see, which programs run, and how much they may pin."""

import re
from typing import Final

from kata_gpu.discover.node_facts.known import known, text
from kata_gpu.errors import HostError
from kata_gpu.host import Host, files, paths, procfs
from kata_gpu.model.node_facts import MemoryLock, ProcessFacts

_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"
"""PROC_PID_INIT_INO of Linux include/linux/proc_ns.h: the same on every host."""

_CAP_IPC_LOCK: Final = 14
_LIMIT: Final = re.compile(r"^Max locked memory +([0-9]+|unlimited) ", re.MULTILINE)
_RUNTIMES: Final = frozenset({"containerd", "crio", "kubelet", "k3s-server", "rke2"})
_OURSELVES: Final = "self"


def read(host: Host) -> ProcessFacts:
    """Return all of it."""
    names = known(lambda: procfs.commands(host.path("/proc")))
    return ProcessFacts(
        user=known(lambda: int(_status(host, "Uid").split()[1])),
        capabilities=known(lambda: int(_status(host, "CapEff"), 16)),
        sees_host=known(
            lambda: paths.link(host.path("/proc/self/ns/pid")) == _INITIAL_PID_NAMESPACE
        ),
        commands=frozenset(names.values()) if isinstance(names, dict) else names,
        memory_locks=known(lambda: _memory_locks(host, names))
        if isinstance(names, dict)
        else names,
    )


def _status(host: Host, key: str, process: str = _OURSELVES) -> str:
    """Return one value of a process's status."""
    path = f"/proc/{process}/status"
    for line in text(host, path).splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    raise HostError(f"cannot find {key} in {path}")


def _memory_locks(host: Host, names: dict[int, str]) -> tuple[MemoryLock, ...]:
    found = {}
    for pid, name in names.items():
        if name in _RUNTIMES and files.read(host.path(f"/proc/{pid}/limits")):
            found[name] = _memory_lock(host, str(pid), name)
    return tuple(found[name] for name in sorted(found)) or (
        _memory_lock(host, _OURSELVES, "this process"),
    )


def _memory_lock(host: Host, process: str, program: str) -> MemoryLock:
    path = f"/proc/{process}/limits"
    match = _LIMIT.search(text(host, path))
    if match is None:
        raise HostError(f"cannot find the limit of locked memory in {path}")
    limit = match.group(1)
    may = int(_status(host, "CapBnd", process), 16)
    return MemoryLock(
        program=program,
        limit_bytes=None if limit == "unlimited" else int(limit),
        may_exceed=bool(may >> _CAP_IPC_LOCK & 1),
    )
