"""Python in a process of its own: for what takes memory and time, and is of use for a moment.

The process is this interpreter, started anew, so that it does not matter what threads this one
has; it answers with a pickle, which nobody else can write.
"""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from kata_gpu.errors import HostError

_TIMEOUT_S: Final = 60.0
_COMPLAINT_SHOWN: Final = 400


class Apart:
    """A module that is run elsewhere, from now on; :meth:`answer` waits for what it says."""

    def __init__(self, module: str, words: Sequence[str]) -> None:
        """Start ``python -m module words``, in which the folder it is started in is no source.

        Raises:
            HostError: no process can be started.
        """
        self._module = module
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", module, *words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise HostError(f"cannot start {module}: {error.strerror}") from error

    def answer(self) -> Any:
        """Return what the module gave to `say`.

        Raises:
            HostError: it ended in another way, or had not ended after a minute and was killed.
        """
        try:
            said, complaint = self._process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self.end()
            raise HostError(f"cannot finish {self._module} within {_TIMEOUT_S:g} s") from error
        status = self._process.returncode
        if status:
            why = complaint.decode(errors="replace").strip()[-_COMPLAINT_SHOWN:]
            raise HostError(f"cannot run {self._module}: exit status {status}: {why}")
        return pickle.loads(said)  # noqa: S301 - our own child's

    def end(self) -> None:
        """End it, if it has not ended; nobody waits for its answer any more."""
        if self._process.returncode is None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=1.0)


def say(answer: Any) -> None:
    """Give *answer* to who waits for this process."""
    sys.stdout.buffer.write(pickle.dumps(answer))
    sys.stdout.buffer.flush()
