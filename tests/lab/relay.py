"""Runs the tests of one topology in guests and hands on what became of each.

Every test gets an outcome, whatever happens: its reports from the guest; or, where the guest
hung, died or never came up, the reason with what the guest last showed. A guest that was
lost is replaced once, for the tests that had not run; after an abort of the emulator the one
that was under way has not, and it is said.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.lab import machine
from tests.lab.errors import EmulatorError, GuestError, LabError
from tests.lab.machine import Job
from tests.lab.reports import FILE_VARIABLE, PID_FILE, STACKS_FILE, Reader, Record
from tests.lab.topology import Topology

_GUESTS: Final = 2
_START_TIMEOUT_S: Final = 180.0  # of pytest itself: 4 s when quiet, more under load
_DIAGNOSIS_TIMEOUT_S: Final = 15.0
_SHOWN_LINES: Final = 40

_DIAGNOSIS: Final = """\
kill -USR1 $(cat {out}/{pid}) && sleep 1 && cat {out}/{stacks}
echo; echo "processes of the guest:"
busybox ps -o pid,ppid,stat,args | busybox grep -v '[[].*[]]$'
for task in /proc/[0-9]*; do
    busybox grep -q '^State:.D' $task/status || continue
    echo; echo "blocked in the kernel: ${{task#/proc/}} $(busybox tr '\\0' ' ' <$task/cmdline)"
    busybox cat $task/stack
done
true
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A test to run in a guest."""

    node_id: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a test."""

    node_id: str
    records: tuple[Record, ...] = ()
    lost: str | None = None
    """Why there are no further records; None when the test came to its end."""


class Guest(Protocol):
    """What this needs of a guest; see machine.Guest."""

    out: Path
    """The shared folder, as the host sees it."""

    @property
    def inner_out(self) -> Path:
        """The shared folder, as the guest sees it."""
        ...

    def start(self, script: str) -> Job:
        """Start a shell script."""
        ...

    def status(self, job: Job) -> int | None:
        """Return a job's exit status; None while it runs. Waits a moment."""
        ...

    def run(self, script: str, *, timeout_s: float) -> str:
        """Return what a script prints."""
        ...

    def console(self) -> str:
        """Return what the guest's kernel printed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """How tests are run in guests."""

    topology: Topology
    boot: Callable[[], AbstractContextManager[Guest]]
    root: Path
    """The folder that node ids are relative to, and where pytest starts."""

    pytest_options: tuple[str, ...] = ()
    say: Callable[[str], None] = print
    """Takes what the reader of the results should know beside them."""


def run(session: Session, cases: tuple[Case, ...]) -> Iterator[Outcome]:
    """Yield the outcome of every case as it ends; closing the iterator ends the guest."""
    left = {case.node_id: case for case in cases}
    why = f"not run: {_GUESTS} guests were lost before it"
    for _ in range(_GUESTS):
        if not left:
            return
        try:
            with session.boot() as guest:
                for outcome in _Following(guest, session, tuple(left.values())).outcomes():
                    del left[outcome.node_id]
                    yield outcome
        except EmulatorError as error:
            why = str(error)
            session.say(f"a guest is replaced, and what it was at is run again: {error}")
        except LabError as error:
            why = str(error)
            break
    for node_id in left:
        yield Outcome(node_id, lost=why)


class _Following:
    """Follows one pytest in one guest to its end, or to the first test that is lost."""

    def __init__(self, guest: Guest, session: Session, cases: tuple[Case, ...]) -> None:
        self._guest = guest
        self._left = {case.node_id: case for case in cases}
        self._reader = Reader(guest.out / "reports")
        self._current: str | None = None
        self._records: list[Record] = []
        self._deadline = time.monotonic() + _START_TIMEOUT_S
        self._job = guest.start(
            machine.in_checkout(
                session.topology, _command(session, cases, guest.inner_out), session.root
            )
        )

    def outcomes(self) -> Iterator[Outcome]:
        """Yield outcomes; after a loss, those of the tests that did not start are missing."""
        while self._left:
            ended = self._ended()
            yield from self._finished()
            if not self._left:
                return
            if ended is not None:
                yield from self._lost(ended, also_those_not_started=self._current is None)
                return
            if time.monotonic() >= self._deadline:
                yield from self._lost(self._overdue(), also_those_not_started=False)
                return

    def _ended(self) -> str | None:
        """Return how pytest ended; None while it runs."""
        try:
            status = self._guest.status(self._job)
        except EmulatorError:
            raise
        except GuestError as error:
            return str(error)
        if status is None:
            return None
        return f"pytest in the guest ended with status {status} before this test's end"

    def _finished(self) -> Iterator[Outcome]:
        for record in self._reader.new():
            match record.kind:
                case "start":
                    self._current = record.node_id
                    self._records = []
                    self._deadline = time.monotonic() + self._left[record.node_id].timeout_s
                case "report":
                    self._records.append(record)
                case "finish":
                    del self._left[record.node_id]
                    self._current = None
                    self._deadline = time.monotonic() + _START_TIMEOUT_S
                    yield Outcome(record.node_id, tuple(self._records))

    def _lost(self, why: str, *, also_those_not_started: bool) -> Iterator[Outcome]:
        text = f"{why}\n{self._printed()}\n{machine.tail(self._guest.console())}"
        if also_those_not_started:  # it would be the same in another guest
            for node_id in self._left:
                yield Outcome(node_id, lost=text)
            return
        node_id = self._current or next(iter(self._left))
        yield Outcome(node_id, tuple(self._records), lost=text)

    def _overdue(self) -> str:
        """Say what hangs, with what can still be learned from the guest.

        Raises:
            EmulatorError: the guest answers nothing any more. Seen of QEMU 7.2 with virtual
                functions of its NVMe controller, whose queues then stop.
        """
        timeout_s = self._left[self._current].timeout_s if self._current else _START_TIMEOUT_S
        why = f"not done after {timeout_s:g} s, the guest was ended"
        script = _DIAGNOSIS.format(out=self._guest.inner_out, pid=PID_FILE, stacks=STACKS_FILE)
        try:
            return f"{why}\n{self._guest.run(script, timeout_s=_DIAGNOSIS_TIMEOUT_S)}"
        except GuestError as error:
            console = machine.tail(self._guest.console())
            raise EmulatorError(f"{why}: it answers nothing: {error}\n{console}") from error

    def _printed(self) -> str:
        if not self._job.output.exists():
            return "pytest printed nothing"
        lines = self._job.output.read_text(errors="replace").splitlines()
        return "\n".join(("pytest's output, its end:", *lines[-_SHOWN_LINES:]))


# its pytest plugin takes 4 s to import under emulation; tests that use hypothesis run without it
_NOT_LOADED: Final = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")


def _command(session: Session, cases: tuple[Case, ...], out: Path) -> str:
    argv = (
        *(sys.executable, "-m", "pytest", "-p", "tests.lab.plugin", *_NOT_LOADED),
        *("-q", "-m", "", "-k", "", "--maxfail=0", *session.pytest_options, "--"),
        *(case.node_id for case in cases),
    )
    return f"{FILE_VARIABLE}={out}/reports {shlex.join(argv)}"
