"""Operations on sysfs that may never return, in processes that may be left behind.

An unbind waits for the device's last user, beyond SIGKILL; while it does, every read or
store that takes the same lock waits too. So each store, and each read that takes a lock,
happens in a child that has nothing else to do. A child that is late is left to the kernel:
it holds no descriptor of ours (one that held the VFIO node would wait for itself), and it
says by itself what it does, so that a later agent knows it again: its name is
``kata-gpu-store``, ``kata-gpu-read`` or ``kata-gpu-peek``, and it has a nameless file open
whose name is the attribute and the value.

A process with threads must not fork, so `Children.start` forks a forker while there are
none; without it this process forks by itself.

Source: vfio_unregister_group_dev in Linux drivers/vfio/vfio_main.c; device_lock in
drivers/base/core.c; memfd_create(2).
"""

import os
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kata_gpu.errors import EndingError, HostError, KataGpuError, StuckError
from kata_gpu.host import child

if TYPE_CHECKING:
    from kata_gpu.host.forker import Forker

Answer = str | KataGpuError
"""The text of an attribute, or why there is none: StuckError when it does not answer."""

_PATHS_AT_ONCE: Final = 300


class Children:
    """Starts the children and waits for them, but not for ever."""

    def __init__(self, *, root: Path, timeout_s: float) -> None:
        self._root = root
        self._timeout_s = timeout_s
        self._forker: Forker | None = None
        self._end: tuple[int, int] | None = None
        """A pipe that is closed at one end when nobody waits any more."""

    def start(self) -> int:
        """Fork the forker and return its pid; to be called before there is any thread.

        It ends with this process, or with `stop`.
        """
        from kata_gpu.host.forker import Forker  # noqa: PLC0415 - who only looks needs none

        self._forker = Forker()
        self._end = os.pipe2(os.O_CLOEXEC)
        return self._forker.pid

    def give_up(self) -> None:
        """Leave every operation to its child, and begin none any more: the agent ends."""
        if self._end is not None and self._end[1] >= 0:
            reading, writing = self._end
            self._end = (reading, -1)  # first: who wakes by the close asks whether it ends
            os.close(writing)

    def stop(self) -> None:
        """Let the forker end; what its children do goes on."""
        if self._forker is not None:
            self._forker.stop()
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
        self._one(child.STORE, attribute, value)

    def peek(self, resource: str, offset: int = 0) -> str:
        """Return a register behind the file of a BAR: ``0x`` and eight hex digits.

        Raises:
            HostError, StuckError, EndingError: as for `write`.
            ValueError: *offset*, in bytes, is no register's.
        """
        return self._one(child.PEEK, resource, child.offset_bytes(offset))

    def _one(self, name: bytes, attribute: str, value: bytes) -> str:
        with self._asked(name, [attribute], value) as answers:
            ((_, answer),) = answers
        if isinstance(answer, KataGpuError):
            raise answer
        return answer

    def read(self, attributes: Sequence[str]) -> dict[str, Answer]:
        """Return the text of each attribute without its final newline, or why there is none.

        Raises:
            EndingError: nobody waits any more; what is not known must not look like what is.
        """
        with self.reading(attributes) as texts:
            return texts()

    @contextmanager
    def reading(self, attributes: Sequence[str]) -> Iterator[Callable[[], dict[str, Answer]]]:
        """Begin to `read`; what this yields waits for the texts, so do something else first."""
        with self._asked(child.READ, attributes[:_PATHS_AT_ONCE], b"") as answers:
            yield lambda: self._texts(attributes, answers)

    def _texts(
        self, attributes: Sequence[str], begun: Iterable[tuple[str, Answer]]
    ) -> dict[str, Answer]:
        found = dict(begun)
        while not any(isinstance(answer, EndingError) for answer in found.values()):
            # what stands behind one that hangs is read by another child
            pending = [attribute for attribute in attributes if attribute not in found]
            if not pending:
                return found
            with self._asked(child.READ, pending[:_PATHS_AT_ONCE], b"") as answers:
                found.update(answers)
        raise next(answer for answer in found.values() if isinstance(answer, EndingError))

    @contextmanager
    def _asked(
        self, name: bytes, attributes: Sequence[str], value: bytes
    ) -> Iterator[Iterator[tuple[str, Answer]]]:
        """Start a child; what this yields waits for the answer about each attribute.

        After one that hangs the rest is left out.
        """
        if not attributes or (self._end is not None and self._end[1] < 0):
            yield iter([(attribute, self._left(attribute, 0)) for attribute in attributes[:1]])
            return
        words = [name, value.hex().encode(), os.fsencode(self._root), *map(os.fsencode, attributes)]
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                own_child = self._spawn(b"\0".join(words), writing)
            finally:
                os.close(writing)
            yield self._answers(reading, attributes, value if name == child.STORE else b"")
            if own_child is not None:
                os.waitpid(own_child, os.WNOHANG)
        finally:
            os.close(reading)

    def _answers(
        self, reading: int, attributes: Sequence[str], value: bytes
    ) -> Iterator[tuple[str, Answer]]:
        pid = 0
        done = 0
        is_late = False
        try:
            for number, code, text in _frames(reading, self._ending(), self._timeout_s):
                if number == child.PID:
                    pid = code
                    continue
                done = number + 1
                yield attributes[number], self._answer(attributes[number], value, code, text)
        except TimeoutError:
            is_late = True
        if done == len(attributes):
            return  # one that has answered all may take its time to end
        if is_late:
            yield attributes[done], self._left(attributes[done], pid)
            return
        killed = f"process {pid} was killed while it did this; see the kernel's log (dmesg)"
        yield attributes[done], HostError(killed)

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
            return child.fork(request, writing)
        self._forker.fork(request, writing)
        return None


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
        while len(buffer) >= child.FRAME.size:
            number, code, length = child.FRAME.unpack_from(buffer)
            if len(buffer) < child.FRAME.size + length:
                break
            yield number, code, buffer[child.FRAME.size : child.FRAME.size + length]
            buffer = buffer[child.FRAME.size + length :]
        if reading not in dict(poll.poll(timeout_s * 1000)):
            raise TimeoutError
        said = os.read(reading, 65536)
        if not said:
            return
        buffer += said
