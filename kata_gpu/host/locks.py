"""Advisory locks that the kernel drops when their owner dies: one agent per node, and others."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from kata_gpu.errors import HeldError, HostError

_TRY_EVERY_S: Final = 0.002
_HOW: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place holds up nobody


@contextmanager
def exclusive_within(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock at *path* as :func:`exclusive` does, after a wait for it; blocking.

    It is meant for locks that nobody holds for long.

    Raises:
        HeldError: another process held it all the time; the text names it.
        HostError: as of :func:`exclusive`.
    """
    ends_at = time.monotonic() + timeout_s
    with ExitStack() as held:
        while not _is_taken(path, held):
            if time.monotonic() >= ends_at:
                raise HeldError(
                    f"cannot lock {path} within {timeout_s:g} s: process {owner(path)} holds "
                    f"it; if it hangs, end it"
                )
            time.sleep(_TRY_EVERY_S)
        yield


def is_held(path: Path) -> bool:
    """Tell whether somebody holds the lock at *path*; nobody does where there is none."""
    if not path.exists():
        return False
    with ExitStack() as held:
        return not _is_taken(path, held)


def _is_taken(path: Path, held: ExitStack) -> bool:
    try:
        held.enter_context(exclusive(path))
    except HeldError:
        return False
    return True


def owner(path: Path) -> str:
    """Return the process that says in the file at *path* that it holds the lock."""
    try:
        fd = os.open(path, os.O_RDONLY | _HOW)
    except OSError:
        return "unknown"
    try:
        return _owner(fd)
    finally:
        os.close(fd)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock at *path*; it is not inherited by programs we start.

    Raises:
        HeldError: another process holds it; the text names it.
        HostError: the lock file cannot be made, locked, or told whose it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _HOW, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot open the lock {path}: {error.strerror}; it needs a folder that can be written"
        ) from error
    try:
        _take(fd, path)
        yield
    finally:
        with suppress(OSError):  # whatever it says, the descriptor and the lock are gone
            os.close(fd)


def _take(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0:
            raise HeldError(f"cannot lock {path}: it was removed meanwhile; try again")
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        raise HeldError(
            f"cannot change this node: process {_owner(fd)} holds {path}; a running agent does "
            f"this by itself (kata-gpu status), stop it to do it by hand"
        ) from error
    except OSError as error:
        raise HostError(f"cannot take the lock {path}: {error.strerror}") from error


def _owner(fd: int) -> str:
    try:
        said = os.read(fd, 32).decode("ascii", "replace").strip()
    except OSError:
        return "unknown"
    return said if said.isdecimal() else "unknown"
