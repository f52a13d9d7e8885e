"""A guest, from outside: boot it, run jobs in it, ask its monitor, end it.

The guest sees the host's root read-only under a writable overlay that is thrown away, and
one folder of the host, writable, through which jobs and their output go. Whatever happens
in the guest, leaving the ``with`` block ends it: QEMU is killed, nothing in it is waited for.
"""

import codecs
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from tests.lab import bring_up, identities, process, qemu
from tests.lab.errors import EmulatorError, GuestError
from tests.lab.kernel import Kernel
from tests.lab.topology import Topology, places

BOOT_TIMEOUT_S: Final = 120.0  # 5 to 8 s when quiet, 20 s seen under load
_POLL_S: Final = 0.05
_END_TIMEOUT_S: Final = 5.0
_DISK_SIZE: Final = 64 << 20
_DISK_CONTENT: Final = b"kata-gpu lab disk\n"
_GUEST_INIT: Final = Path(__file__).parent / "guest/init"
CHECKOUT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Job:
    """A command that was started in the guest."""

    name: str
    output: Path
    """A file of the host that grows with what the command prints."""

    @contextmanager
    def following(self, sink: TextIO) -> Iterator[Callable[[], None]]:
        """Give a function that passes on what was printed since its last call."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.output.touch()
        with self.output.open("rb") as file:

            def follow() -> None:
                sink.write(decoder.decode(file.read()))
                sink.flush()

            yield follow
            follow()


class Guest:
    """A guest that runs; made by `booted`."""

    def __init__(
        self,
        out: Path,
        process_: "subprocess.Popen[bytes]",
        control: socket.socket,
        monitor: socket.socket,
    ) -> None:
        self.out = out
        self._process = process_
        self._control = control
        self._monitor = monitor
        self._unread = b""
        self._jobs = 0
        self._statuses: dict[str, int] = {}

    @property
    def inner_out(self) -> Path:
        """Where the guest sees the shared folder."""
        return Path("/run/lab/out")

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._process.pid

    def start(self, script: str) -> Job:
        """Start a shell script in the guest; any number may run at once."""
        self._jobs += 1
        job = Job(name=str(self._jobs), output=self.out / str(self._jobs) / "output")
        job.output.parent.mkdir()
        _write_script(job.output.parent / "run", script)
        self._control.sendall(f"run {job.name}\n".encode())
        return job

    def status(self, job: Job, *, wait_s: float = _POLL_S) -> int | None:
        """Return the job's exit status; None if it still runs after *wait_s*.

        Raises:
            GuestError: the guest has died.
        """
        deadline = time.monotonic() + wait_s
        while job.name not in self._statuses:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            line = self._read_line(left_s)
            match line.split() if line else None:
                case ["done", name, status]:
                    self._statuses[name] = int(status)
                case _:
                    continue
        return self._statuses[job.name]

    def run(self, script: str, *, timeout_s: float) -> str:
        """Return what the script prints; raise GuestError if it fails or is not done in time."""
        job = self.start(script)
        status = self.status(job, wait_s=timeout_s)
        printed = job.output.read_text(errors="replace") if job.output.exists() else ""
        if status != 0:
            how = f"status {status}" if status is not None else f"not done after {timeout_s:g} s"
            raise GuestError(f"cannot run {script!r} in the guest: {how}: {printed}")
        return printed

    def become_terminal(self, script: str, rows: int, columns: int) -> socket.socket:
        """Turn the control line into a terminal for the script; no jobs from here on."""
        _write_script(self.out / "shell", script)
        self._control.sendall(f"shell {rows} {columns}\n".encode())
        return self._control

    def qmp(self, command: str, **arguments: object) -> Any:
        """Return the result of a command of QEMU's monitor."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._monitor.sendall(json.dumps(request).encode() + b"\n")
            for line in self._monitor_lines():
                if "error" in line:
                    raise GuestError(f"cannot {command}: {line['error']['desc']}")
                if "return" in line:
                    return line["return"]
        except OSError as error:
            raise self._died(f"its monitor failed: {error}") from error
        raise self._died("its monitor closed")

    def console(self) -> str:
        """Return what the guest's kernel printed."""
        path = self.out / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def _read_line(self, timeout_s: float) -> str | None:
        """Return the next line of the control line; None when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            self._control.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._control.recv(4096)
            except TimeoutError:
                return None
            except OSError as error:
                raise self._died(str(error)) from error
            if not received:
                raise self._died("QEMU ended")
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip()

    def wait_ready(self, timeout_s: float) -> None:
        """Return when the guest takes commands."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._read_line(left_s) == "ready":
                return
        raise self._died(f"it was not ready after {timeout_s:g} s")

    def _monitor_lines(self) -> Iterator[dict[str, Any]]:
        self._monitor.settimeout(60)
        with self._monitor.makefile("rb") as file:
            for line in file:
                yield json.loads(line)

    def _died(self, why: str) -> GuestError:
        log = (self.out / "qemu.log").read_text(errors="replace")
        text = f"the guest died: {why}\n{log}{tail(self.console())}"
        return EmulatorError(text) if self._aborted() else GuestError(text)

    def _aborted(self) -> bool:
        """Tell whether the emulator ended by an assertion of its own."""
        try:
            return self._process.wait(_END_TIMEOUT_S) == -signal.SIGABRT
        except subprocess.TimeoutExpired:
            return False


def _write_script(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def in_checkout(topology: Topology, command: str, folder: Path = CHECKOUT) -> str:
    """Return the script that runs the command in the guest, in the checkout or *folder*."""
    variables = (f"{name}={shlex.quote(value)}" for name, value in _environment(topology).items())
    return f"cd {shlex.quote(str(folder))} && exec env -i {' '.join(variables)} {command}"


def _environment(topology: Topology) -> dict[str, str]:
    return {
        "PATH": process.ENVIRONMENT["PATH"],
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "TMPDIR": "/run/lab/tmp",
        "PYTHONPATH": str(CHECKOUT),
        "KATA_GPU_LAB_GUEST": topology.name,
    }


def tail(console: str, lines: int = 30) -> str:
    """Return the end of a console, under a heading."""
    return "\n".join(("console of the guest, its end:", *console.splitlines()[-lines:]))


@contextmanager
def booted(topology: Topology, kernel: Kernel, accelerator: str) -> Iterator[Guest]:
    """Boot a guest with its devices on their host drivers; kill it at the end.

    Raises:
        GuestError: it did not come up; the text has its console.
    """
    out = Path(tempfile.mkdtemp(prefix="kata-gpu-lab-"))
    try:
        with _started(topology, kernel, accelerator, out) as guest:
            _bring_up(guest, topology)
            yield guest
    finally:
        shutil.rmtree(out, ignore_errors=True)


@contextmanager
def booted_with_retry(topology: Topology, kernel: Kernel, accelerator: str) -> Iterator[Guest]:
    """Boot as `booted` does; a boot that fails is tried once more, without KVM."""
    context = booted(topology, kernel, accelerator)
    try:
        guest = context.__enter__()
    except GuestError:
        context = booted(topology, kernel, "tcg")
        guest = context.__enter__()
    try:
        yield guest
    finally:
        context.__exit__(None, None, None)


@contextmanager
def _started(topology: Topology, kernel: Kernel, accelerator: str, out: Path) -> Iterator[Guest]:
    (out / "disk").write_bytes(_DISK_CONTENT)
    os.truncate(out / "disk", _DISK_SIZE)
    control, control_far = socket.socketpair()
    monitor, monitor_far = socket.socketpair()
    inner, inner_far = socket.socketpair()
    boot = qemu.Boot(
        vmlinux=kernel.vmlinux,
        initramfs=kernel.initramfs,
        modules=kernel.modules,
        init=_GUEST_INIT,
        root=Path("/"),
        out=out,
    )
    far = (control_far, monitor_far, inner, inner_far)
    lines = qemu.Lines(
        control=control_far.fileno(),
        monitor=monitor_far.fileno(),
        inner_monitor=inner.fileno(),
        inner_serial=inner_far.fileno(),
    )
    cpus = min(2, os.cpu_count() or 1)
    argv = ("qemu-system-x86_64", *qemu.arguments(topology, boot, lines, accelerator, cpus))
    with control, monitor, (out / "qemu.log").open("wb") as log:
        child = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", *argv),
            env=process.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[end.fileno() for end in far],
            start_new_session=True,  # an interrupt at the keyboard is for us
        )
        for end in far:
            end.close()
        try:
            yield Guest(out, child, control, monitor)
        finally:
            child.kill()
            child.wait()


def _bring_up(guest: Guest, topology: Topology) -> None:
    """Take a stopped guest to where tests start."""
    changes = {
        place.role: identities.Change(place.function.model.emulates, place.function.identity)
        for place in places(topology)
        if place.function is not None and place.function.shown and place.function.identity
    }
    guest.qmp("qmp_capabilities")
    identities.give(guest.pid, changes)
    guest.qmp("cont")
    guest.wait_ready(BOOT_TIMEOUT_S)
    guest.run(bring_up.script(topology), timeout_s=60)
