"""Whatever somebody plants where we write or read, nothing is written outside, and it is told."""

import ctypes
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.errors import HostError
from kata_gpu.host import files, locks
from kata_gpu.model.plan import RemoveFile, WriteFile
from kata_gpu.model.report import Result
from kata_gpu.settings import blueprint
from tests import passthrough
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kernel.systemd import Systemd
from tests.passthrough import CDI, SETTINGS, TEXT, everything, journal_of

BASE: Final = "/opt/kata/share/defaults/kata-containers/configuration.toml"
CONFIG_D: Final = "/opt/kata/share/defaults/kata-containers/config.d"
DROP_IN: Final = f"{CONFIG_D}/60-kata-gpu.toml"
CONF_D: Final = "/etc/containerd/conf.d"
WIRING: Final = f"{CONF_D}/kata-gpu.toml"
OWNED: Final = (CDI, DROP_IN, WIRING)
WANTED: Final = blueprint.parse(
    f'{TEXT}\n[[kata.handler]]\nname = "kata-go"\nruntime = "go"\nconfig = "{BASE}"\n'
    '[[runtime.handler]]\nname = "kata-gpu"\nbase = "kata-go"\n'
)
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_SPARE_BYTES: Final = 256 << 20


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path / "node")
    kernel.on_run = Systemd(kernel).run
    put(kernel, BASE, "[hypervisor.qemu]\n")
    put(kernel, "/etc/containerd/config.toml", f'version = 3\nimports = ["{CONF_D}/*.toml"]\n')
    return kernel


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else's, in which nothing may change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("precious", "60-kata-gpu.toml", "kata-gpu.toml", Path(CDI).name):
        (folder / name).write_text("# precious\n")
    return folder


def put(kernel: FakeKernel, path: str, text: str) -> Path:
    return passthrough.put(kernel.host.root, path, text)


def converge(kernel: FakeKernel) -> Turn:
    return node.converge(kernel.host, SETTINGS, WANTED, journal_of(kernel.host))


def failures(turn: Turn) -> dict[str, str]:
    """Return why each of the files failed, by path."""
    return {
        step.path: str(outcome.detail)
        for step, outcome in turn.taken
        if isinstance(step, WriteFile | RemoveFile) and outcome.result is Result.FAILED
    }


@contextmanager
def little_memory() -> Iterator[None]:
    """Let a piece of work fail that needs more than a moderate sum more than there is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def exchange(one: Path, other: Path) -> None:
    """Let two names change places in one step, as renameat2(2) does."""
    names = os.fsencode(one), os.fsencode(other)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


# Links


@pytest.mark.parametrize("path", OWNED)
def test_a_folder_that_is_a_link_is_not_written_through(
    kernel: FakeKernel, outside: Path, path: str
) -> None:
    folder = kernel.host.path(path).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(outside)
    before = everything(outside)
    failed = failures(converge(kernel))
    assert f"cannot write {kernel.host.path(path)}: its folder is a link to" in failed[path]
    assert everything(outside) == before
    for other in set(OWNED) - {path}:  # the others do not suffer
        assert kernel.host.path(other).is_file()


@pytest.mark.parametrize("path", OWNED)
def test_a_folder_that_became_a_link_is_not_removed_from(
    kernel: FakeKernel, outside: Path, path: str
) -> None:
    converge(kernel)
    folder = kernel.host.path(path).parent
    folder.rename(f"{folder}.moved")
    folder.symlink_to(outside)
    before = everything(outside)
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    report = executor.execute(kernel.host, plan, journal)
    assert any("its folder is a link to" in str(f.detail) for f in report.failures)
    assert everything(outside) == before
    assert path in journal_of(kernel.host).ledger.files


@pytest.mark.parametrize("path", OWNED)
def test_a_link_in_place_of_the_file_is_replaced_and_not_followed(
    kernel: FakeKernel, outside: Path, path: str
) -> None:
    at = kernel.host.path(path)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(outside / "precious")
    before = everything(outside)
    assert not failures(converge(kernel))
    assert not at.is_symlink()
    assert everything(outside) == before


@pytest.mark.parametrize("path", OWNED)
def test_a_link_to_nowhere_is_replaced_and_nowhere_stays(kernel: FakeKernel, path: str) -> None:
    at = kernel.host.path(path)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to("/nowhere/at/all")
    assert not failures(converge(kernel))
    assert at.is_file()
    assert not at.is_symlink()


def test_the_state_may_be_behind_a_link_of_the_admins(kernel: FakeKernel, tmp_path: Path) -> None:
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    state = kernel.host.path(SETTINGS.state_directory)
    state.parent.mkdir(parents=True, exist_ok=True)
    state.symlink_to(elsewhere)
    assert not failures(converge(kernel))
    assert (elsewhere / "ledger.json").is_file()


def test_the_ledger_itself_is_never_written_through_a_link(
    kernel: FakeKernel, outside: Path
) -> None:
    ledger = kernel.host.path(SETTINGS.ledger)
    ledger.parent.mkdir(parents=True, exist_ok=True)
    ledger.symlink_to(outside / "nothing-yet")
    before = everything(outside)
    converge(kernel)
    assert everything(outside) == before
    assert not ledger.is_symlink()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "lock").symlink_to(outside / "precious")
    with pytest.raises(HostError, match="cannot open the lock"), locks.exclusive(tmp_path / "lock"):
        pass
    assert (outside / "precious").read_text() == "# precious\n"


# Swaps


def test_a_folder_swapped_for_a_link_all_the_time_never_leads_outside(
    tmp_path: Path, outside: Path
) -> None:
    folder, aside = tmp_path / "config.d", tmp_path / "aside"
    folder.mkdir()
    aside.symlink_to(outside)
    before = everything(outside)
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.is_set():
            exchange(folder, aside)

    swapper = threading.Thread(target=swap)
    swapper.start()
    written = refused = 0
    try:
        for number in range(400):
            try:
                files.replace(folder / "60-kata-gpu.toml", f"{number}\n", staging=tmp_path)
                files.remove(folder / "precious")
                written += 1
            except HostError:
                refused += 1
    finally:
        is_over.set()
        swapper.join()
    assert everything(outside) == before
    assert written  # and as many are refused as found the link
    assert written + refused == 400
    assert [path for path in tmp_path.iterdir() if path.name.startswith(files.TEMPORARY)] == []


def test_a_file_exchanged_right_after_it_was_written_is_found_out(kernel: FakeKernel) -> None:
    converge(kernel)
    at = kernel.host.path(WIRING)
    at.unlink()
    at.write_text("version = 3\n")
    turn = converge(kernel)
    assert [step.path for step, _ in turn.taken if isinstance(step, WriteFile)] == [WIRING]
    assert "runtimes.kata-gpu" in at.read_text()


# Other things than files


@pytest.mark.parametrize("path", OWNED)
def test_a_folder_in_place_of_the_file_stays_and_is_told(kernel: FakeKernel, path: str) -> None:
    at = kernel.host.path(path)
    (at / "deep").mkdir(parents=True)
    assert "Is a directory" in failures(converge(kernel))[path]
    assert (at / "deep").is_dir()


@pytest.mark.parametrize("path", OWNED)
def test_a_pipe_in_place_of_the_file_makes_nobody_wait(kernel: FakeKernel, path: str) -> None:
    at = kernel.host.path(path)
    at.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(at)
    turn = converge(kernel)
    assert not failures(turn)
    assert at.is_file()


def test_reading_a_pipe_is_refused_with_and_without_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(HostError, match=r"cannot read .*pipe: it is a pipe"):
        files.read(pipe)
    other = os.open(pipe, os.O_RDWR)
    try:
        with pytest.raises(HostError, match="it is a pipe"):
            files.read(pipe)
    finally:
        os.close(other)


# Contents


@pytest.mark.parametrize(
    "content",
    [
        b"x = 1\n" * 2_000_000,
        b"\0" * 4096,
        b"x = " + b"[" * 500_000,
        b"[" * 500_000,
        b'x = "' + b"\\u0000" * 1000 + b'"',
        b"\xff\xfe" * 100,
        b"x = " + b"9" * 100_000,
    ],
    ids=["12 MB", "zeros", "deep array", "deep header", "escaped zeros", "no UTF-8", "long number"],
)
@pytest.mark.parametrize("path", [*OWNED, "/etc/containerd/config.toml", f"{CONF_D}/x.toml"])
def test_a_hostile_content_costs_little_and_ends_nothing(
    kernel: FakeKernel, path: str, content: bytes
) -> None:
    at = kernel.host.path(path)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_bytes(content)
    with little_memory():
        turn = converge(kernel)
    assert not failures(turn)
    is_ours = path in OWNED
    assert (at.read_bytes() == content) is not is_ours  # ours is mended, others' is left alone
    assert kernel.host.path(CDI).is_file()
