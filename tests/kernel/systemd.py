"""The host's systemd as systemctl shows it: it refuses what the real one refuses.

Words and exit statuses as of systemd 252; what is not modelled is an AssertionError.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from tests.kernel.fake import FakeKernel

SYSTEMCTL: Final = ("/usr/bin/env", "SYSTEMD_IGNORE_CHROOT=1", "/usr/bin/systemctl")

_FAILED: Final = 1
_NOT_LOADED: Final = 5


class Systemd:
    """Services of a fake kernel's host; each that runs is a process with device nodes open."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._nodes: dict[str, tuple[Path, ...]] = {}
        self._pids: dict[str, int] = {}
        self.masked: set[str] = set()
        self.refused: set[str] = set()
        """Services whose jobs fail."""
        self.deaf = False
        """Whether every job is said to be done and is not, as in a chroot."""
        self.is_there = True
        self.restarts: list[str] = []
        """Every service that was restarted, or was to be."""
        self.may_start: Callable[[str], bool] = lambda _: True
        """Tells whether a service comes up when it is restarted: it may not like a file."""
        self._entered_us: dict[str, int] = {}

    def install(self, name: str, nodes: Iterable[Path] = (), *, running: bool = True) -> None:
        """Give the host a service that has *nodes* open while it runs."""
        self._nodes[name] = tuple(nodes)
        if running:
            self._start(name)

    def uninstall(self, name: str) -> None:
        """Take a service that does not run away."""
        del self._nodes[name]

    @property
    def running(self) -> set[str]:
        """The services that run."""
        return set(self._pids)

    def run(self, argv: tuple[str, ...]) -> str:
        """Answer as systemctl; HostError as `kata_gpu.host.commands.run` makes it of failures."""
        assert argv[:3] == SYSTEMCTL, argv
        if not self.is_there:
            raise _ended(argv, _FAILED, "System has not been booted with systemd as init system")
        match argv[3:]:
            case ["show", "-p", "LoadState", "-p", "ActiveState", "--", name]:
                active = "active" if name in self._pids else "inactive"
                return f"LoadState={self._load_state(name)}\nActiveState={active}\n"
            case ["show", "-p", state, "-p", entered, "-p", pid, "--", name]:
                asked = (state, entered, pid)
                assert asked == ("ActiveState", "ActiveEnterTimestampMonotonic", "MainPID"), asked
                active = "active" if name in self._pids else "inactive"
                return (
                    f"MainPID={self._pids.get(name, 0)}\nActiveState={active}\n"
                    f"ActiveEnterTimestampMonotonic={self._entered_us.get(name, 0)}\n"
                )
            case ["--no-ask-password", "restart", "--", name]:
                self._restart(argv, name)
                return ""
            case ["--no-ask-password", "start" | "stop" as verb, "--", name]:
                self._do(argv, verb, name)
                return ""
            case _:
                raise AssertionError(f"not modelled: run {' '.join(argv)}")

    def _load_state(self, name: str) -> str:
        if name in self.masked:
            return "masked"
        return "loaded" if name in self._nodes else "not-found"

    def _do(self, argv: tuple[str, ...], verb: str, name: str) -> None:
        match self._load_state(name), verb:
            case "not-found", "stop":
                raise _ended(argv, _NOT_LOADED, f"Unit {name} not loaded.")
            case "not-found", _:
                raise _ended(argv, _NOT_LOADED, f"Unit {name} not found.")
            case "masked", "start":
                raise _ended(argv, _FAILED, f"Unit {name} is masked.")
            case _ if name in self.refused:
                raise _ended(argv, _FAILED, f"Job for {name} failed.")
            case _ if self.deaf or (verb == "start") == (name in self._pids):
                return
            case _, "start":
                self._start(name)
            case _:
                self._kernel.tree.remove_process(self._pids.pop(name))

    def _restart(self, argv: tuple[str, ...], name: str) -> None:
        self.restarts.append(name)
        if name in self._pids:
            self._do(argv, "stop", name)
        if not self.may_start(name):
            raise _ended(argv, _FAILED, f"Job for {name} failed.")
        self._do(argv, "start", name)

    def _start(self, name: str) -> None:
        self._entered_us[name] = time.monotonic_ns() // 1000
        cgroup = f"/system.slice/{name}"
        self._pids[name] = self._kernel.spawn(name, *self._nodes[name], cgroup=cgroup)


def _ended(argv: tuple[str, ...], status: int, said: str) -> HostError:
    return HostError(f"cannot run {' '.join(argv)}: exit status {status}: {said}")
