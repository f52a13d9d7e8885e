"""A process that forks the children of one that has threads, which must not fork by itself."""

import os
import signal
import socket
from typing import Final, NoReturn

from kata_gpu.errors import HostError
from kata_gpu.host import child

_REQUEST_MAX_BYTES: Final = 65536


class Forker:
    """To be made before there is any thread; it ends with this process, or with `stop`."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            _serve(theirs)
        theirs.close()

    def fork(self, request: bytes, writing: int) -> None:
        """Have a child do what *request* says, and answer into *writing*.

        Raises:
            HostError: the forker is gone.
        """
        try:
            socket.send_fds(self._control, [request], [writing])
        except OSError as error:
            raise HostError(
                f"cannot read or change anything: the process that starts children is gone "
                f"({error.strerror}); restart the agent"
            ) from error

    def stop(self) -> None:
        """Let it end; what its children do goes on."""
        self._control.close()


def _serve(control: socket.socket) -> NoReturn:
    """Fork a child for each request until the agent ends; never go on as a second agent."""
    try:
        child.leave_everything(but=control.fileno())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # nor for an answer, maybe
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, _REQUEST_MAX_BYTES, 1)
            if not request:
                break
            child.fork(request, *descriptors)
            os.close(*descriptors)
    finally:
        os._exit(0)
