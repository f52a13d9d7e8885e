"""An agent that is killed at any moment leaves nothing that a fresh one does not mend."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests import kills
from tests.in_guest import at, command, driver, pool, running_daemon, wait_for, write_files
from tests.lab.inside import Machine


@pytest.mark.parametrize(
    ("topology", "work"),
    [
        pytest.param(name, work, marks=pytest.mark.lab(name, timeout_s=480))
        for name, works in (
            ("single", ("bind", "release", "clean")),
            ("card", ("bind", "release")),
            ("bridge", ("bind", "release")),
            ("sriov", ("make", "remove")),
        )
        for work in works
    ],
)
def test_an_agent_may_be_killed_at_any_moment(topology: str, work: str, tmp_path: Path) -> None:
    name, found = kills.here(tmp_path)
    assert name == topology
    tally = kills.works(name, found)[work]()
    found.to_home()
    assert tally.points >= 6
    assert tally.wrong == ()


@pytest.mark.lab("single", timeout_s=240)
def test_a_daemon_that_is_killed_is_mended_by_the_next_command(
    machine: Machine, tmp_path: Path
) -> None:
    gpu = machine.address("gpu")
    write_files(tmp_path, pool(at(gpu)))
    with running_daemon(tmp_path) as daemon:
        wait_for(lambda: driver(gpu) != "bochs-drm", timeout_s=60)
        daemon.process.kill()
        assert daemon.process.wait(10) == -signal.SIGKILL
    for verb, reached in (("apply", "vfio-pci"), ("release", "bochs-drm")):
        all_units = ("--all",) if verb == "release" else ()
        subprocess.run(command(verb, tmp_path, "--yes", *all_units), check=True)
        assert driver(gpu) == reached
    assert not (tmp_path / "cdi").exists()
