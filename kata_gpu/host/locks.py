"""One agent per node: an advisory lock that the kernel drops when its owner dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kata_gpu.errors import HeldError, HostError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock at *path*; it is not inherited by programs we start.

    Raises:
        HeldError: another process holds it; the text names it.
        HostError: the lock file cannot be made, locked, or told whose it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot open the lock {path}: {error.strerror}") from error
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
        return os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
    except OSError:
        return "unknown"
