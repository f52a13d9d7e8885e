"""Files that are wholly ours, and other people's that we only read.

A file is replaced, never rewritten: temporary, fsync, rename, fsync of the directory. A
reader sees the old text or the new one, after a crash too; a failure leaves the old one
and no temporary behind. Nothing is opened through a symbolic link.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError

_READ_MAX_BYTES: Final = 4 << 20
_MOVE_MAX_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 65536  # /proc/sys refuses buffers of megabytes
_LINKS_MAX: Final = 40  # as many as the kernel follows
TEMPORARY: Final = ".kata-gpu-"  # ends in a random word: no reader of *.json or *.toml takes it


def read(path: Path, *, max_bytes: int = _READ_MAX_BYTES) -> str | None:
    """Return the text of a file, links followed; None when there is none.

    Raises:
        HostError: it cannot be read, is longer than *max_bytes*, or is not UTF-8.
    """
    try:
        raw = bytearray()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                raw += chunk
                if len(raw) > max_bytes:
                    raise HostError(f"cannot read {path}: it is longer than {max_bytes} bytes")
        return raw.decode("utf-8")
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
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise HostError(f"cannot read {path}: it is no regular file")
            raw = bytearray()
            while chunk := file.read(_CHUNK_BYTES):
                raw += chunk
                if len(raw) > max_bytes:
                    raise HostError(f"cannot read {path}: it is longer than {max_bytes} bytes")
            after = os.fstat(fd)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    if (before.st_mtime_ns, len(raw)) != (after.st_mtime_ns, after.st_size):
        raise HostError(f"cannot read {path}: somebody wrote to it meanwhile; try again")
    return bytes(raw)


def replace(path: Path, content: str, *, staging: Path, mode: int = 0o644) -> None:
    """Give *path* the text *content* in one step, durably.

    *staging* is where the temporary file is made: the same file system, and a folder
    whose readers do not mind it. Both folders are made when missing.

    Raises:
        HostError: any of it failed; *path* has its old content. If only the last fsync
            failed it may have the new one: read it back.
    """
    temporary = staging / f"{TEMPORARY}{os.urandom(8).hex()}"
    try:
        data = content.encode("utf-8")
        staging.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            _write_all(fd, data)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        _sync(path.parent)
    except UnicodeEncodeError as error:
        raise HostError(f"cannot write {path}: {error.reason}") from error
    except OSError as error:
        _forget(temporary)
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def move(source: Path, target: Path) -> None:
    """Move a regular file, durably, to where nothing is; also to another file system.

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
            _move(source, before, target)
    except OSError as error:
        raise HostError(f"cannot move {source} to {target}: {error.strerror}") from error
    remove(source)


def is_moved(source: Path, target: Path) -> bool:
    """Tell whether *target* is what a move of *source* that was cut short left."""
    try:
        before, after = os.lstat(source), os.lstat(target)
    except OSError:
        return False
    return (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def _is_moved(before: os.stat_result, target: Path) -> bool:
    try:
        after = os.lstat(target)
    except FileNotFoundError:
        return False
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise HostError(f"cannot move a file to {target}: something else is there")
    return True


def _move(source: Path, before: os.stat_result, target: Path) -> None:
    try:
        os.rename(source, target)
        _sync(target.parent)
        _sync(source.parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, before, target)


def _copy(source: Path, before: os.stat_result, target: Path) -> None:
    """Make *target* what *source* is, mode, owner and age included, in one step."""
    temporary = target.parent / f"{TEMPORARY}{os.urandom(8).hex()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600)
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
        _forget(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or a link, durably; one that is gone is no error."""
    try:
        os.unlink(path)
        _sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot remove {path}: {error.strerror}") from error


def names(directory: Path) -> list[str]:
    """Return what a folder holds, sorted; nothing where it is missing or may not be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def sweep(directory: Path) -> list[Path]:
    """Remove temporaries that a killed agent left in *directory*; return what was removed."""
    try:
        left = [path for path in directory.iterdir() if path.name.startswith(TEMPORARY)]
    except OSError:
        return []
    for path in left:
        remove(path)
    return left


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


def _forget(temporary: Path) -> None:
    """Remove a temporary after a failure, whose error is the one worth telling."""
    try:
        os.unlink(temporary)
    except OSError:
        return
