"""The process itself: it does what is asked, one piece of work after another."""

import os
import pickle
import socket
import sys
from typing import Any

import tests.faults.works  # noqa: F401 - before the filter, as all that the work needs
from tests.faults import notify


def _done(request: bytes) -> tuple[Any, Exception | None]:
    try:
        return pickle.loads(request)(), None  # noqa: S301 - the test's own
    except Exception as error:  # noqa: BLE001 - the test judges it
        return None, error


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    listener = notify.listen()
    socket.send_fds(channel, [b"!"], [listener])
    os.close(listener)
    while request := channel.recv(1 << 16):
        channel.send(pickle.dumps(_done(request)))


main()
