"""Unbinds that hang in a real kernel: what the agent says, leaves alone, survives and mends.

The user that an unbind waits for is one that no look at /proc finds: its descriptors are on
their way between two sockets. To the agent that is a user who came after the look.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act.journal import Journal
from kata_gpu.host import leftovers
from kata_gpu.model.operation import Operation
from kata_gpu.model.report import Result
from kata_gpu.model.unit import UnitState
from tests.in_guest import (
    Agent,
    Daemon,
    at,
    command,
    driver,
    host_pool,
    override,
    pool,
    running_daemon,
    wait_for,
    write_files,
)
from tests.kernel import vfio_user
from tests.lab.inside import Machine

_TIMEOUT_S: Final = 5.0
_TURN_S: Final = 30.0
"""What the rest of a turn takes at most where everything is emulated: it shows at the end."""

_QUICK: Final = {"operation_timeout_s": _TIMEOUT_S, "rescan_interval_s": 2.0}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent whose files are the daemon's too; it gives back what either took."""
    made = Agent(tmp_path, "")
    yield made
    made.journal = Journal(Path(made.settings.ledger))
    assert not made.release().failures


def hanging() -> tuple[Operation, ...]:
    return leftovers.find(Path("/proc"))


def state(daemon: Daemon, unit: str) -> str:
    return str(daemon.unit(unit)["state"])


def said(verb: str, folder: Path) -> str:
    """Return what a verb prints of the node, in time."""
    done = subprocess.run(
        command(verb, folder), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.lab(timeout_s=300)
def test_an_unbind_that_hangs_costs_its_unit_and_nothing_else(
    machine: Machine, agent: Agent, tmp_path: Path
) -> None:
    gpu, card = machine.address("gpu"), machine.address("card")
    write_files(tmp_path, pool(at(gpu)), **_QUICK)
    with running_daemon(tmp_path) as daemon:
        wait_for(lambda: state(daemon, gpu) == "available", timeout_s=60)
        with vfio_user.hidden(gpu):
            write_files(tmp_path, host_pool(at(gpu)) + pool(at(card)), **_QUICK)
            wait_for(lambda: hanging() != (), timeout_s=30)
            waited_s = wait_for(lambda: state(daemon, gpu) == "stuck", timeout_s=60)
            assert waited_s < _TIMEOUT_S + _TURN_S
            (store,) = hanging()
            assert (store.attribute, store.value) == ("bus/pci/drivers/vfio-pci/unbind", gpu)
            wait_for(lambda: state(daemon, card) == "available", timeout_s=30)
            assert list(agent.offered()) == [card]

            for shown in (said("status", tmp_path), said("plan", tmp_path)):
                assert f"(pid {store.pid})" in shown
                assert f"in {store.wait_channel}" in shown
                assert "hangs for" in shown
            passed = daemon.ask()["pass_number"]
            wait_for(lambda: daemon.ask()["pass_number"] > passed + 1, timeout_s=60)
            assert [op.pid for op in hanging()] == [store.pid], "nobody waits beside it"

            assert daemon.end() < _TIMEOUT_S
            with running_daemon(tmp_path) as heir:
                wait_for(lambda: state(heir, gpu) == "stuck", timeout_s=60)
                assert f"(pid {store.pid})" in heir.unit(gpu)["reason"]
                assert [op.pid for op in hanging()] == [store.pid]
                assert state(heir, card) == "available"
                heir.end()
        with running_daemon(tmp_path) as heir:
            wait_for(lambda: state(heir, gpu) == "host", timeout_s=60)
            assert (driver(gpu), override(gpu)) == ("bochs-drm", "(null)")
            assert hanging() == ()


@pytest.mark.lab(timeout_s=300)
def test_the_agent_mends_it_by_itself_when_the_user_lets_go(
    machine: Machine, agent: Agent, tmp_path: Path
) -> None:
    gpu = machine.address("gpu")
    write_files(tmp_path, pool(at(gpu)), **_QUICK)
    with running_daemon(tmp_path) as daemon:
        wait_for(lambda: state(daemon, gpu) == "available", timeout_s=60)
        with vfio_user.hidden(gpu):
            write_files(tmp_path, host_pool(at(gpu)), **_QUICK)
            wait_for(lambda: state(daemon, gpu) == "stuck", timeout_s=60)
        wait_for(lambda: state(daemon, gpu) == "host", timeout_s=60)
        assert (driver(gpu), override(gpu)) == ("bochs-drm", "(null)")
        assert hanging() == ()
        write_files(tmp_path, pool(at(gpu)), **_QUICK)
        wait_for(lambda: state(daemon, gpu) == "available", timeout_s=60)
    assert list(agent.offered()) == [gpu]


@pytest.mark.lab
def test_a_card_that_hangs_half_way_is_left_there_and_comes_back_whole(
    machine: Machine, agent: Agent, tmp_path: Path
) -> None:
    card, audio = machine.address("card"), machine.address("audio")
    agent = Agent(tmp_path, pool(at(card)))
    assert agent.converge().report.failures == ()
    with vfio_user.holding(card):  # nobody looks at itself
        report = agent.release()
        assert [o.result for o in report.outcomes] == [Result.DONE, Result.FAILED]
        (store,) = hanging()
        assert store.value == card
        assert driver(audio) is None, "its turn was before; nothing was written since"
        assert agent.states() == {card: UnitState.STUCK}
        assert agent.release().outcomes == ()
        assert agent.offered() == {}
        assert [op.pid for op in hanging()] == [store.pid]
    wait_for(lambda: hanging() == (), timeout_s=10)
    assert agent.release().failures == ()
    assert (driver(card), driver(audio)) == ("bochs-drm", "snd_hda_intel")
    assert (override(card), override(audio)) == ("(null)", "(null)")
    assert agent.converge().report.failures == ()
    assert list(agent.offered()) == [card]


@pytest.mark.lab
def test_a_hang_of_somebody_elses_making_is_met_once(
    machine: Machine, agent: Agent, tmp_path: Path
) -> None:
    gpu = machine.address("gpu")
    agent = Agent(tmp_path, pool(at(gpu)))
    assert agent.converge().report.failures == ()
    with vfio_user.hidden(gpu):
        other = subprocess.Popen(("sh", "-c", f"echo {gpu} >/sys/bus/pci/drivers/vfio-pci/unbind"))
        wait_for(lambda: driver(gpu) is None, timeout_s=10)
        assert agent.states() == {gpu: UnitState.STUCK}
        met = hanging()
        assert {str(op.address) for op in met} == {gpu}
        assert agent.states() == {gpu: UnitState.STUCK}
        assert [op.pid for op in hanging()] == [op.pid for op in met]
    assert other.wait(10) == 0
    wait_for(lambda: hanging() == (), timeout_s=10)
    assert agent.converge().report.failures == ()
    assert driver(gpu) == "vfio-pci"
