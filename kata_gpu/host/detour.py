"""A path that leads to our socket while this process serves there, and past us at any other time.

Others have the path in their configuration and read it whenever they start something, so it must
lead somewhere alive however we end. It is a symbolic link, replaced in one step. A guardian, a
child that waits for our end and does nothing else, sets it back after a kill -9, too.

What always holds:

- the link is changed under a lock, by who has looked first: a guardian that comes late takes
  nothing from a newer agent. The lock is a file, for whoever may read a folder can lock it;
- the link survives a reboot and our socket does not: a link that was left behind then leads
  nowhere, which is no socket, until an agent starts.

Source: connect(2) follows links; flock(2); an out-of-memory kill of a whole cgroup spares who has
-1000, Linux Documentation/admin-guide/cgroup-v2.rst, memory.oom.group.
"""

import fcntl
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from kata_gpu.errors import HostError
from kata_gpu.host import files, listeners
from kata_gpu.host.child import leave_everything

_STEM: Final = "pod-resources-"
_OWN: Final = re.compile(r"pod-resources-[0-9a-f]{8}\.sock", re.ASCII)
_NAME: Final = b"kata-gpu-guard"
_TRIES_MAX: Final = 600
_PAUSE_S: Final = 1.0
_READY: Final = b"!"
_START_TIMEOUT_S: Final = 10.0
_PATIENCE_S: Final = 2.0
_BLINK_S: Final = 0.01
LOCK: Final = ".lock"
"""What is added to the link's name for the lock's."""

_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
_DEAF_TO: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detour:
    """Where the link is and where it leads; all paths are the host's, below *root*."""

    root: Path
    link: str
    through: str
    """Our socket; its name is this process's alone."""

    around: str
    """The socket of who is asked when we are not."""

    def settle(self) -> None:
        """Have the link lead to somebody: where it leads to a dead socket, or is missing, around.

        A link through a live agent stays. Idempotent.

        Raises:
            HostError: it cannot be looked at or changed, or something else is at its place.
        """
        with self._locked() as folder:
            found = self._target(folder)
            if found != self.around and (found is None or not listeners.is_served(self.at(found))):
                self._lead(self.around, folder)

    def open(self) -> None:
        """Lead through us, who serve already; idempotent.

        Raises:
            HostError: as `settle`.
        """
        with self._locked() as folder:
            if self._target(folder) != self.through:
                self._lead(self.through, folder)

    def close(self) -> None:
        """Lead around us, if it leads through us; idempotent.

        Raises:
            HostError: as `settle`.
        """
        with self._locked() as folder:
            if self._target(folder) == self.through:
                self._lead(self.around, folder)

    def is_open(self) -> bool:
        """Tell whether the link leads through us now."""
        try:
            return os.readlink(self.at(self.link)) == self.through
        except OSError:
            return False

    def remove_socket(self) -> None:
        """Remove our socket, which nobody serves any more."""
        with suppress(OSError):
            self.at(self.through).unlink()

    def at(self, path: str) -> Path:
        """Return where one of the paths lies for us."""
        return self.root / path.removeprefix("/")

    @property
    def _name(self) -> str:
        return self.link.rpartition("/")[2]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the link's folder open, and alone."""
        parent = self.at(self.link).parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with (
                _opened(parent, os.O_RDONLY | os.O_DIRECTORY) as folder,
                _opened(f"{self._name}{LOCK}", _LOCK, folder) as lock,
            ):
                _take(lock)
                yield folder
        except OSError as error:
            raise HostError(
                f"cannot lead {self.link} to {self.through} or {self.around}: {error.strerror}"
            ) from error

    def _target(self, folder: int) -> str | None:
        """Return where the link leads; None where nothing is."""
        name = self._name
        try:
            if not stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode):
                raise HostError(
                    f"cannot lead {self.link} anywhere: it is no symbolic link; remove it"
                )
            return os.readlink(name, dir_fd=folder)
        except FileNotFoundError:
            return None

    def _lead(self, target: str, folder: int) -> None:
        temporary = f"{files.TEMPORARY}{os.urandom(8).hex()}"
        os.symlink(target, temporary, dir_fd=folder)
        try:
            os.rename(temporary, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)


class Guardian:
    """Closes a detour when this process is gone, however it went."""

    def __init__(self, detour: Detour) -> None:
        self.detour = detour
        self.pid: int | None = None
        """None where there is no guardian, or none any more."""

        self._ours: socket.socket | None = None
        """Its other end is the guardian's, who notices when nobody has this one any more."""

    def start(self) -> int:
        """Fork the guardian and return its pid; to be called before there is any thread.

        It is on guard when this returns. Where this process is the first of its PID namespace,
        the guardian ends with it.

        Raises:
            HostError: the guardian did not come up.
        """
        self._ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _guard(self.detour, theirs)
        theirs.close()
        self.pid = pid
        self._ours.settimeout(_START_TIMEOUT_S)
        try:
            if self._ours.recv(1) == _READY:
                return pid
            why = "it has ended"
        except OSError as error:
            why = str(error)
        self.stop()
        raise HostError(f"cannot guard {self.detour.link}: process {pid} does not start: {why}")

    def is_there(self) -> bool:
        """Tell whether the guardian lives; one that died is not made anew."""
        if self.pid is None:
            return False
        try:
            ended, _ = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it
            ended = self.pid
        if ended:
            self.pid = None
        return not ended

    def stop(self) -> None:
        """Let the guardian close the detour and end; idempotent.

        One that cannot close it goes on trying, and is not waited for.
        """
        if self._ours is not None:
            self._ours.close()
            self._ours = None
        until = time.monotonic() + _PATIENCE_S
        while self.is_there() and time.monotonic() < until:
            time.sleep(_BLINK_S)


def own_socket(directory: str) -> str:
    """Return a path in *directory* for a socket that no other agent has, also before or after."""
    return f"{directory}/{_STEM}{os.urandom(4).hex()}.sock"


def is_own_socket(name: str) -> bool:
    """Tell whether a file of that name is a socket of an agent's."""
    return _OWN.fullmatch(name) is not None


def sweep(directory: Path) -> list[Path]:
    """Remove such sockets in *directory* that nobody serves; return what was removed."""
    found = [directory / name for name in files.names(directory) if is_own_socket(name)]
    left = [path for path in found if path.is_socket() and not listeners.is_served(path)]
    for path in left:
        with suppress(OSError):
            path.unlink()
    return left


def _take(lock: int) -> None:
    """Take the lock; whoever has it has it for an instant, unless it is frozen."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(_BLINK_S)
        else:
            return


@contextmanager
def _opened(path: Path | str, how: int, folder: int | None = None) -> Iterator[int]:
    fd = os.open(path, how | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


# In the guardian


def _guard(detour: Detour, agent: socket.socket) -> NoReturn:
    """Wait until the other end of the channel is closed, which only the agent has."""
    try:
        leave_everything(but=agent.fileno())
        for number in _DEAF_TO:  # it ends when the agent has ended, and not before
            signal.signal(number, signal.SIG_IGN)
        _introduce()
        agent.send(_READY)
        agent.recv(1)
        for _ in range(_TRIES_MAX):
            with suppress(HostError):
                detour.close()
                detour.remove_socket()
                break
            time.sleep(_PAUSE_S)
    finally:
        os._exit(0)


def _introduce() -> None:
    """Say who this is, and ask to be spared where a whole cgroup is killed for its memory."""
    for path, value in (("comm", _NAME), ("oom_score_adj", b"-1000")):
        with suppress(OSError), open(f"/proc/self/{path}", "wb", buffering=0) as file:
            file.write(value)
