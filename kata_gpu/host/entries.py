"""A folder of another program's, with what lies in it: looked at as it is, and in bounds.

Nothing but a regular file is opened: a FIFO would hold us for ever. What cannot be had is a
reason in the answer, never an exception.
"""

import itertools
import os
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import files
from kata_gpu.model.kata import Entry, EntryKind

ENTRIES_MAX: Final = 256
FILE_MAX_BYTES: Final = 1 << 20
FOLDER_MAX_BYTES: Final = 8 << 20
"""Past so many bytes of texts the rest of a folder is not read."""


def read(directory: str, *, root: Path) -> tuple[tuple[Entry, ...], str | None]:
    """Return what an absolute *directory* of the host at *root* holds, and why not all of it.

    Nothing, and no reason, where there is none.
    """
    at = root / directory.removeprefix("/")
    try:
        with os.scandir(at) as found:
            first = itertools.islice(found, ENTRIES_MAX + 1)
            names = [(entry.name, _kind(entry)) for entry in first]
    except FileNotFoundError:
        return (), None
    except OSError as error:
        return (), f"cannot list it: {error.strerror}"
    excess = f"it has more than {ENTRIES_MAX} entries" if len(names) > ENTRIES_MAX else None
    kept: list[Entry] = []
    size = 0
    for name, kind in sorted(names)[:ENTRIES_MAX]:
        if size > FOLDER_MAX_BYTES:
            return tuple(kept), f"it holds more than {FOLDER_MAX_BYTES} bytes"
        kept.append(_entry(directory, name, kind, root))
        size += len(kept[-1].text or "")
    return tuple(kept), excess


def has_any(directory: str, *, root: Path) -> bool:
    """Tell whether an absolute *directory* holds anything, or is such that nobody can say."""
    try:
        return bool(os.listdir(root / directory.removeprefix("/")))
    except FileNotFoundError:
        return False
    except OSError:
        return True


def text(path: str, *, root: Path) -> str:
    """Return the text of a regular file at an absolute real *path*, no link followed at its end.

    Raises:
        HostError: it is no regular file, longer than FILE_MAX_BYTES, not UTF-8, or cannot be
            read.
    """
    at = root / path.removeprefix("/")
    try:
        with files.open_regular(at, path) as file:
            return files.whole(file, path, max_bytes=FILE_MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HostError(f"cannot read {path}: not UTF-8 at byte {error.start}") from error


def _kind(entry: os.DirEntry[str]) -> EntryKind:
    if entry.is_symlink():
        return EntryKind.LINK
    if entry.is_dir(follow_symlinks=False):
        return EntryKind.DIRECTORY
    return EntryKind.FILE if entry.is_file(follow_symlinks=False) else EntryKind.OTHER


def _entry(directory: str, name: str, kind: EntryKind, root: Path) -> Entry:
    path = f"{directory}/{name}"
    match kind:
        case EntryKind.FILE:
            return _with_text(name, kind, path, root)
        case EntryKind.LINK:
            try:
                real = files.resolve(path, root=root)
            except HostError as error:
                return Entry(name=name, kind=kind, text=None, reason=str(error))
            if real is None:
                return Entry(name=name, kind=kind, text=None, reason="it is a link to nowhere")
            return _with_text(name, kind, real, root)
        case EntryKind.DIRECTORY | EntryKind.OTHER:
            return Entry(name=name, kind=kind, text=None, reason="it is no regular file")


def _with_text(name: str, kind: EntryKind, path: str, root: Path) -> Entry:
    try:
        return Entry(name=name, kind=kind, text=text(path, root=root))
    except HostError as error:
        return Entry(name=name, kind=kind, text=None, reason=str(error))
