"""A disk that is really full, or read-only: nothing is lost, and freeing it is enough."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act.journal import Journal
from kata_gpu.host import locks
from kata_gpu.model.ledger import Ledger, Stage
from kata_gpu.model.unit import UnitState
from tests.in_guest import Agent, at, driver, override, pool
from tests.lab.inside import Machine

SIZE: Final = "32k"  # eight pages: a file has one at least
HOST_DRIVER: Final = "bochs-drm"


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Give *folder* a small file system of its own."""
    folder.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    try:
        yield
    finally:
        run("umount", str(folder))


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextmanager
def full(folder: Path) -> Iterator[str]:
    """Fill the file system at *folder* to the last byte; yield what the kernel then says."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(iter(lambda: bytes(1024), None))
    try:
        yield "No space left on device"
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[str]:
    run("mount", "-o", "remount,ro", str(folder))
    try:
        yield "Read-only file system"
    finally:
        run("mount", "-o", "remount,rw", str(folder))


Breaking = Callable[[Path], AbstractContextManager[str]]
each_way = pytest.mark.parametrize("broken", [full, read_only])


class Node(Agent):
    """An agent that is used from the command line, as an admin does."""

    def __init__(self, folder: Path, gpu: str) -> None:
        super().__init__(folder, pool(at(gpu)))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "blueprint.toml").write_text(f'schema = 1\nversion = "lab"\n{pool(at(gpu))}')
        (folder / "agent.toml").write_text(
            f'blueprint = "{folder}/blueprint.toml"\n'
            f'state_directory = "{self.settings.state_directory}"\n'
            f'cdi_directory = "{self.settings.cdi_directory}"\n'
        )
        self._file = folder / "agent.toml"

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = (sys.executable, "-m", "kata_gpu", *words, "--yes", "--settings", str(self._file))
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    def ledger(self) -> Ledger:
        """Return the ledger on disk, as the next process will read it."""
        self.journal = Journal(Path(self.settings.ledger))
        return self.journal.ledger

    @property
    def state(self) -> Path:
        return Path(self.settings.state_directory)

    @property
    def cdi(self) -> Path:
        return Path(self.settings.cdi_directory)


@pytest.fixture
def gpu(machine: Machine) -> str:
    return machine.address("gpu")


@pytest.fixture
def node(gpu: str, tmp_path: Path) -> Iterator[Node]:
    """A node that has used both of its folders once; what it took is given back at last."""
    agent = Node(tmp_path, gpu)
    with mounted(agent.state), mounted(agent.cdi):
        with locks.exclusive(Path(agent.settings.lock)):
            assert not agent.converge().report.failures
            assert not agent.release().failures
        yield agent
        agent.ledger()
        assert not agent.release().failures
        assert driver(gpu) == HOST_DRIVER


@pytest.mark.lab(timeout_s=300)
@each_way
def test_without_room_for_the_ledger_no_device_is_touched(
    node: Node, gpu: str, broken: Breaking
) -> None:
    before = (node.state / "ledger.json").read_bytes()
    with broken(node.state) as reason:
        done = node.cli("apply")
        assert done.returncode == 1
        assert (node.state / "ledger.json").read_bytes() == before
        assert {path.name for path in node.state.iterdir()} <= {
            *("ledger.json", "agent.lock", "filler")
        }
    assert done.stderr.startswith("kata-gpu: ")
    assert done.stderr.count("\n") == 1
    assert f"{node.state}/" in done.stderr
    assert reason in done.stderr
    assert (driver(gpu), override(gpu)) == (HOST_DRIVER, "(null)")
    assert node.offered() == {}
    assert node.ledger() == Ledger()
    done = node.cli("apply")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(node.offered()) == [gpu]


@pytest.mark.lab(timeout_s=300)
@each_way
def test_a_disk_that_was_never_written_gets_one_clear_message(
    gpu: str, tmp_path: Path, broken: Breaking
) -> None:
    agent = Node(tmp_path, gpu)
    with mounted(agent.state), broken(agent.state) as reason:
        done = agent.cli("apply")
    assert done.returncode == 1
    assert done.stderr.startswith("kata-gpu: cannot ")
    assert f"{agent.state}/agent.lock: {reason}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (driver(gpu), override(gpu)) == (HOST_DRIVER, "(null)")


@pytest.mark.lab(timeout_s=300)
@each_way
def test_without_room_for_the_cdi_spec_a_unit_is_bound_and_not_offered(
    node: Node, gpu: str, broken: Breaking
) -> None:
    with broken(node.cdi) as reason:
        done = node.cli("apply")
        assert done.returncode == 1
        assert "1 step failed, first: write" in done.stderr
        assert f"cannot write {node.cdi}/" in done.stderr
        assert reason in done.stderr
        assert driver(gpu) == "vfio-pci"
        assert node.offered() == {}
        (entry,) = node.ledger().entries
        assert (entry.unit, entry.stage) == (gpu, Stage.BOUND)
        assert entry.functions[0].original.driver == HOST_DRIVER
        assert node.states() == {gpu: UnitState.PENDING}
        assert {path.name for path in node.cdi.iterdir()} <= {"filler"}
    done = node.cli("apply")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(node.offered()) == [gpu]
    assert node.states() == {gpu: UnitState.AVAILABLE}


@pytest.mark.lab(timeout_s=300)
@each_way
def test_without_room_a_unit_that_is_offered_stays_as_it_is(
    node: Node, gpu: str, broken: Breaking
) -> None:
    assert not node.converge().report.failures
    ledger = node.ledger()
    with broken(node.state) as reason:
        done = node.cli("release", "--all")
        assert done.returncode == 1
        assert reason in done.stderr
        assert driver(gpu) == "vfio-pci"
        assert node.ledger() == ledger
    assert not node.release().failures
    assert driver(gpu) == HOST_DRIVER
