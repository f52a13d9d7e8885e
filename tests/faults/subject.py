"""A process whose calls are answered by the test, and what it does for one.

Work comes pickled from the test over a socket, whose calls are not filtered.
"""

import os
import pickle
import resource
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.faults import notify

_ROOT: Final = Path(__file__).parents[2]
_MESSAGE_BYTES: Final = 1 << 16
_DEADLINE_S: Final = 30.0

KILL: Final = -1
"""The answer that makes the call the last one, and keeps the kernel from doing it."""

Answer = Callable[[int, str], int]
"""Number and name of a call → 0 to let the kernel do it, an errno, or KILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a piece of work ended."""

    calls: tuple[str, ...]
    value: Any = None
    error: Exception | None = None
    was_killed: bool = False


class Subject:
    """The process, from the test's side; it ends with the block."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(_DEADLINE_S)
        with theirs:
            argv = (sys.executable, "-m", "tests.faults.worker", str(theirs.fileno()))
            self._process = subprocess.Popen(argv, cwd=_ROOT, pass_fds=(theirs.fileno(),))
        _, (self._listener,), _, _ = socket.recv_fds(self._channel, 1, 1)
        self.do(int)  # it puts away what it needed to start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._channel.close()
        os.close(self._listener)

    def do(self, work: Callable[[], Any], answer: Answer = lambda _number, _name: 0) -> Ended:
        """Let it do *work*, whose calls get these answers."""
        self._channel.send(pickle.dumps(work))
        calls: list[str] = []
        with selectors.DefaultSelector() as ready:
            ready.register(self._channel, selectors.EVENT_READ)
            ready.register(self._listener, selectors.EVENT_READ)
            while (found := ready.select(_DEADLINE_S)) and all(
                key.fileobj is not self._channel for key, _ in found
            ):
                identity, name = notify.receive(self._listener)
                verdict = answer(len(calls), name)
                calls.append(name)
                if verdict == KILL:
                    self._process.kill()
                    self._process.wait()
                    return Ended(calls=tuple(calls), was_killed=True)
                if verdict:
                    notify.refuse(self._listener, identity, verdict)
                else:
                    notify.let_go_on(self._listener, identity)
        value, error = pickle.loads(self._channel.recv(_MESSAGE_BYTES))  # noqa: S301 - our own
        return Ended(calls=tuple(calls), value=value, error=error)

    def limit_files(self, size: int) -> None:
        """Let the kernel cut its writes at *size* bytes of a file: a real short write."""
        _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, hard))
