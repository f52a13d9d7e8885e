"""May we do what an agent does here: write sysfs, see who holds a device, keep files?

Source: writing overrides and binding needs uid 0 and no capability; other users'
descriptors need CAP_SYS_PTRACE, and in a pod hostPID.
"""

import stat
from collections.abc import Callable, Iterable
from typing import Final

from kata_gpu.model.doctor import Answer
from kata_gpu.model.node_facts import Directory, MemoryLock, NodeFacts, Unknown
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning

_CAP_SYS_PTRACE: Final = 19
_FREE_LEAST_BYTES: Final = 1 << 20
_FREE_FEW_BYTES: Final = 64 << 20
_READ_ONLY: Final = "mount it read-write: a volume of its own in a pod, ReadWritePaths= in a unit"


def root_user(facts: NodeFacts) -> Iterable[Answer]:
    """This runs as root, as the agent must."""
    user = facts.process.user
    if isinstance(user, Unknown):
        yield unknown(user)
    elif user:
        yield warning(
            f"uid {user}",
            "only root may rebind devices, and much of this cannot be told by another",
            "run kata-gpu doctor as root",
        )
    else:
        yield ok("uid 0")


def sysfs(facts: NodeFacts) -> Iterable[Answer]:
    """What a rebind writes to is sysfs, and writable."""
    found = facts.sysfs
    if isinstance(found, Unknown):
        yield unknown(found)
    elif found.kind != "sysfs":
        yield error(
            f"a part of /sys is {found.kind}",
            "what is written there reaches no kernel, and what is read there is made up",
            "unmount what lies over /sys, or mount the host's /sys there",
        )
    elif found.is_read_only:
        yield error("/sys is read-only", "no device can be rebound", _READ_ONLY)
    else:
        yield ok("sysfs, mounted read-write")


def process_visibility(facts: NodeFacts) -> Iterable[Answer]:
    """Whoever holds a device can be seen."""
    capabilities, sees_host = facts.process.capabilities, facts.process.sees_host
    answer = _as_agent(facts)
    if isinstance(capabilities, Unknown):
        yield unknown(capabilities)
    elif not capabilities >> _CAP_SYS_PTRACE & 1:
        yield answer(
            f"no CAP_SYS_PTRACE (CapEff {capabilities:x})",
            "the open files of other users cannot be seen, so that no device is surely free",
            "add SYS_PTRACE to the container's capabilities, or run it as root",
        )
    if isinstance(sees_host, Unknown):
        yield unknown(sees_host)
    elif not sees_host:
        yield answer(
            "this is a PID namespace of its own",
            "processes of the host cannot be seen, so that no device is surely free",
            "set hostPID: true in the pod",
        )
    elif not isinstance(capabilities, Unknown) and capabilities >> _CAP_SYS_PTRACE & 1:
        yield ok("all processes of the host, with CAP_SYS_PTRACE")


def _as_agent(facts: NodeFacts) -> Callable[[str, str, str], Answer]:
    """Return the grade of what stops the agent; a user who is not root is not the agent."""
    return error if facts.process.user == 0 else warning


def state_directory(facts: NodeFacts) -> Iterable[Answer]:
    """The folder with the ledger is root's alone."""
    yield from _directory(facts.state_directory)


def cdi_directory(facts: NodeFacts) -> Iterable[Answer]:
    """The folder with our CDI specs is root's alone."""
    yield from _directory(facts.cdi_directory)


def _directory(found: Directory | Unknown) -> Iterable[Answer]:
    if isinstance(found, Unknown):
        yield unknown(found)
        return
    faults = list(_faults(found))
    yield from faults
    if not faults:
        made = "" if found.path == found.existing else f", to be made in {found.existing}"
        yield ok(f"{found.path} (mode {found.mode:04o}{made})")


def _faults(found: Directory) -> Iterable[Answer]:
    if not found.is_directory:
        yield error(
            f"{found.existing} is no folder",
            "nothing can be kept there, and nothing is done that cannot be noted first",
            f"move {found.existing} out of the way",
        )
    if isinstance(found.file_system, Unknown):
        yield unknown(found.file_system)
    elif found.file_system.is_read_only:
        yield error(
            f"{found.existing} is on a read-only {found.file_system.kind}",
            "nothing is done that cannot be noted first",
            _READ_ONLY,
        )
    # above ours a sticky folder is good enough: nobody can replace there what is another's
    is_shared = found.mode & stat.S_ISVTX and found.existing != found.path
    if found.owner or (found.mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_shared):
        yield error(
            f"{found.existing} belongs to uid {found.owner} and has mode {found.mode:04o}",
            "whoever can write there decides what root does with devices",
            f"chown root:root {found.existing} && chmod go-w {found.existing}",
        )


def free_space(facts: NodeFacts) -> Iterable[Answer]:
    """There is room to note what is done."""
    found = facts.state_directory
    if isinstance(found, Unknown):
        yield unknown(found)
        return
    system = found.file_system
    if isinstance(system, Unknown):
        yield unknown(system)
        return
    free_mib = system.free_bytes >> 20
    text = f"{free_mib} MiB free for {found.path}"
    why = "nothing is done that cannot be noted first"
    remedy = f"make room on the file system of {found.existing}"
    if system.free_files == 0:
        yield error(f"no file can be made on the {system.kind} of {found.path}", why, remedy)
    elif system.free_bytes < _FREE_LEAST_BYTES:
        yield error(text, why, remedy)
    elif system.free_bytes < _FREE_FEW_BYTES:
        yield warning(text, why, remedy)
    else:
        yield ok(text)


def memory_lock(facts: NodeFacts) -> Iterable[Answer]:
    """A VM may pin all of its memory, as passthrough does."""
    found = facts.process.memory_locks
    if isinstance(found, Unknown):
        yield unknown(found)
        return
    for lock in found:
        yield _pinned(lock)


def _pinned(lock: MemoryLock) -> Answer:
    if lock.limit_bytes is None:
        return ok(f"{lock.program}: unlimited")
    text = f"{lock.program}: {lock.limit_bytes >> 10} KiB"
    if lock.may_exceed:
        return info(f"{text}; VMs that run as root have CAP_IPC_LOCK and may exceed it")
    return warning(
        text,
        "all memory of a VM is pinned, and one that is larger than this fails to start (ENOMEM)",
        f"set LimitMEMLOCK=infinity in the unit of {lock.program} and restart it",
    )
