"""The kernel's attribute tree: read, write, list, follow a link. It knows no meaning.

Every path is relative to the root, so a test roots the tree in a folder of its own and
the code under test never learns of it. Attributes are read through their directory's
descriptor: on a node with thousands of functions that is most of the speed.

What comes back is the kernel's or a device's word and is untrusted: callers parse it
before it becomes a name, a path or a line of output.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kata_gpu.errors import HostError
from kata_gpu.host import child
from kata_gpu.host.children import Answer, Children

_ATTRIBUTE_MAX_BYTES = 4096  # a page, where sysfs ends every text attribute
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Sysfs:
    """One sysfs mount. Every method raises HostError where the kernel says no."""

    def __init__(self, root: Path = Path("/sys"), children: Children | None = None) -> None:
        self.root = root
        self._start = f"{root}/"
        self._children = children

    def read(self, path: str) -> str:
        """Return the text of an attribute without its final newline."""
        try:
            return _text(_read(os.open(self._at(path), _READ)))
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error

    def head(self, path: str, count: int) -> bytes:
        """Return the first *count* bytes of a binary attribute, or as many as there are."""
        try:
            return _read(os.open(self._at(path), _READ), count)
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error

    def attributes(
        self, directory: str, names: Iterable[str], *, optional: frozenset[str] = frozenset()
    ) -> dict[str, str]:
        """Return those of the named attributes that there are, in one visit.

        One of *optional* that answers with an error is left out as if it were missing.

        Raises:
            HostError: the directory is gone, or an attribute that is not optional answers
                with an error: what is unknown must not look like what is unset.
        """
        try:
            folder = os.open(self._at(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot read {directory}: {error.strerror}") from error
        found = {}
        try:
            for name in names:
                try:
                    found[name] = _text(_read(os.open(name, _READ, dir_fd=folder)))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if name not in optional:
                        raise HostError(
                            f"cannot read {directory}/{name}: {error.strerror}"
                        ) from error
        finally:
            os.close(folder)
        return found

    def locked(self, paths: Sequence[str]) -> dict[str, Answer]:
        """Read attributes that are shown under a lock, which somebody may hold for ever.

        One that does not answer is a StuckError among the answers; a missing one a HostError.

        Raises:
            EndingError: `give_up` was called.
        """
        with self.locking(paths) as answers:
            return answers()

    @contextmanager
    def locking(self, paths: Sequence[str]) -> Iterator[Callable[[], dict[str, Answer]]]:
        """Begin to read what is `locked`; what this yields waits for the answers.

        Whoever has something else to do meanwhile waits the less.
        """
        if self._children is None:
            yield lambda: {path: self._answer(path) for path in paths}
            return
        with self._children.reading(paths) as answers:
            yield answers

    def give_up(self) -> None:
        """Wait for no operation any more: each that runs or is asked for is an EndingError."""
        if self._children is not None:
            self._children.give_up()

    def write(self, path: str, value: str) -> None:
        """Store a value in a single write, which is how the kernel takes it.

        The attribute must exist (no O_CREAT): a misspelt path fails here instead of
        leaving a file behind. Without children it blocks for as long as the kernel does.

        Raises:
            HostError: the attribute is missing, or the store returned an errno.
            StuckError: the store does not return, and may yet do what was asked; EndingError:
                or nobody waits for it any more.
            ValueError: the value is empty, so the kernel would never see it
                (sysfs_kf_write in Linux fs/sysfs/file.c); clear with a newline.
        """
        if not value:
            raise ValueError(f"an empty write to {path} never reaches the kernel")
        at, data = self._at(path), value.encode("latin-1")  # as it was read
        if self._children is not None:
            self._children.write(path, data)
            return
        try:
            fd = os.open(at, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(
                f"cannot write {value!r} to {self.root / path}: {error.strerror}"
            ) from error

    def peek(self, path: str, offset: int = 0) -> str:
        """Return a register behind the file of a BAR: ``0x`` and eight hex digits.

        The device must decode its memory and be awake: one that sleeps answers only ones.

        Raises:
            HostError: it cannot be opened or mapped; under lockdown nobody may.
            StuckError, EndingError: as for `write`.
            ValueError: *offset*, in bytes, is no register's.
        """
        at = self._at(path)
        if self._children is not None:
            return self._children.peek(path, offset)
        child.offset_bytes(offset)
        try:
            return child.peek(os.fsencode(at), offset)
        except OSError as error:
            raise HostError(f"cannot read {at}: {error.strerror}") from error

    def link(self, path: str) -> str | None:
        """Return the last component of a link's target; None when there is no link."""
        target = self.target(path)
        return None if target is None else target.rpartition("/")[2]

    def target(self, path: str) -> str | None:
        """Return a link's target as it is stored; None when there is no link."""
        try:
            return os.readlink(self._at(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot follow {path}: {error.strerror}") from error

    def names(self, directory: str) -> list[str]:
        """Return what a directory holds, sorted; nothing when there is no such directory."""
        try:
            return sorted(os.listdir(self._at(directory)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise HostError(f"cannot list {directory}: {error.strerror}") from error

    def exists(self, path: str) -> bool:
        """Tell whether the attribute or directory is there now."""
        return os.path.exists(self._at(path))

    def _answer(self, path: str) -> Answer:
        try:
            return self.read(path)
        except HostError as error:
            return error

    def _at(self, path: str) -> str:
        """Return the absolute path; ValueError for one that would leave the tree."""
        if path.startswith("/") or (".." in path and ".." in path.split("/")):
            raise ValueError(f"not a path inside sysfs: {path!r}")
        return self._start + path


def is_character_device(path: Path) -> bool:
    """Tell whether *path* is a character device, links not followed."""
    try:
        return stat.S_ISCHR(os.lstat(path).st_mode)
    except OSError:
        return False


def _read(fd: int, count: int = _ATTRIBUTE_MAX_BYTES) -> bytes:
    try:
        return os.read(fd, count)
    finally:
        os.close(fd)


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").removesuffix("\n")
