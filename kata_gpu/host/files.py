"""Files that are wholly ours, and other people's that we only read.

A file is replaced, never rewritten: temporary, fsync, rename, fsync of the directory. A
reader sees the old text or the new one, after a crash too; a failure leaves the old one
and no temporary behind. Nothing is written or removed in a folder that is a symbolic link.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError

_READ_MAX_BYTES: Final = 4 << 20
_CHUNK_BYTES: Final = 65536  # /proc/sys refuses buffers of megabytes
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS_MAX: Final = 40  # as many as the kernel follows
_MOVE_MAX_BYTES: Final = 64 << 20
TEMPORARY: Final = ".kata-gpu-"  # ends in a random word: no reader of *.json or *.toml takes it


def read(path: Path, *, max_bytes: int = _READ_MAX_BYTES) -> str | None:
    """Return the text of a file, links followed; None when there is none.

    Raises:
        HostError: it cannot be read, is longer than *max_bytes*, or is not UTF-8.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_what_does_not_wait) as file:
            if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
                raise HostError(f"cannot read {path}: it is a pipe")
            return whole(file, path, max_bytes=max_bytes).decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HostError(f"cannot read {path}: not UTF-8 at byte {error.start}") from error


def read_plain(path: Path, *, max_bytes: int) -> bytes:
    """Return what a regular file of somebody else holds; it may be swapped at any moment.

    Nothing else is opened for long: a FIFO is not waited for, and a link is not followed.

    Raises:
        HostError: it is not there, is no regular file, cannot be read, is longer than
            *max_bytes*, or was written to meanwhile.
    """
    try:
        with open_regular(path, path) as file:
            before = os.fstat(file.fileno())
            raw = whole(file, path, max_bytes=max_bytes)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    if (before.st_mtime_ns, len(raw)) != _age_and_length(after):
        raise HostError(f"cannot read {path}: somebody wrote to it meanwhile; try again")
    return raw


def open_regular(path: Path, name: object) -> FileIO:
    """Open a regular file for reading; nothing is waited for, and no link followed at its end.

    *name* is what errors call it.

    Raises:
        OSError: it cannot be opened. HostError: it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HostError(f"cannot read {name}: it is no regular file")
    return open(fd, "rb", buffering=0)


def whole(file: FileIO, name: object, *, max_bytes: int) -> bytes:
    """Return all that an open file has left; HostError when that is more than *max_bytes*."""
    raw = bytearray()
    while chunk := file.read(_CHUNK_BYTES):
        raw += chunk
        if len(raw) > max_bytes:
            raise HostError(f"cannot read {name}: it is longer than {max_bytes} bytes")
    return bytes(raw)


def _open_what_does_not_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe waits for its other end


def replace(
    path: Path,
    content: str,
    *,
    staging: Path,
    mode: int = 0o644,
    follow: bool = False,
    is_for_this_boot: bool = False,
    below: Path | None = None,
) -> None:
    """Give *path* the text *content* in one step, durably.

    A file *is_for_this_boot* if nobody reads it after the host has crashed: then whichever of the
    two is there, old or new, is whole, and which of them does not matter.

    *staging* is where the temporary file is made: the same file system, and a folder
    whose readers do not mind it. Both folders are made when missing; neither may be a link
    unless we are to *follow* it, and whoever puts one in their place meanwhile does not lead
    us astray. The same holds for every folder on their way from *below*, which holds both.

    Raises:
        HostError: any of it failed; *path* has its old content. If only the last fsync
            failed it may have the new one: read it back.
    """
    temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
    try:
        data = content.encode("utf-8")
        for needed in (staging, path.parent):
            (below or needed).mkdir(parents=True, exist_ok=True)
        with (
            folder(staging, follow=follow, below=below, makes=True) as start,
            folder(path.parent, follow=follow, below=below, makes=True) as end,
        ):
            try:
                _write_new(temporary, data, mode, start)
                os.rename(temporary, path.name, src_dir_fd=start, dst_dir_fd=end)
            except OSError:
                _forget(temporary, start)
                raise
            if not is_for_this_boot:
                os.fsync(end)
    except UnicodeEncodeError as error:
        raise HostError(f"cannot write {path}: {error.reason}") from error
    except OSError as error:
        raise HostError(f"cannot write {path}: {reason(error, path, below=below)}") from error


def _write_new(name: str, data: bytes, mode: int, folder: int) -> None:
    """Make a file that must not be there yet, whole and on the disk."""
    fd = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        _write_all(fd, data)
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def move(source: Path, target: Path, *, staging: Path | None = None) -> None:
    """Move a regular file, durably, to where nothing is; also to another file system.

    A copy is made in *staging*, on the target's file system; beside the target without.
    A move that was cut short is finished: what is at *target* then has the age and length of
    the source. A link, or anything else that is no file, is left alone.

    Raises:
        HostError: any of it failed; the file is at its old place, or at both.
    """
    try:
        before = os.lstat(source)
        if not stat.S_ISREG(before.st_mode):
            raise HostError(f"cannot move {source}: it is no regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _is_moved(before, target):
            _move(source, before, target, staging or target.parent)
    except OSError as error:
        raise HostError(f"cannot move {source} to {target}: {error.strerror}") from error
    remove(source)


def is_moved(source: Path, target: Path) -> bool:
    """Tell whether *target* is what a move of *source* that was cut short left."""
    try:
        return _age_and_length(os.lstat(source)) == _age_and_length(os.lstat(target))
    except OSError:
        return False


def _is_moved(before: os.stat_result, target: Path) -> bool:
    try:
        after = os.lstat(target)
    except FileNotFoundError:
        return False
    if _age_and_length(before) != _age_and_length(after):
        raise HostError(f"cannot move a file to {target}: something else is there")
    return True


def _age_and_length(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_size


def _move(source: Path, before: os.stat_result, target: Path, staging: Path) -> None:
    try:
        os.rename(source, target)
        _sync(target.parent)
        _sync(source.parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, before, target, staging)


def _copy(source: Path, before: os.stat_result, target: Path, staging: Path) -> None:
    """Make *target* what *source* is, mode, owner and age included, in one step."""
    temporary = staging / f"{TEMPORARY}{os.urandom(8).hex()}"
    try:
        fd = os.open(temporary, _NEW, 0o600)
        try:
            _write_all(fd, read_plain(source, max_bytes=_MOVE_MAX_BYTES))
            os.fchmod(fd, stat.S_IMODE(before.st_mode))
            os.fchown(fd, before.st_uid, before.st_gid)
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, target)
        _sync(target.parent)
    except (OSError, HostError):
        with suppress(OSError):  # the first error is the one worth telling
            os.unlink(temporary)
        raise


def remove(path: Path, *, follow: bool = False) -> None:
    """Remove a file or a link, durably; one that is gone is no error.

    Raises:
        HostError: it cannot be removed, or its folder is a link that we are not to *follow*.
    """
    try:
        with folder(path.parent, follow=follow) as fd:
            os.unlink(path.name, dir_fd=fd)
            os.fsync(fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot remove {path}: {reason(error, path)}") from error


def remove_empty(directory: Path) -> None:
    """Remove a folder; one that is gone, or that holds anything, is no error and stays so."""
    try:
        os.rmdir(directory)
        _sync(directory.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
            raise HostError(f"cannot remove {directory}: {error.strerror}") from error


@contextmanager
def folder(
    path: Path, *, follow: bool = False, below: Path | None = None, makes: bool = False
) -> Iterator[int]:
    """Hold a folder open: it stays the same whatever becomes of its name.

    No folder on the way from *below* to it is a link, nor is itself or *below*, unless we are to
    *follow* that. What is missing on that way is made by who *makes* it.

    Raises:
        OSError: it cannot be opened; :func:`reason` has its words.
    """
    start = path if below is None else below
    fd = os.open(start, _FOLDER | (0 if follow else os.O_NOFOLLOW))
    try:
        for name in path.relative_to(start).parts:
            if makes:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
            deeper = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = deeper
        yield fd
    finally:
        os.close(fd)


def reason(error: OSError, path: Path, *, below: Path | None = None) -> str:
    """Return why it failed; a folder that is a link says no more than that it is none."""
    if error.errno in {errno.ENOTDIR, errno.ELOOP}:
        for parent in path.parents:
            with suppress(OSError):  # it is none, or is none any more
                target = os.readlink(parent)
                return f"its folder is a link to {target!r}, and nothing is done there"
            if parent == (below or path.parent):
                break
    return error.strerror or str(error)


def names(directory: Path) -> list[str]:
    """Return what a folder holds, sorted; nothing where it is missing or may not be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def resolve(path: str, *, root: Path) -> str | None:
    """Return the real path behind an absolute *path* of the host mounted at *root*.

    Links are followed as that host follows them: an absolute target begins at *root*, and
    ``..`` ends there. None when nothing is there.

    Raises:
        HostError: links lead in a circle, or a folder may not be read.
    """
    pending = [part for part in reversed(path.split("/")) if part not in {"", "."}]
    real: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            real = real[:-1]
            continue
        target = _link_target(root.joinpath(*real, part), path)
        if target is None:
            real.append(part)
            continue
        links += 1
        if links > _LINKS_MAX:
            raise HostError(f"cannot resolve {path}: too many levels of symbolic links")
        if target.startswith("/"):
            real = []
        pending += [p for p in reversed(target.split("/")) if p not in {"", "."}]
    found = "/" + "/".join(real)
    return found if root.joinpath(*real).exists() else None


def _link_target(at: Path, path: str) -> str | None:
    try:
        return os.readlink(at)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # no link
            return None
        raise HostError(f"cannot resolve {path}: {error.strerror}: {at}") from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _forget(temporary: str, folder: int) -> None:
    """Remove a temporary after a failure, whose error is the one worth telling."""
    try:
        os.unlink(temporary, dir_fd=folder)
    except OSError:
        return
