"""Without a ledger that can be trusted the agent looks, says so, and changes nothing."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.agent import node
from kata_gpu.errors import HostError, LedgerError
from kata_gpu.model.ledger import SCHEMA
from kata_gpu.observe import client
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, TEXT, journal_of
from tests.running import QUICK, Agent, Events, run, state_of


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path)
    path = kernel.host.path(SETTINGS.blueprint)
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    return kernel


def damage(kernel: FakeKernel) -> None:
    kernel.host.path(SETTINGS.ledger).write_text("{}")


def make_newer(kernel: FakeKernel) -> None:
    body = {"something": "new"}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    document = {"schema": SCHEMA + 1, "sha256": checksum, "ledger": body}
    kernel.host.path(SETTINGS.ledger).write_text(json.dumps(document))


def lose(kernel: FakeKernel) -> None:
    shutil.rmtree(kernel.host.path(SETTINGS.state_directory))


FAULTS: Final = [
    pytest.param(damage, "cannot trust the ledger", id="corrupt"),
    pytest.param(make_newer, f"has schema {SCHEMA + 1} and this agent knows up to", id="newer"),
    pytest.param(lose, "cannot find the ledger /var/lib/kata-gpu/ledger.json, but", id="missing"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_a_bound_unit_stays_as_it_is_and_is_offered_on(
    kernel: FakeKernel, events: Events, fault: Callable[[FakeKernel], None], reason: str
) -> None:
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    fault(kernel)
    writes = len(kernel.writes)

    async def script(agent: Agent) -> None:
        status = await agent.status()
        assert reason in status["read_only"]
        assert state_of(status) == "available"
        assert any(reason in f["reason"] for f in status["findings"] if f["subject"] == "node")

    run(kernel, events, script)
    assert len(kernel.writes) == writes
    assert nodes.GPU in kernel.host.path(CDI).read_text()


@pytest.mark.parametrize(("fault", "reason"), FAULTS[:2])
def test_a_unit_on_its_host_driver_stays_there_and_says_why(
    kernel: FakeKernel, events: Events, fault: Callable[[FakeKernel], None], reason: str
) -> None:
    kernel.host.path(SETTINGS.state_directory).mkdir(parents=True)
    fault(kernel)

    async def script(agent: Agent) -> None:
        status = await agent.status()
        assert state_of(status) == "refused"
        assert reason in status["units"][0]["reason"]

    run(kernel, events, script)
    assert kernel.writes == []


def test_a_ledger_that_is_restored_lets_the_agent_go_on(kernel: FakeKernel, events: Events) -> None:
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    ledger = kernel.host.path(SETTINGS.ledger)
    backup = ledger.read_bytes()
    damage(kernel)

    async def script(agent: Agent) -> None:
        assert "read_only" in await agent.status()
        ledger.write_bytes(backup)
        kernel.write(f"bus/pci/devices/{nodes.GPU}/driver_override", "\n")
        events.tell()
        status = await agent.until(lambda status: "read_only" not in status)
        assert state_of(status) == "available"

    run(kernel, events, script)
    assert kernel.read(f"bus/pci/devices/{nodes.GPU}/driver_override") == "vfio-pci"


def test_nothing_is_cleared_without_a_ledger(kernel: FakeKernel, events: Events) -> None:
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    damage(kernel)

    async def script(agent: Agent) -> None:
        path = kernel.host.path(QUICK.socket)
        with pytest.raises(HostError, match=r"cannot clear .*: nothing is changed"):
            await agent.ask(client.post, path, "/v1/clear", {"unit": nodes.GPU})

    run(kernel, events, script)


def test_a_first_start_has_no_ledger_and_needs_none(kernel: FakeKernel) -> None:
    assert node.open_journal(kernel.host, SETTINGS).ledger.entries == ()


def test_the_message_of_a_lost_ledger_says_what_to_do(kernel: FakeKernel) -> None:
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    lose(kernel)
    with pytest.raises(LedgerError, match=r"restore it from a backup, or remove what it published"):
        node.open_journal(kernel.host, SETTINGS)
