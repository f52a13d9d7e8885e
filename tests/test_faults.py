"""Whatever call of a write fails or is the last one, the file is old or new, and whole."""

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, LedgerError
from kata_gpu.host import files
from kata_gpu.model.ledger import Ledger
from tests.faults import works
from tests.faults.subject import KILL, Answer, Subject

ERRORS: Final = ("ENOSPC", "EIO", "EINTR", "EROFS", "EDQUOT", "EACCES", "EMFILE")
OLD: Final = Ledger(files=("/old",))
NEW: Final = Ledger(files=("/new", "/newer"))

REPLACE: Final = (
    *("mkdir", "stat", "mkdir", "stat"),  # both folders are there
    *("open", "open"),
    *("open", "write", "fchmod", "fsync", "close", "rename"),
    *("fsync", "close", "close"),
)
RENAMED: Final = REPLACE.index("rename")
RETRIED: Final = frozenset({"open", "flock", "stat", "ftruncate", "write"})
"""Calls of a lock that Python makes again when a signal interrupts them."""

LOAD: Final = ("open", "stat", "stat", "read", "read", "close")

every_error = pytest.mark.parametrize(
    "error", [getattr(errno, name) for name in ERRORS], ids=ERRORS
)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with Subject() as process:
        yield process


def at(step: int, verdict: int) -> Answer:
    """Let the call number *step* end with *verdict*, and all others go on."""
    return lambda number, _name: verdict if number == step else 0


def file_with(folder: Path, content: str) -> Path:
    path = folder / "file"
    path.write_text(content)
    return path


def only(folder: Path, path: Path) -> bool:
    return list(folder.iterdir()) == [path]


def swept(folder: Path) -> list[Path]:
    """Remove what a killed process left half-written, and return it."""
    left = [path for path in folder.iterdir() if path.name.startswith(files.TEMPORARY)]
    for path in left:
        path.unlink()
    return left


def test_a_replacement_is_these_calls_in_this_order(subject: Subject, tmp_path: Path) -> None:
    path = file_with(tmp_path, "old")
    ended = subject.do(partial(works.replace, path, "new", tmp_path))
    assert (ended.calls, ended.error) == (REPLACE, None)
    assert path.read_text() == "new"


@every_error
@pytest.mark.parametrize(
    "step", range(len(REPLACE)), ids=[f"{n}-{c}" for n, c in enumerate(REPLACE)]
)
def test_a_call_that_fails_is_told_and_leaves_the_old_file(
    subject: Subject, tmp_path: Path, step: int, error: int
) -> None:
    path = file_with(tmp_path, "old")
    ended = subject.do(partial(works.replace, path, "new", tmp_path), at(step, error))
    if ended.error is None:
        assert error == errno.EINTR or REPLACE[step] == "mkdir"  # tried again; or there already
        assert path.read_text() == "new"
    else:
        assert isinstance(ended.error, HostError)
        assert str(ended.error) == f"cannot write {path}: {os.strerror(error)}"
        assert path.read_text() == ("old" if step <= RENAMED else "new")
    assert only(tmp_path, path)


@every_error
def test_a_write_that_is_cut_short_is_continued(
    subject: Subject, tmp_path: Path, error: int
) -> None:
    path = file_with(tmp_path, "old")

    def full_after_a_page(_number: int, name: str) -> int:
        writes.append(name == "write")
        return error if sum(writes) == 2 and name == "write" else 0

    def freed_after_a_page(_number: int, name: str) -> int:
        if name == "write":
            writes.append(True)
            subject.limit_files(4096 * len(writes))
        return 0

    work = partial(works.replace, path, "x" * 10_000, tmp_path)
    writes: list[bool] = []
    subject.limit_files(4096)
    refused = subject.do(work, full_after_a_page)
    assert refused.calls.count("write") == (2 if error != errno.EINTR else 3)
    assert str(refused.error).startswith(f"cannot write {path}: ")
    assert path.read_text() == "old"
    writes.clear()
    ended = subject.do(work, freed_after_a_page)
    assert (ended.error, ended.calls.count("write")) == (None, 3)
    assert path.read_text() == "x" * 10_000
    assert only(tmp_path, path)


def test_a_temporary_that_cannot_be_removed_is_swept_later(
    subject: Subject, tmp_path: Path
) -> None:
    path = file_with(tmp_path, "old")
    refusals = {"fsync": errno.EIO, "unlink": errno.EROFS}
    ended = subject.do(
        partial(works.replace, path, "new", tmp_path), lambda _, name: refusals.get(name, 0)
    )
    assert str(ended.error) == f"cannot write {path}: Input/output error"
    assert len(swept(tmp_path)) == 1
    assert only(tmp_path, path)


@pytest.mark.parametrize("name", ["replace", "save"])
def test_a_process_that_is_killed_at_any_call_leaves_the_old_or_the_new(
    subject: Subject, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "file"
    Journal(path).update(lambda _: OLD)
    old = path.read_text()
    Journal(path).update(lambda _: NEW)
    new = path.read_text()
    works_by_name: dict[str, Callable[[], object]] = {
        "replace": partial(works.replace, path, new, tmp_path),
        "save": partial(works.save, path, NEW),
    }
    work = works_by_name[name]
    path.write_text(old)
    calls = subject.do(work).calls
    seen = []
    for step in range(len(calls)):
        path.write_text(old)
        with Subject() as mortal:
            assert mortal.do(work, at(step, KILL)).was_killed
        seen.append(path.read_text())
        assert Journal(path).ledger == (OLD if seen[-1] == old else NEW)
        left = [other for other in tmp_path.iterdir() if other != path]
        assert swept(tmp_path) == left
        assert only(tmp_path, path)
    renamed = calls.index("rename") + 1
    assert seen == renamed * [old] + (len(calls) - renamed) * [new]


@pytest.mark.parametrize("is_near", [True, False], ids=["one file system", "another"])
def test_a_move_that_is_killed_at_any_call_loses_nothing_and_is_finished(
    subject: Subject, tmp_path: Path, is_near: bool
) -> None:
    source, target, staging = tmp_path / "file", tmp_path / "kept/file", tmp_path / "staging"
    for folder in (target.parent, staging):
        folder.mkdir()
    work = partial(files.move, source, target, staging=staging)

    def far(name: str, seen: list[str]) -> int:
        seen.append(name)
        return errno.EXDEV if name == "rename" and not is_near and seen.count(name) == 1 else 0

    def killed_at(step: int) -> Answer:
        seen: list[str] = []
        return lambda number, name: KILL if number == step else far(name, seen)

    source.write_text("theirs")
    calls = subject.do(work, killed_at(-1)).calls
    assert calls.count("rename") == (1 if is_near else 2)
    for step in range(len(calls)):
        target.unlink(missing_ok=True)
        source.write_text("theirs")
        with Subject() as mortal:
            assert mortal.do(work, killed_at(step)).was_killed
        places = [path.read_text() for path in (source, target) if path.exists()]
        assert places == ["theirs"] or (files.is_moved(source, target) and not is_near)
        if source.exists():
            files.move(source, target, staging=staging)
        swept(staging)
        assert target.read_text() == "theirs"
        assert not source.exists()
        assert only(target.parent, target)
        assert list(staging.iterdir()) == []


@every_error
def test_a_removal_that_fails_is_told(subject: Subject, tmp_path: Path, error: int) -> None:
    for step, name in enumerate(("open", "unlink", "fsync", "close")):
        path = file_with(tmp_path, "old")
        ended = subject.do(partial(files.remove, path), at(step, error))
        assert ended.calls[step] == name
        if error == errno.EINTR and ended.error is None:
            assert name in {"open", "fsync"}
        else:
            assert isinstance(ended.error, HostError)
            assert str(ended.error) == f"cannot remove {path}: {os.strerror(error)}"
        assert path.exists() == (ended.error is not None and name in {"open", "unlink"})


@every_error
@pytest.mark.parametrize(
    "step", range(len(REPLACE)), ids=[f"{n}-{c}" for n, c in enumerate(REPLACE)]
)
def test_a_ledger_that_was_not_saved_is_not_the_one_in_force(
    subject: Subject, tmp_path: Path, step: int, error: int
) -> None:
    path = tmp_path / "ledger.json"
    Journal(path).update(lambda _: OLD)
    ended = subject.do(partial(works.save, path, NEW), at(len(LOAD) + step, error))
    assert ended.calls[: len(LOAD)] == LOAD
    saved = ended.value
    assert isinstance(saved, works.Saved)
    assert saved.before == OLD
    assert saved.believed == (NEW if saved.error is None else OLD)
    assert saved.on_disk_at_last == saved.believed, "a save after the failure is believed wrongly"
    assert only(tmp_path, path)


@every_error
def test_a_ledger_that_cannot_be_read_is_never_an_empty_one(
    subject: Subject, tmp_path: Path, error: int
) -> None:
    path = tmp_path / "ledger.json"
    Journal(path).update(lambda _: OLD)
    before = path.read_bytes()
    for step, name in enumerate(LOAD):
        ended = subject.do(partial(works.save, path, OLD), at(step, error))
        if ended.error is None:
            assert error == errno.EINTR or name in {"stat", "close"}  # it was read all the same
            assert ended.value.before == OLD
        else:
            assert isinstance(ended.error, HostError if error == errno.EACCES else LedgerError)
            assert os.strerror(error) in str(ended.error)
        assert path.read_bytes() == before


@every_error
def test_a_lock_that_cannot_be_taken_is_told(tmp_path: Path, error: int) -> None:
    path = tmp_path / "lock"
    with Subject() as subject:
        calls = subject.do(partial(works.lock, path)).calls
        for step in range(len(calls)):
            ended = subject.do(partial(works.lock, path), at(step, error))
            assert isinstance(ended.error, HostError | None)
            assert ended.error is None or f"lock {path}: " in str(ended.error)
            is_folder = step == calls.index("stat")  # which Python does not ask twice about
            told = is_folder or (calls[step] in RETRIED and error != errno.EINTR)
            assert (ended.error is not None) == told, calls[step]
