"""Operations on sysfs that may never return, in processes that may be left behind.

An unbind waits for the device's last user, beyond SIGKILL; while it does, every read or
store that takes the same lock waits too. So each store, and each read that takes a lock,
happens in a child that has nothing else to do. A child that is late is left to the kernel:
it holds no descriptor of ours (one that held the VFIO node would wait for itself), and it
says by itself what it does, so that a later agent knows it again: its name is
``kata-gpu-store`` or ``kata-gpu-read``, and it has a nameless file open whose name is the
attribute and the value.

A process with threads must not fork, so `Children.start` forks a forker while there are
none; without it this process forks by itself.

Source: vfio_unregister_group_dev in Linux drivers/vfio/vfio_main.c; device_lock in
drivers/base/core.c; memfd_create(2).
"""

import errno
import os
import re
import select
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from kata_gpu.errors import EndingError, HostError, KataGpuError, StuckError
from kata_gpu.model.operation import Operation

Answer = str | KataGpuError
"""The text of an attribute, or why there is none: StuckError when it does not answer."""

_STORE: Final = b"kata-gpu-store"
_READ: Final = b"kata-gpu-read"
_LABEL: Final = "kata-gpu:"
_LINK: Final = re.compile(r"/memfd:kata-gpu:([\w:./-]+)(?:=([ -~]*?))?(?: \(deleted\))?", re.ASCII)
_SYMBOL: Final = re.compile(r"[A-Za-z_][\w.]{0,127}", re.ASCII)
_LABEL_MAX_BYTES: Final = 249  # memfd_create(2)
_REQUEST_MAX_BYTES: Final = 65536
_PATHS_AT_ONCE: Final = 300
_ATTRIBUTE_MAX_BYTES: Final = 4096
_FRAME: Final = struct.Struct("=iiH")
"""Number of the operation, errno, length of the text that follows."""

_PID: Final = -1
_NAMES: Final = frozenset({_STORE.decode(), _READ.decode()})
_START_TIME: Final = 19
"""Index of starttime in /proc/PID/stat after the command, proc(5)."""


class Children:
    """Starts the children and waits for them, but not for ever."""

    def __init__(self, *, root: Path, timeout_s: float) -> None:
        self._root = root
        self._timeout_s = timeout_s
        self._forker: socket.socket | None = None
        self._end: tuple[int, int] | None = None
        """A pipe that is closed at one end when nobody waits any more."""

    def start(self) -> int:
        """Fork the forker and return its pid; to be called before there is any thread.

        It ends with this process, or with `stop`.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _serve(theirs)
        theirs.close()
        self._forker = ours
        self._end = os.pipe2(os.O_CLOEXEC)
        return pid

    def give_up(self) -> None:
        """Leave every operation to its child, and begin none any more: the agent ends."""
        if self._end is not None and self._end[1] >= 0:
            reading, writing = self._end
            self._end = (reading, -1)  # first: who wakes by the close asks whether it ends
            os.close(writing)

    def stop(self) -> None:
        """Let the forker end; what its children do goes on."""
        if self._forker is not None:
            self._forker.close()
            self._forker = None
        self.give_up()
        if self._end is not None:
            os.close(self._end[0])
            self._end = None

    def write(self, attribute: str, value: bytes) -> None:
        """Store *value* in one write.

        Raises:
            HostError: the store answered with an errno (the OSError is the cause), or its
                process was killed.
            StuckError: it did not answer in time, and goes on; EndingError: or was not begun.
        """
        ((_, answer),) = self._ask(_STORE, [attribute], value)
        if isinstance(answer, KataGpuError):
            raise answer

    def read(self, attributes: Sequence[str]) -> dict[str, Answer]:
        """Return the text of each attribute without its final newline, or why there is none.

        Raises:
            EndingError: nobody waits any more; what is not known must not look like what is.
        """
        found: dict[str, Answer] = {}
        for start in range(0, len(attributes), _PATHS_AT_ONCE):
            pending = attributes[start : start + _PATHS_AT_ONCE]
            while pending:  # what stands behind one that hangs is read by another child
                answers = dict(self._ask(_READ, pending, b""))
                for answer in answers.values():
                    if isinstance(answer, EndingError):
                        raise answer
                found.update(answers)
                pending = [attribute for attribute in pending if attribute not in answers]
        return found

    def _ask(
        self, name: bytes, attributes: Sequence[str], value: bytes
    ) -> Iterator[tuple[str, Answer]]:
        """Yield each attribute with its answer; after one that hangs the rest is left out."""
        if self._end is not None and self._end[1] < 0:
            yield attributes[0], self._left(attributes[0], 0)
            return
        words = [name, value.hex().encode(), os.fsencode(self._root), *map(os.fsencode, attributes)]
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                own_child = self._spawn(b"\0".join(words), writing)
            finally:
                os.close(writing)
            yield from self._answers(reading, attributes, value)
            if own_child is not None:
                os.waitpid(own_child, os.WNOHANG)
        finally:
            os.close(reading)

    def _answers(
        self, reading: int, attributes: Sequence[str], value: bytes
    ) -> Iterator[tuple[str, Answer]]:
        pid = 0
        done = 0
        try:
            for number, code, text in _frames(reading, self._ending(), self._timeout_s):
                if number == _PID:
                    pid = code
                    continue
                done = number + 1
                yield attributes[number], self._answer(attributes[number], value, code, text)
        except TimeoutError:
            yield attributes[done], self._left(attributes[done], pid)
            return
        if done < len(attributes):
            yield (
                attributes[done],
                HostError(
                    f"process {pid} was killed while it did this; see the kernel's log (dmesg)"
                ),
            )

    def _ending(self) -> int | None:
        """Return the descriptor that is readable when nobody waits any more."""
        return None if self._end is None else self._end[0]

    def _left(self, attribute: str, pid: int) -> StuckError:
        if self._end is not None and self._end[1] < 0:
            return EndingError(f"cannot wait for {attribute}: the agent ends", pid)
        return StuckError(
            f"cannot wait longer than {self._timeout_s:g} s for {attribute}: process {pid} waits "
            f"on in the kernel, where nothing can end it",
            pid,
        )

    def _answer(self, attribute: str, value: bytes, code: int, text: bytes) -> Answer:
        if code == 0:
            return text.decode("latin-1").removesuffix("\n")
        what = f"write {value.decode('latin-1')!r} to" if value else "read"
        error = HostError(f"cannot {what} {self._root / attribute}: {os.strerror(code)}")
        error.__cause__ = OSError(code, os.strerror(code))
        return error

    def _spawn(self, request: bytes, writing: int) -> int | None:
        """Start a child; return its pid when it is this process's own."""
        if self._forker is None:
            return _fork_child(request, writing)
        try:
            socket.send_fds(self._forker, [request], [writing])
        except OSError as error:
            raise HostError(
                f"cannot read or change anything: the process that starts children is gone "
                f"({error.strerror}); restart the agent"
            ) from error
        return None


def leftovers(proc: Path) -> tuple[Operation, ...]:
    """Return what children of this agent, or of an earlier one, still wait for.

    Raises:
        HostError: the processes cannot be listed, so nothing is known to be safe.
    """
    found = []
    try:
        names = os.listdir(proc)
    except OSError as error:
        raise HostError(f"cannot list {proc}: {error.strerror}") from error
    for process in sorted(filter(str.isdigit, names), key=int):
        if _first_line(f"{proc}/{process}/comm") in _NAMES:
            operation = _operation(proc, process)
            if operation is not None:
                found.append(operation)
    return tuple(found)


# In the parent


def _frames(reading: int, ending: int | None, timeout_s: float) -> Iterator[tuple[int, int, bytes]]:
    """Yield what the child says until it ends.

    TimeoutError when it says nothing for so long, or *ending* says to wait no more.
    """
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    if ending is not None:
        poll.register(ending, select.POLLIN)
    buffer = b""
    while True:
        while len(buffer) >= _FRAME.size:
            number, code, length = _FRAME.unpack_from(buffer)
            if len(buffer) < _FRAME.size + length:
                break
            yield number, code, buffer[_FRAME.size : _FRAME.size + length]
            buffer = buffer[_FRAME.size + length :]
        if reading not in dict(poll.poll(timeout_s * 1000)):
            raise TimeoutError
        said = os.read(reading, 65536)
        if not said:
            return
        buffer += said


def _operation(proc: Path, process: str) -> Operation | None:
    """Return what a child says that it does; None for one that ends, or is not ours."""
    folder = proc / process
    try:
        if folder.stat().st_uid != os.geteuid():
            return None
        targets = [os.readlink(folder / "fd" / name) for name in os.listdir(folder / "fd")]
    except OSError:
        return None
    for target in targets:
        label = _LINK.fullmatch(target)
        if label is not None:
            channel = _first_line(folder / "wchan")
            return Operation(
                pid=int(process),
                attribute=label[1],
                value=label[2],
                age_s=_age_s(proc, process),
                wait_channel=channel if _SYMBOL.fullmatch(channel) else None,
            )
    return None


def _age_s(proc: Path, process: str) -> float:
    """Return how long a process has been there; 0 where that cannot be told."""
    fields = _first_line(proc / process / "stat").rpartition(")")[2].split()
    uptime = _first_line(proc / "uptime").split()
    try:
        started_s = int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(uptime[0]) - started_s)
    except (ValueError, IndexError):
        return 0.0


def _first_line(path: Path | str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:  # of every process, where pathlib is slow
            return file.read().partition(b"\n")[0].decode(errors="replace")
    except OSError:
        return ""


# In the forker, and in its children


def _serve(control: socket.socket) -> NoReturn:
    """Fork a child for each request until the agent ends."""
    leave_everything(but=control.fileno())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _REQUEST_MAX_BYTES, 1)
        if not request:
            os._exit(0)
        _fork_child(request, *descriptors)
        os.close(*descriptors)


def leave_everything(*, but: int) -> None:
    """Have no descriptor but one, no terminal, no folder and nobody's signals."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, but)
    os.closerange(but + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _fork_child(request: bytes, writing: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            leave_everything(but=writing)
            _do(request, writing)
        finally:
            os._exit(0)
    return pid


def _do(request: bytes, writing: int) -> None:
    name, value_hex, root, *attributes = request.split(b"\0")
    value = bytes.fromhex(value_hex.decode())
    said = value.decode("latin-1").encode("unicode_escape")  # a name has no NUL and no newline
    os.write(writing, _FRAME.pack(_PID, os.getpid(), 0))
    with open("/proc/self/comm", "wb", buffering=0) as comm:
        comm.write(name)
    for number, attribute in enumerate(attributes):
        label = _LABEL.encode() + attribute + (b"=" + said if name == _STORE else b"")
        described = os.memfd_create(os.fsdecode(label[:_LABEL_MAX_BYTES]))
        code, text = 0, b""
        try:
            text = _touch(root + b"/" + attribute, value)
        except OSError as error:
            code = error.errno or errno.EIO
        os.close(described)
        os.write(writing, _FRAME.pack(number, code, len(text)) + text)


def _touch(path: bytes, value: bytes) -> bytes:
    """Store *value*, or read where there is none."""
    mode = os.O_WRONLY if value else os.O_RDONLY
    fd = os.open(path, mode | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if value:
            os.write(fd, value)
            return b""
        return os.read(fd, _ATTRIBUTE_MAX_BYTES)
    finally:
        os.close(fd)
