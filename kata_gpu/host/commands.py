"""Run one program of the host: an argv, a built environment, no stdin, a deadline."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from kata_gpu.errors import HostError

if TYPE_CHECKING:
    from subprocess import Popen

_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
_STDERR_SHOWN: Final = 400
_KILL_TIMEOUT_S: Final = 1.0
_KILL_STEP_S: Final = 0.01

_left: "Final[set[Popen[str]]]" = set()
"""Killed programs that have not ended."""


class Run(Protocol):
    """How a room that is handed a host starts a program."""

    def __call__(self, argv: Sequence[str], *, timeout_s: float) -> str:
        """Run to the end and return standard output; HostError for any other end."""


def run(argv: Sequence[str], *, timeout_s: float) -> str:
    """Run *argv* and return its standard output.

    Raises:
        HostError: it cannot be started, ran past *timeout_s* (and was killed with all that it
            started, or does not die and is left), or exited with another status than 0; the
            text holds the end of its standard error.
    """
    import subprocess  # noqa: PLC0415 - most verbs start no program

    _reap()
    what = " ".join(argv)
    try:
        process = subprocess.Popen(
            argv,
            env=_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"cannot run {what}: {error.strerror}") from error
    try:
        output, complaint = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise HostError(f"cannot finish {what} within {timeout_s:g} s: {_kill(process)}") from error
    except BaseException:  # the end of this process is the end of what it asked for
        _kill(process)
        raise
    if process.returncode:
        said = complaint.strip()[-_STDERR_SHOWN:] or "it said nothing"
        raise HostError(f"cannot run {what}: exit status {process.returncode}: {said}")
    return output


def _kill(process: "Popen[str]") -> str:
    """End a program and what it started; leave one that waits in the kernel. Say which."""
    with suppress(PermissionError):  # it runs as somebody else, and we are not root
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while process.poll() is None:
        if time.monotonic() > deadline:
            _left.add(process)
            return f"process {process.pid} was killed and does not end, so it is left"
        time.sleep(_KILL_STEP_S)
    return "it was killed"


def _reap() -> None:
    """Take leave of programs that were left and have ended since."""
    for process in tuple(_left):
        if process.poll() is not None:
            _left.discard(process)
