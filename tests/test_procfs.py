"""Users of a device are found by its number, whatever name they opened."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import procfs

PROC = Path("/proc")
FULL = Path("/dev/full")  # a character device that nobody has open


@contextmanager
def process_with(path: Path) -> Iterator[int]:
    """Let a real process have *path* open, and return its pid."""
    code = f"f = open({str(path)!r}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate(b"\n")


def proc_with(root: Path, pid: int, comm: bytes, *nodes: Path) -> Path:
    """Return a procfs in which one process has *nodes* open."""
    descriptors = root / str(pid) / "fd"
    descriptors.mkdir(parents=True)
    (root / str(pid) / "comm").write_bytes(comm)
    for number, node in enumerate(nodes, 3):
        (descriptors / str(number)).symlink_to(node)
    return root


def make_node(path: Path, kind: str, like: Path) -> Path:
    """Make a device node with the number of another, where we may."""
    number = like.stat().st_rdev
    made = subprocess.run(
        ["mknod", path, kind, str(os.major(number)), str(os.minor(number))],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("device nodes can be made by root alone")
    return path


def test_a_process_that_has_a_device_open_is_found_with_its_command() -> None:
    with process_with(FULL) as pid:
        found = procfs.openers(PROC, [FULL])
    assert [(opener.pid, opener.device) for opener in found] == [(pid, "/dev/full")]
    assert str(found[0]) == f"{found[0].command} (pid {pid}) has /dev/full open"
    assert found[0].command.startswith("python")


def test_a_device_is_free_again_when_its_user_has_ended() -> None:
    with process_with(FULL):
        assert procfs.openers(PROC, [FULL])
    assert procfs.openers(PROC, [FULL]) == ()


def test_a_device_opened_by_another_name_is_found(tmp_path: Path) -> None:
    other = make_node(tmp_path / "same", "c", FULL)
    with process_with(FULL) as pid:
        assert [opener.pid for opener in procfs.openers(PROC, [other])] == [pid]


def test_a_link_to_a_device_stands_for_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(FULL)
    with process_with(FULL) as pid:
        assert [opener.pid for opener in procfs.openers(PROC, [tmp_path / "link"])] == [pid]


def test_a_block_device_of_the_same_number_is_another_device(tmp_path: Path) -> None:
    block = make_node(tmp_path / "block", "b", FULL)
    proc = proc_with(tmp_path / "proc", 7, b"dmsetup\n", block)
    assert procfs.openers(proc, [FULL]) == ()
    assert procfs.openers(proc, [block]) == ()


def test_this_process_does_not_count() -> None:
    with FULL.open("rb"):
        assert procfs.openers(PROC, [FULL]) == ()


def test_users_of_several_devices_are_told_apart_and_in_order(tmp_path: Path) -> None:
    proc_with(tmp_path, 20, b"qemu\n", Path("/dev/full"))
    proc_with(tmp_path, 3, b"nvidia-smi\n", Path("/dev/zero"), Path("/dev/full"))
    found = procfs.openers(tmp_path, [Path("/dev/full"), Path("/dev/zero")])
    assert [(opener.pid, opener.device) for opener in found] == [
        (3, "/dev/full"),
        (3, "/dev/zero"),
        (20, "/dev/full"),
    ]


def test_a_device_opened_twice_by_one_process_is_told_once(tmp_path: Path) -> None:
    proc_with(tmp_path, 3, b"qemu\n", FULL, FULL)
    assert len(procfs.openers(tmp_path, [FULL])) == 1


def test_without_devices_no_process_is_looked_at(tmp_path: Path) -> None:
    assert procfs.openers(tmp_path / "none", []) == ()


def test_nodes_that_are_missing_or_no_devices_have_no_users(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    proc = proc_with(tmp_path / "proc", 3, b"cat\n", tmp_path / "file")
    assert procfs.openers(proc, [tmp_path / "file", tmp_path / "missing"]) == ()


def test_a_process_that_ends_meanwhile_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "4").mkdir()
    proc_with(tmp_path, 5, b"qemu\n", Path("gone"), FULL)
    assert [opener.pid for opener in procfs.openers(tmp_path, [FULL])] == [5]


def test_a_hostile_command_stays_on_one_line(tmp_path: Path) -> None:
    proc_with(tmp_path, 3, b"a\n\x1b[2J\xffb\n", FULL)
    (found,) = procfs.openers(tmp_path, [FULL])
    assert found.command == "a??[2J\ufffdb"


def test_a_process_without_a_name_is_found_nevertheless(tmp_path: Path) -> None:
    proc_with(tmp_path, 3, b"", FULL)
    assert [opener.command for opener in procfs.openers(tmp_path, [FULL])] == ["?"]


def test_without_procfs_nobody_can_say_that_a_device_is_free(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot list .*proc: No such file"):
        procfs.openers(tmp_path / "proc", [FULL])
