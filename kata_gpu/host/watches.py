"""Hints from inotify(7) that a file, a directory or a device node is not what it was.

A file is watched by its name in its directory, and so is every link on the way to it: a
replacement by rename is heard, and the swap of a link as kubelet updates a ConfigMap. Where
nothing is yet, the nearest directory there is tells of the next part of the path. Of a
directory every entry counts; of a device node who opens and closes it, through whatever
mount of the same file system. In a container the control group of devices forbids even to watch
a node; its directory tells the same, so it is watched instead, unless it is /dev itself, where
somebody opens something all the time.

Reading makes no hint. Our own writes do: a turn that changed something is followed by one
that finds nothing to do, writes nothing, and so is the last. Temporaries of ours are not
told of, so that a write that fails does not call for the turn that tries it again.

Not heard: a change to sysfs through another mount of it in another network namespace, whose
inodes are other ones; and the renaming of a directory above one that is watched.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from inotify_simple import Event, INotify, flags

from kata_gpu.errors import HostError
from kata_gpu.host import files
from kata_gpu.host.hint import Hint

_CHANGES: Final = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.MODIFY
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
)
_LOOKS: Final = flags.OPEN | flags.CLOSE_WRITE | flags.CLOSE_NOWRITE
_USES: Final = _LOOKS | flags.DELETE_SELF
_USES_BELOW: Final = _LOOKS | flags.CREATE | flags.DELETE
_ALL: Final = _CHANGES | _USES | _USES_BELOW
_BUSY: Final = "/dev"
_LINKS_MAX: Final = 40  # as many as the kernel follows
_WALKS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class _Spot:
    """One inode to watch, and what of it matters."""

    at: str
    mask: int = _CHANGES
    name: str | None = None
    """The directory's one entry that matters; None for whatever happens here."""


class Watches:
    """An inotify instance; close it with ``with``."""

    def __init__(self, inotify: INotify) -> None:
        self._inotify = inotify
        self._watched: dict[int, dict[tuple[_Spot, str], None]] = {}

    @classmethod
    def open(cls) -> Self:
        """Watch nothing yet; HostError where the kernel gives no instance."""
        try:
            return cls(INotify(nonblocking=True))
        except OSError as error:
            remedy = (
                "; raise the sysctl fs.inotify.max_user_instances"
                if error.errno == errno.EMFILE
                else ""
            )
            raise HostError(f"cannot watch files: {error.strerror}{remedy}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a hint."""
        return int(self._inotify.fileno())

    def drain(self) -> tuple[Hint, ...]:
        """Take all waiting hints, each once; empty when there are none.

        An overflow of the kernel's queue is a hint for every watched path.
        """
        hints: dict[Hint, None] = {}
        for event in self._inotify.read(timeout=0):
            hints.update(dict.fromkeys(self._meanings(event)))
        return tuple(hints)

    def watch(self, paths: Iterable[Path]) -> bool:
        """Watch exactly these absolute paths from now on; quick when nothing is to change.

        Returns True when something is watched that was not before: what happened to it until
        now went unheard, so that whoever looked at it earlier must look again.

        Raises:
            HostError: some could not be watched; all others are.
        """
        wanted = [str(path) for path in dict.fromkeys(paths)]
        is_new = False
        for _ in range(_WALKS_MAX):  # a link may have been turned before it was watched
            if not self._walk(wanted):
                return is_new
            is_new = True
        return is_new

    def _walk(self, wanted: Iterable[str]) -> bool:
        """Watch the spots as they lie now; tell whether any of them is new."""
        watched: dict[int, dict[tuple[_Spot, str], None]] = {}
        is_new = False
        refusal: tuple[_Spot, OSError] | None = None
        for path in wanted:
            for wish in _spots(path):
                try:
                    number, spot = self._add(wish)
                except FileNotFoundError:
                    is_new = True  # gone since: the next walk finds what is there instead
                except OSError as error:
                    refusal = refusal or (wish, error)
                else:
                    is_new |= (spot, path) not in self._watched.get(number, {})
                    watched.setdefault(number, {})[spot, path] = None
        for number in self._watched.keys() - watched.keys():
            self._forget(number)
        self._watched = watched
        if refusal is not None:
            raise _cannot_watch(*refusal)
        return is_new

    def _add(self, spot: _Spot) -> tuple[int, _Spot]:
        """Watch a spot, or the directory of a node that may not be; return which it was.

        What is wanted of an inode adds up, so that no other wish for it is missed meanwhile.
        """
        try:
            return self._inotify.add_watch(spot.at, spot.mask | flags.MASK_ADD), spot
        except PermissionError:
            folder, name = os.path.split(spot.at)
            if spot.mask != _USES or folder == _BUSY:
                raise
            return self._add(_Spot(folder, _USES_BELOW, name))

    def _forget(self, number: int) -> None:
        try:
            self._inotify.rm_watch(number)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the kernel forgot it first: the inode is gone
                raise HostError(f"cannot end a watch: {error.strerror}") from error

    def _meanings(self, event: Event) -> Iterator[Hint]:
        if event.mask & flags.Q_OVERFLOW:
            for path in dict.fromkeys(
                path for spots in self._watched.values() for _, path in spots
            ):
                yield Hint(text=f"events were lost: {path!r}", changed=path)
            return
        if event.name.startswith(files.TEMPORARY):
            return
        what = " ".join(flag.name.lower() for flag in flags.from_mask(event.mask))
        if event.mask & flags.ISDIR and event.mask & _LOOKS:
            return  # reading a directory, as we do ourselves
        for spot, path in self._watched.get(event.wd, {}):
            if event.mask & _ALL and not event.mask & spot.mask:
                continue  # wanted for another spot of this inode
            if event.name and spot.name not in {None, event.name}:
                continue
            where = os.path.join(spot.at, event.name) if event.name else spot.at
            is_opened = event.mask & flags.OPEN
            yield Hint(text=f"{what} {where!r}", changed=path, opened=path if is_opened else None)


def _cannot_watch(spot: _Spot, error: OSError) -> HostError:
    remedy = "; raise the sysctl fs.inotify.max_user_watches" if error.errno == errno.ENOSPC else ""
    return HostError(f"cannot watch {spot.at}: {error.strerror}{remedy}")


def _spots(path: str) -> Iterator[_Spot]:
    """Find every place where a change changes what *path* leads to, in the way's order."""
    at, pending, links = "/", _reversed_parts(path), 0
    while pending:
        part = pending.pop()
        if part == "..":
            at = os.path.dirname(at)
            continue
        here = os.path.join(at, part)
        try:
            mode = os.lstat(here).st_mode
            target = os.readlink(here) if stat.S_ISLNK(mode) else None
        except OSError:  # nothing there, or not for us to see
            yield _Spot(at, name=part)
            return
        if target is not None:
            yield _Spot(at, name=part)
            links += 1
            if links > _LINKS_MAX:
                return
            at = "/" if target.startswith("/") else at
            pending += _reversed_parts(target)
        elif pending or stat.S_ISDIR(mode):
            at = here
        else:
            yield _Spot(here, _USES) if stat.S_ISCHR(mode) else _Spot(at, name=part)
            return
    yield _Spot(at)


def _reversed_parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in {"", "."}]
