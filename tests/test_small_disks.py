"""A disk that lacks one byte: a file system in memory counts them, a real one its pages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem
from pyfakefs.fake_filesystem_unittest import Patcher

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError
from kata_gpu.host import files
from kata_gpu.model.ledger import Ledger

STATE: Final = Path("/var/lib/kata-gpu")
OLD: Final = Ledger(files=("/old",))
NEW: Final = Ledger(files=("/new", "/newer"))


@pytest.fixture
def disk() -> Iterator[FakeFilesystem]:
    with Patcher() as patcher:
        assert patcher.fs is not None
        patcher.fs.add_mount_point(str(STATE), total_size=1 << 20)
        yield patcher.fs


def size_of(ledger: Ledger) -> int:
    Journal(STATE / "ledger.json").update(lambda _: ledger)
    return (STATE / "ledger.json").stat().st_size


def test_a_ledger_is_saved_where_both_fit_and_the_old_one_stays_elsewhere(
    disk: FakeFilesystem,
) -> None:
    new, old = size_of(NEW), size_of(OLD)
    path = STATE / "ledger.json"
    for free in (0, 1, new // 2, new - 1, new, new + 1):
        Journal(path).update(lambda _: OLD)
        disk.set_disk_usage(old + free, str(STATE))
        journal = Journal(path)
        if free >= new:
            journal.update(lambda _: NEW)
        else:
            with pytest.raises(HostError, match=r"cannot write .*ledger.json: No space left on"):
                journal.update(lambda _: NEW)
        assert journal.ledger == Journal(path).ledger == (NEW if free >= new else OLD)
        assert list(STATE.iterdir()) == [path]
        disk.set_disk_usage(1 << 20, str(STATE))


def test_on_a_disk_without_a_byte_a_file_can_still_be_removed(disk: FakeFilesystem) -> None:
    disk.set_disk_usage(size_of(OLD), str(STATE))
    files.remove(STATE / "ledger.json")
    assert list(STATE.iterdir()) == []
