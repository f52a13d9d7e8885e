"""Unix sockets at a path: whether somebody listens there, and who may connect.

What a socket's file is for is known to who listens alone, so it is dialled.

Source: connect(2), unix(7).
"""

import os
import socket
import stat
from pathlib import Path

from kata_gpu.errors import HeldError, HostError


def is_served(path: Path) -> bool:
    """Tell whether somebody may listen at *path*; false when certainly nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)  # a full queue is somebody's
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
    return True


def make_way(path: Path) -> None:
    """Remove the socket that a killed process left at *path*; never anything else. Idempotent.

    Raises:
        HeldError: somebody may listen there.
        HostError: it is no socket, or cannot be looked at or removed.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise HostError(f"cannot serve on {path}: it exists and is no socket; remove it")
        if is_served(path):
            raise HeldError(
                f"cannot serve on {path}: another process listens there; stop it, or choose "
                f"another path in agent.toml"
            )
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot serve on {path}: {error.strerror}") from error


def restrict(path: Path, mode: int) -> None:
    """Give the socket at *path* its mode; whoever puts a link in its place leads us nowhere.

    Raises:
        HostError: it is no socket, or cannot be looked at or changed.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise HostError(f"cannot serve on {path}: somebody put something else there")
            Path(f"/proc/self/fd/{fd}").chmod(mode)  # fchmod(2) takes no such descriptor
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot serve on {path}: {error.strerror}") from error
