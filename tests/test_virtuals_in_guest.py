"""A pool that asks for virtual functions gets them from a real kernel, and gives them back."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_gpu.act.journal import Journal
from kata_gpu.model.ledger import Ledger
from tests.in_guest import DEVICES, Agent, at, command, driver, override, pool, write_files
from tests.lab.inside import Machine

pytestmark = pytest.mark.lab("igb", timeout_s=300)


@pytest.fixture
def parent(machine: Machine) -> Iterator[str]:
    """The physical function, which has no virtual ones before and after."""
    found = machine.address("igb-pf")
    assert virtuals(found) == []
    yield found
    if virtuals(found):
        attribute(found, "sriov_numvfs").write_text("0")


def attribute(address: str, name: str) -> Path:
    return DEVICES / address / name


def virtuals(parent: str) -> list[str]:
    return sorted(link.readlink().name for link in (DEVICES / parent).glob("virtfn*"))


def two_of(parent: str) -> str:
    return pool(at(parent)).replace("mode =", "virtual_functions = 2\nmode =")


def test_what_a_pool_asks_for_is_made_bound_offered_and_removed(
    parent: str, tmp_path: Path
) -> None:
    write_files(tmp_path, two_of(parent))
    subprocess.run(command("apply", tmp_path, "--yes"), check=True)
    made = virtuals(parent)
    assert [driver(address) for address in made] == 2 * ["vfio-pci"]
    assert [override(address) for address in made] == 2 * ["vfio-pci"]
    assert driver(parent) == "igb"
    (spec,) = (tmp_path / "cdi").glob("*.json")
    assert [device["name"] for device in json.loads(spec.read_text())["devices"]] == made
    assert subprocess.run(command("plan", tmp_path), check=False).returncode == 0
    subprocess.run(command("release", tmp_path, "--all", "--yes"), check=True)
    assert virtuals(parent) == []
    assert (driver(parent), override(parent)) == ("igb", "(null)")
    assert attribute(parent, "sriov_drivers_autoprobe").read_text() == "1\n"
    assert Journal(tmp_path / "state/ledger.json").ledger == Ledger()
    assert not (tmp_path / "cdi").exists()


def test_what_another_hand_made_is_bound_and_stays_after_a_release(
    parent: str, tmp_path: Path
) -> None:
    attribute(parent, "sriov_numvfs").write_text("2")
    there = virtuals(parent)
    before = {address: (driver(address), override(address)) for address in there}
    agent = Agent(tmp_path, two_of(parent))
    assert not agent.converge().report.failures
    assert [driver(address) for address in there] == 2 * ["vfio-pci"]
    assert sorted(agent.offered()) == there
    assert agent.converge().taken == ()
    assert not agent.release().failures
    assert virtuals(parent) == there
    assert {address: (driver(address), override(address)) for address in there} == before


def test_a_virtual_function_is_cleaned_after_its_user(parent: str, tmp_path: Path) -> None:
    agent = Agent(tmp_path, two_of(parent))
    assert not agent.converge().report.failures
    unit, other = virtuals(parent)
    agent.journal.amend(unit, is_used=True)
    assert not agent.converge().report.failures
    entry = agent.journal.ledger.entry(unit)
    assert entry is not None
    assert entry.cleaned is not None
    assert entry.cleaned.method == f"{unit} flr"
    assert entry.cleaned.result == "ids, BARs and link are as before"
    assert sorted(agent.offered()) == [unit, other]
    assert not agent.release().failures
    assert virtuals(parent) == []
