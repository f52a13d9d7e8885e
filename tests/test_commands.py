"""A program of the host gets what it needs and nothing of ours, and ends in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import modules
from kata_gpu.host.commands import run


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def has_ended(pid: int) -> bool:
    """Tell whether a process of nobody's ends within a moment."""
    for _ in range(200):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or ") Z " in status.read_text():
            return True
        time.sleep(0.01)
    return False


def shell(script: str, *, timeout_s: float = 5.0) -> str:
    return run(("sh", "-c", script), timeout_s=timeout_s)


def test_standard_output_is_returned() -> None:
    assert run(("echo", "one  two"), timeout_s=5.0) == "one  two\n"


def test_a_failure_shows_status_and_standard_error() -> None:
    with pytest.raises(HostError, match=r"cannot run sh -c .*: exit status 3: no such module"):
        shell("echo no such module >&2; exit 3")


def test_a_silent_failure_is_told_as_such() -> None:
    with pytest.raises(HostError, match="cannot run false: exit status 1: it said nothing"):
        run(("false",), timeout_s=5.0)


def test_of_a_long_standard_error_the_end_is_shown() -> None:
    with pytest.raises(HostError) as caught:
        shell("for i in $(seq 1 2000); do echo line $i; done >&2; echo the reason >&2; exit 1")
    assert str(caught.value).endswith("the reason")
    assert len(str(caught.value)) < 600


def test_a_program_that_a_signal_ends_has_failed() -> None:
    with pytest.raises(HostError, match="exit status -9"):
        shell("kill -9 $$")


def test_a_program_past_its_deadline_is_killed() -> None:
    started = time.monotonic()
    with pytest.raises(HostError, match=r"cannot finish sleep 30 within 0.1 s"):
        run(("sleep", "30"), timeout_s=0.1)
    assert time.monotonic() - started < 5


def test_a_grandchild_that_keeps_the_pipe_does_not_stretch_the_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(HostError, match=r"within 0\.1 s"):
        shell("sleep 3 & sleep 3", timeout_s=0.1)
    assert time.monotonic() - started < 2


def test_a_program_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    name = tmp_path / "pid"
    with pytest.raises(HostError, match=r"within 0\.3 s: it was killed$"):
        shell(f"sleep 30 & echo $! > {name}; wait", timeout_s=0.3)
    assert has_ended(int(name.read_text()))


def test_who_fled_the_kill_has_nothing_of_ours(tmp_path: Path) -> None:
    name = tmp_path / "pid"
    before = open_files()
    started = time.monotonic()
    with pytest.raises(HostError, match=r"within 0\.3 s: it was killed$"):
        shell(f"setsid sh -c 'echo $$ > {name}; exec sleep 30' & wait", timeout_s=0.3)
    assert time.monotonic() - started < 2
    assert open_files() == before
    pid = int(name.read_text())
    os.kill(pid, signal.SIGKILL)
    assert has_ended(pid)


def test_a_program_ends_with_who_asked_for_it(tmp_path: Path) -> None:
    name = tmp_path / "pid"
    code = "from kata_gpu.host.commands import run\nimport sys\nrun(sys.argv[1:], timeout_s=30)"
    program = ("sh", "-c", f"echo $$ > {name}; exec sleep 30")
    asking = subprocess.Popen((sys.executable, "-c", code, *program), stderr=subprocess.DEVNULL)
    while not (name.exists() and name.read_text().endswith("\n")):
        time.sleep(0.01)
    asking.send_signal(signal.SIGINT)
    assert asking.wait(5) != 0
    assert has_ended(int(name.read_text()))


def test_a_program_past_its_deadline_leaves_no_zombie() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    with pytest.raises(HostError):
        run(("sleep", "30"), timeout_s=0.1)
    assert children.read_text() == before


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(HostError, match="cannot run no-such-program --version: No such file"):
        run(("no-such-program", "--version"), timeout_s=5.0)


def test_the_environment_is_built_and_not_inherited() -> None:
    assert "HOME" in os.environ
    names = {line.partition("=")[0] for line in run(("env",), timeout_s=5.0).splitlines()}
    assert names == {"PATH", "LANG"}


def test_there_is_nothing_on_standard_input() -> None:
    assert run(("cat",), timeout_s=5.0) == ""


def test_it_runs_in_the_root_folder() -> None:
    assert run(("pwd",), timeout_s=5.0) == "/\n"


def test_arguments_reach_no_shell() -> None:
    assert run(("echo", "$HOME; exit 1"), timeout_s=5.0) == "$HOME; exit 1\n"


def test_output_that_is_no_text_is_no_error() -> None:
    assert shell(r"printf 'a\377b'") == "a\ufffdb"


def test_a_module_is_loaded_by_a_name_that_cannot_be_an_option() -> None:
    asked: list[tuple[str, ...]] = []

    def note(argv: object, *, timeout_s: float) -> str:
        assert isinstance(argv, tuple)
        assert timeout_s > 0
        asked.append(argv)
        return ""

    modules.load(note, "vfio-pci")
    assert asked == [("modprobe", "--", "vfio-pci")]
