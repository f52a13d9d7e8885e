"""Run one program of the host: an argv, a built environment, no stdin, a deadline."""

from collections.abc import Sequence
from typing import Final, Protocol

from kata_gpu.errors import HostError

_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
_STDERR_SHOWN: Final = 400


class Run(Protocol):
    """How a room that is handed a host starts a program."""

    def __call__(self, argv: Sequence[str], *, timeout_s: float) -> str:
        """Run to the end and return standard output; HostError for any other end."""


def run(argv: Sequence[str], *, timeout_s: float) -> str:
    """Run *argv* and return its standard output.

    Raises:
        HostError: it cannot be started, ran past *timeout_s* (and was killed), or exited
            with another status than 0; the text holds the end of its standard error.
    """
    import subprocess  # noqa: PLC0415 - most verbs start no program

    what = " ".join(argv)
    try:
        done = subprocess.run(
            argv,
            env=_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except OSError as error:
        raise HostError(f"cannot run {what}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"cannot finish {what} within {timeout_s:g} s") from error
    if done.returncode:
        said = done.stderr.strip()[-_STDERR_SHOWN:] or "it said nothing"
        raise HostError(f"cannot run {what}: exit status {done.returncode}: {said}")
    return done.stdout
