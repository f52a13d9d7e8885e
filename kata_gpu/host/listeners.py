"""Whether somebody listens on a Unix socket; the one place where that is asked.

Source: connect(2); what a socket's file is for is known to who listens alone, so it is dialled.
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
