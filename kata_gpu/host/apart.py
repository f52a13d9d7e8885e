"""Python in a process of its own: for what takes memory and time, and is of use for a moment.

The process is this interpreter, started anew, so that it does not matter what threads this one
has; it answers with pickles, one after another, which nobody else can write.
"""

import os
import pickle
import select
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from kata_gpu.errors import HostError

_TIMEOUT_S: Final = 60.0
_START: Final = "import gc; gc.disable(); from {module} import main; main()"
"""A process that is gone in a moment has no use for a collector."""

_LENGTH: Final = struct.Struct("=Q")
_COMPLAINT_SHOWN: Final = 400


class Apart:
    """A module whose ``main`` runs elsewhere; :meth:`answer` waits for what it says next."""

    def __init__(self, module: str, words: Sequence[str]) -> None:
        """Start it with *words* as arguments; it imports nothing of the folder it happens to be in.

        Raises:
            HostError: no process can be started.
        """
        self._module = module
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-c", _START.format(module=module), *words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        except OSError as error:
            raise HostError(f"cannot start {module}: {error.strerror}") from error

    def answer(self) -> Any:
        """Return what the module gave to `say` next.

        Raises:
            HostError: it ended before, or has said nothing for a minute and was ended.
        """
        length = _LENGTH.unpack(self._read(_LENGTH.size))[0]
        return pickle.loads(self._read(length))  # noqa: S301 - our own child's

    def end(self) -> None:
        """End it, if it has not ended; nobody waits for its answers any more."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired, ValueError):  # its pipes may be closed
            self._process.communicate(timeout=1.0)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self, count: int) -> bytes:
        pipe, data = self._process.stdout, b""
        if pipe is None or pipe.closed:
            raise HostError(f"cannot ask {self._module}: it was ended")
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        while len(data) < count:
            if not waiting.poll(_TIMEOUT_S * 1000):
                self.end()
                raise HostError(f"cannot finish {self._module} within {_TIMEOUT_S:g} s")
            piece = os.read(pipe.fileno(), count - len(data))
            if not piece:
                raise HostError(f"cannot run {self._module}: {self._why_it_ended()}")
            data += piece
        return data

    def _why_it_ended(self) -> str:
        try:
            _, complaint = self._process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.end()
            return "it did not end, and was killed"
        text = complaint.decode(errors="replace").strip()[-_COMPLAINT_SHOWN:]
        return f"exit status {self._process.returncode}: {text}"


def say(answer: Any) -> None:
    """Give *answer* to who waits for this process."""
    data = pickle.dumps(answer)
    sys.stdout.buffer.write(_LENGTH.pack(len(data)) + data)
    sys.stdout.buffer.flush()
