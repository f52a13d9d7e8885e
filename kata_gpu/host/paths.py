"""What lies at a path, and on what file system; nothing is opened or changed.

Paths that belong to other programs are looked at as those programs would: links are
followed.
"""

import itertools
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kata_gpu.errors import HostError
from kata_gpu.host import files

if TYPE_CHECKING:
    from kata_gpu.model.node_facts import FileSystem

_MOUNTINFO_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What stat(2) says."""

    is_directory: bool
    is_file: bool
    is_device: bool
    number: str | None
    """``major:minor`` of a character device; None for anything else."""

    owner: int
    mode: int
    """The permission bits."""


def status(path: Path) -> Status | None:
    """Return what is at *path*; None when nothing is.

    Raises:
        HostError: a folder on the way may not be searched, or leads in a circle.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostError(f"cannot look at {path}: {error.strerror}") from error
    mode, number = found.st_mode, found.st_rdev
    is_character = stat.S_ISCHR(mode)
    return Status(
        is_directory=stat.S_ISDIR(mode),
        is_file=stat.S_ISREG(mode),
        is_device=is_character or stat.S_ISBLK(mode),
        number=f"{os.major(number)}:{os.minor(number)}" if is_character else None,
        owner=found.st_uid,
        mode=stat.S_IMODE(mode),
    )


def is_there(path: Path) -> bool:
    """Tell whether anything has that name, be it a link to nowhere.

    Raises:
        HostError: a folder on the way may not be searched.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise HostError(f"cannot look at {path}: {error.strerror}") from error
    return True


def modified_at_s(path: Path) -> float | None:
    """Return when what is at *path* was last written, since the epoch; None if nobody can say."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None


def identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from one that took its place: device, inode, time of writing.

    Links are followed. None if nobody can say.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def is_executable(path: Path) -> bool:
    """Tell whether *path* is a file that somebody may execute."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def matching(pattern: str, *, root: Path, limit: int) -> tuple[str, ...]:
    """Return at most *limit* absolute paths of the host at *root* that a glob names, sorted."""
    import glob  # noqa: PLC0415 - for who follows other people's patterns

    found = glob.iglob(pattern.lstrip("/"), root_dir=root, include_hidden=True)
    return tuple(sorted(f"/{path}" for path in itertools.islice(found, limit)))


def names(path: Path) -> tuple[str, ...]:
    """Return what the directory at *path* holds, sorted; nothing when there is none.

    Raises:
        HostError: it may not be listed, or is no directory.
    """
    try:
        return tuple(sorted(os.listdir(path)))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise HostError(f"cannot list {path}: {error.strerror}") from error


def link(path: Path) -> str:
    """Return the target of the link at *path*; HostError when there is no link to read."""
    try:
        return os.readlink(path)
    except OSError as error:
        raise HostError(f"cannot follow {path}: {error.strerror}") from error


def file_system(path: Path, *, proc: Path) -> "FileSystem":
    """Return the file system that *path* lies on, by its device number in *proc*'s mountinfo.

    Names of mount points would not do: a mount may be hidden by another, and a folder of
    any kind may be mounted over a part of sysfs.

    Raises:
        HostError: nothing is at *path*, or no mount has its device number.
    """
    try:
        device, found = os.stat(path).st_dev, os.statvfs(path)
    except OSError as error:
        raise HostError(f"cannot look at {path}: {error.strerror}") from error
    from kata_gpu.model.node_facts import FileSystem  # noqa: PLC0415 - a module of many values

    return FileSystem(
        kind=_kind(proc / "self/mountinfo", f"{os.major(device)}:{os.minor(device)}"),
        is_read_only=bool(found.f_flag & os.ST_RDONLY),
        free_bytes=found.f_bavail * found.f_frsize,
        free_files=found.f_favail if found.f_files else None,
    )


def _kind(mountinfo: Path, number: str) -> str:
    text = files.read(mountinfo, max_bytes=_MOUNTINFO_MAX_BYTES) or ""
    for line in text.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2:3] == [number]:
            return source.split(" ", 1)[0]
    raise HostError(f"cannot find a mount with device number {number} in {mountinfo}")
