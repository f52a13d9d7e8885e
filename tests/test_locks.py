"""One agent holds the lock, and it ends with its holder, however that ends."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from kata_gpu.errors import HeldError, HostError
from kata_gpu.host import locks

_HOLDER = """
import subprocess, sys
from pathlib import Path
from kata_gpu.host import locks
with locks.exclusive(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    input()
"""


def start_holder(path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process that holds the lock and has a child, and return it with the child's pid."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


def end(holder: subprocess.Popen[bytes], child: int) -> None:
    holder.kill()
    holder.communicate()
    os.kill(child, signal.SIGKILL)


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    holder, child = start_holder(tmp_path / "lock")
    try:
        with (
            pytest.raises(
                HeldError, match=rf"process {holder.pid} holds .*lock; .*kata-gpu status"
            ),
            locks.exclusive(tmp_path / "lock"),
        ):
            pytest.fail("two processes hold the lock")
    finally:
        end(holder, child)


def test_a_holder_that_is_killed_frees_it_though_its_child_lives_on(tmp_path: Path) -> None:
    holder, child = start_holder(tmp_path / "lock")
    holder.kill()
    holder.communicate()
    try:
        with locks.exclusive(tmp_path / "lock"):
            os.kill(child, 0)
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    finally:
        os.kill(child, signal.SIGKILL)


def test_it_can_be_taken_again_after_it_was_left(tmp_path: Path) -> None:
    for _ in range(2):
        with locks.exclusive(tmp_path / "state/lock"):
            assert (tmp_path / "state/lock").read_text() == f"{os.getpid()}\n"


def test_within_one_process_it_is_exclusive_too(tmp_path: Path) -> None:
    with (
        locks.exclusive(tmp_path / "lock"),
        pytest.raises(HeldError, match=str(os.getpid())),
        locks.exclusive(tmp_path / "lock"),
    ):
        pytest.fail("the lock was given twice")


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locks.exclusive(tmp_path / "lock"):
        raise KeyError
    with locks.exclusive(tmp_path / "lock"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(HostError, match="cannot open the lock"), locks.exclusive(tmp_path / "lock"):
        pytest.fail("it opened a link")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_pipe_that_somebody_locked_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    pipe = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(pipe, fcntl.LOCK_EX)
    with (
        pytest.raises(HeldError, match="process unknown holds"),
        locks.exclusive(tmp_path / "lock"),
    ):
        pytest.fail("it locked what is locked")
    os.close(pipe)
    assert locks.owner(tmp_path / "lock") == "unknown"


def test_an_owner_that_is_no_process_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1\n\x1b[2J")
    assert locks.owner(tmp_path / "lock") == "unknown"


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(HostError, match=r"cannot open the lock .*file/lock"),
        locks.exclusive(tmp_path / "file/lock"),
    ):
        pytest.fail("it made a file below a file")


def test_a_lock_that_is_freed_in_time_is_had(tmp_path: Path) -> None:
    with ExitStack() as holder:
        holder.enter_context(locks.exclusive(tmp_path / "lock"))
        timer = threading.Timer(0.05, holder.close)
        timer.start()
        with locks.exclusive_within(tmp_path / "lock", timeout_s=30):
            assert locks.is_held(tmp_path / "lock")
        timer.join()
    assert not locks.is_held(tmp_path / "lock")


def test_who_holds_a_lock_too_long_is_named(tmp_path: Path) -> None:
    with (
        locks.exclusive(tmp_path / "lock"),
        pytest.raises(HeldError, match=rf"within 0.05 s: process {os.getpid()} holds it"),
        locks.exclusive_within(tmp_path / "lock", timeout_s=0.05),
    ):
        pytest.fail("the lock was given twice")


def test_to_ask_whether_a_lock_is_held_makes_none(tmp_path: Path) -> None:
    assert not locks.is_held(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_an_error_of_the_lock_itself_is_not_waited_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(HostError, match="cannot open the lock"),
        locks.exclusive_within(tmp_path / "file/lock", timeout_s=3600),
    ):
        pytest.fail("it made a file below a file")
