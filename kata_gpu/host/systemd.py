"""Tell the service manager how far we are (sd_notify(3)); nothing without one."""

import os
import socket

from kata_gpu.errors import HostError


def notify(message: str, *, address: str | None = None) -> bool:
    """Send ``READY=1`` or the like; return False when no manager listens.

    *address* defaults to $NOTIFY_SOCKET; a leading ``@`` names an abstract socket.
    """
    target = address or os.environ.get("NOTIFY_SOCKET")
    if not target:
        return False
    if target.startswith("@"):
        target = "\0" + target[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(message.encode(), target)
    except OSError as error:
        raise HostError(f"cannot notify the service manager: {error.strerror}") from error
    return True
