"""Services of the host's systemd.

systemctl as root talks to systemd's own socket in /run/systemd, and to no bus. In a container that
sees the host's processes it takes itself to be in a chroot and would do nothing, and call
that success; SYSTEMD_IGNORE_CHROOT tells it otherwise.

Source: systemctl(1); docs/ENVIRONMENT.md, src/basic/virt.c and src/shared/bus-util.c of systemd.
"""

import time
from dataclasses import dataclass
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, cgroups, procfs

_SYSTEMCTL: Final = ("/usr/bin/env", "SYSTEMD_IGNORE_CHROOT=1", "/usr/bin/systemctl")
_LOOK_TIMEOUT_S: Final = 10.0
_CHANGE_TIMEOUT_S: Final = 100.0  # systemd kills what has not stopped after 90 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What systemd says of a service."""

    load_state: str
    active_state: str

    @property
    def is_running(self) -> bool:
        """Whether it has processes, or may have them in a moment."""
        return self.active_state not in {"inactive", "failed"}

    @property
    def can_start(self) -> bool:
        """Whether it is installed, and no admin forbids it."""
        return self.load_state not in {"not-found", "masked"}


def read(host: Host, name: str) -> Service:
    """Return the state of a service; one that is not installed does not run.

    Raises:
        HostError: there is no systemd, or it does not answer.
    """
    argv = (*_SYSTEMCTL, "show", "-p", "LoadState", "-p", "ActiveState", "--", name)
    try:
        said = host.run(argv, timeout_s=_LOOK_TIMEOUT_S)
    except HostError as error:
        raise HostError(
            f"cannot ask the host's systemd about {name} ({error}); in a pod mount its "
            f"/run/systemd, and where there is no systemd name no services"
        ) from error
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if not {"LoadState", "ActiveState"} <= found.keys():
        raise HostError(f"cannot read systemd's answer about {name}: {said!r:.80}")
    return Service(load_state=found["LoadState"], active_state=found["ActiveState"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The last start of a service that runs."""

    at_monotonic_s: float
    main_process: tuple[int, int] | None
    """Its pid, and when the kernel started it, in ticks; None for what cannot be told.

    While there is such a process, the service was not started again.
    """

    @property
    def at_s(self) -> float:
        """Seconds since the epoch, as exact as the node's clock was steady since."""
        return time.time() - time.monotonic() + self.at_monotonic_s


def last_start(host: Host, name: str) -> Start | None:
    """Return when a service was started; None if it does not run.

    It is not asked again while its main process is the same.

    Raises:
        HostError: there is no systemd, or it does not answer.
    """

    def holds(kept: Start | None) -> bool:
        known = None if kept is None else kept.main_process
        return known is not None and known == _main_process(host, name, known[0])

    return host.answers.get(("last start", name), holds, lambda: _last_start(host, name))


def _main_process(host: Host, name: str, pid: int) -> tuple[int, int] | None:
    """Return what tells the process *pid* from others; None if it is not one of the service.

    A container may see processes of its own only, which have the same numbers.
    """
    proc = host.path("/proc")
    started = procfs.start_ticks(proc, pid)
    is_its = cgroups.service(procfs.process(proc, pid).cgroups) == name
    return (pid, started) if is_its and started is not None else None


def _last_start(host: Host, name: str) -> Start | None:
    asked = ("-p", "ActiveState", "-p", "ActiveEnterTimestampMonotonic", "-p", "MainPID")
    said = host.run((*_SYSTEMCTL, "show", *asked, "--", name), timeout_s=_LOOK_TIMEOUT_S)
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    word = found.get("ActiveEnterTimestampMonotonic", "")
    if found.get("ActiveState") != "active" or not word.isdecimal() or not int(word):
        return None
    pid = found.get("MainPID", "")
    return Start(
        at_monotonic_s=int(word) / 1e6,
        main_process=_main_process(host, name, int(pid)) if pid.isdecimal() else None,
    )


def stop(host: Host, name: str) -> None:
    """Stop a service and wait until its processes have ended; HostError as systemd refuses."""
    host.run((*_SYSTEMCTL, "--no-ask-password", "stop", "--", name), timeout_s=_CHANGE_TIMEOUT_S)


def start(host: Host, name: str) -> None:
    """Start a service and wait until it runs; HostError as systemd refuses."""
    host.run((*_SYSTEMCTL, "--no-ask-password", "start", "--", name), timeout_s=_CHANGE_TIMEOUT_S)


def restart(host: Host, name: str) -> None:
    """Restart a service and wait until it runs; HostError as systemd refuses."""
    host.run((*_SYSTEMCTL, "--no-ask-password", "restart", "--", name), timeout_s=_CHANGE_TIMEOUT_S)
