"""A file is replaced whole or not at all, and nothing is left behind."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import files


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """Let every write past *size* bytes of a file fail, as on a full disk (with EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_gets_its_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, "Grüße\n", staging=tmp_path, mode=0o640)
    assert path.read_text(encoding="utf-8") == "Grüße\n"
    assert path.stat().st_mode & 0o7777 == 0o640


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.replace(tmp_path / "file", "text", staging=tmp_path, mode=0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o644


def test_a_file_is_replaced_and_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        files.replace(path, "new", staging=tmp_path)
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_one_for_this_boot_is_replaced_whole_too(tmp_path: Path) -> None:
    path = tmp_path / "out/file"
    for text in ("old", "new"):
        files.replace(path, text, staging=tmp_path / "out", mode=0o600, is_for_this_boot=True)
        assert path.read_text() == text
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_folders_that_are_missing_are_made(tmp_path: Path) -> None:
    files.replace(tmp_path / "a/b/file", "text", staging=tmp_path / "a/staging")
    assert (tmp_path / "a/b/file").read_text() == "text"


def test_nothing_but_the_file_is_left(tmp_path: Path) -> None:
    files.replace(tmp_path / "out/file", "text", staging=tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "file").symlink_to("precious")
    files.replace(tmp_path / "file", "text", staging=tmp_path)
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with disk_with_room_for(4096), pytest.raises(HostError, match=r"cannot write .*file: File too"):
        files.replace(path, "x" * 10_000, staging=tmp_path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_no_unicode_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot write .*surrogates"):
        files.replace(tmp_path / "file", "\ud800", staging=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_no_temporary_can_be_made_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(HostError, match=r"cannot write .*file: (Permission|Operation|Read-only)"):
        files.replace(path, "new", staging=Path("/sys/kernel"))  # refuses new files, root's too
    assert path.read_text() == "old"


def test_a_staging_folder_on_another_file_system_is_refused(tmp_path: Path) -> None:
    here = tmp_path.stat().st_dev
    elsewhere = next(
        folder / "kata-gpu-test"
        for folder in (Path("/dev/shm"), Path("/var/tmp"), Path.cwd())  # noqa: S108 - own folder
        if folder.stat().st_dev != here
    )
    path = tmp_path / "file"
    path.write_text("old")
    try:
        with pytest.raises(HostError, match=r"cannot write .*file: Invalid cross-device link"):
            files.replace(path, "new", staging=elsewhere)
        assert list(elsewhere.iterdir()) == []
    finally:
        elsewhere.rmdir()
    assert path.read_text() == "old"


def test_a_folder_at_the_target_stays_and_no_temporary_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(HostError, match=r"cannot write .*folder: Is a directory"):
        files.replace(tmp_path / "folder", "text", staging=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_file_in_the_way_of_a_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "way").write_text("here")
    with pytest.raises(HostError, match=r"cannot write .*way/file"):
        files.replace(tmp_path / "way/file", "text", staging=tmp_path)
    assert (tmp_path / "way").read_text() == "here"


def test_a_file_that_is_not_there_reads_as_none(tmp_path: Path) -> None:
    assert files.read(tmp_path / "file") is None


def test_a_file_of_the_largest_size_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 100_000)
    assert files.read(tmp_path / "file", max_bytes=100_000) == "x" * 100_000


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 101)
    with pytest.raises(HostError, match=r"cannot read .*file: it is longer than 100 bytes"):
        files.read(tmp_path / "file", max_bytes=100)


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(HostError, match="longer than 1000000 bytes"):
        files.read(Path("/dev/zero"), max_bytes=1_000_000)


def test_bytes_that_are_not_utf_8_are_refused_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xff")
    with pytest.raises(HostError, match=r"cannot read .*file: not UTF-8 at byte 3"):
        files.read(tmp_path / "file")


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot read .*: Is a directory"):
        files.read(tmp_path)


def test_removing_a_file_that_is_gone_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files.remove(tmp_path / "file")
    files.remove(tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_removing_a_link_keeps_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / "link").symlink_to("precious")
    files.remove(tmp_path / "link")
    assert list(tmp_path.iterdir()) == [tmp_path / "precious"]


def test_a_folder_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(HostError, match=r"cannot remove .*folder: Is a directory"):
        files.remove(tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()


def test_a_path_resolves_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    assert files.resolve("/link", root=tmp_path) == "/real"


@pytest.mark.parametrize("target", ["nowhere", "nowhere/deeper"])
def test_a_link_to_nowhere_resolves_to_none(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    assert files.resolve("/link", root=tmp_path) is None


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(HostError, match=r"cannot resolve .*one"):
        files.resolve("/one", root=tmp_path)


@pytest.mark.parametrize("target", ["/folder/file", "../folder/file", "../../../folder/./file"])
def test_links_lead_where_the_mounted_host_would_follow_them(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/link").symlink_to(target)
    assert files.resolve("/deep/link", root=tmp_path) == "/folder/file"
