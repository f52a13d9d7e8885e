"""A guest that is none: its jobs are processes of this machine.

It stands in for a real one where the way of the reports is tested and the kernel is not.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.lab import process
from tests.lab.errors import EmulatorError, GuestError
from tests.lab.machine import Job


class LocalGuest:
    """Runs jobs in this machine; ending it kills what still runs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._jobs: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def inner_out(self) -> Path:
        """The shared folder has one name here."""
        return self.out

    def start(self, script: str) -> Job:
        """Start a shell script in a session of its own."""
        name = str(len(self._jobs) + 1)
        job = Job(name=name, output=self.out / f"{name}.output")
        with job.output.open("wb") as output:
            self._jobs[name] = subprocess.Popen(
                ("sh", "-c", script),
                env=process.ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return job

    def status(self, job: Job, *, wait_s: float = 0.05) -> int | None:
        """Return the job's exit status; None if it still runs after *wait_s*.

        Raises:
            EmulatorError: the job asked for it, by a file named "abort" in the shared folder.
        """
        if (self.out / "abort").exists():
            raise EmulatorError("the emulator aborted")
        try:
            return self._jobs[job.name].wait(wait_s)
        except subprocess.TimeoutExpired:
            return None

    def run(self, script: str, *, timeout_s: float) -> str:
        """Return what the script prints."""
        job = self.start(script)
        if self.status(job, wait_s=timeout_s) != 0:
            raise GuestError(f"cannot run {script!r}")
        return job.output.read_text(errors="replace")

    def console(self) -> str:
        """Return a console as a kernel would have it."""
        return "[    0.000000] the local guest's console\n"

    def kill(self) -> None:
        """End every job and what it started."""
        for running in self._jobs.values():
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def booting_in(folder: Path) -> Callable[[str], AbstractContextManager[LocalGuest]]:
    """Return a function that boots local guests, each with a folder of its own in *folder*."""

    @contextmanager
    def boot(topology: str) -> Iterator[LocalGuest]:
        number = len(list(folder.glob("guest-*"))) + 1
        out = folder / f"guest-{number}-{topology}"
        out.mkdir()
        guest = LocalGuest(out)
        try:
            yield guest
        finally:
            guest.kill()
            (out / "ended").touch()

    return boot
