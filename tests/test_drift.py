"""What somebody changes behind our back is repaired or reported, and not fought over for ever."""

import os
import signal
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.observe import client
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, SETTINGS, TEXT, journal_of
from tests.running import QUICK, Agent, Events, run, state_of, write_blueprint

OVERRIDE: Final = f"bus/pci/devices/{nodes.GPU}/driver_override"
REPORT: Final = TEXT.replace('version = "2026.1"', 'version = "2026.1"\ndrift = "report"')


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path)
    kernel.host.path(SETTINGS.blueprint).parent.mkdir(parents=True)
    write_blueprint(kernel, TEXT)
    return kernel


async def next_turn(agent: Agent) -> dict[str, Any]:
    number = (await agent.status())["pass_number"]
    agent.events.tell()
    return await agent.turn(number + 1)


def finding(status: dict[str, Any], subject: str) -> str:
    return next(str(f["reason"]) for f in status["findings"] if f["subject"] == subject)


def test_drift_is_only_reported_where_the_blueprint_says_so(
    kernel: FakeKernel, events: Events
) -> None:
    write_blueprint(kernel, REPORT)

    async def script(agent: Agent) -> None:
        assert state_of(await agent.status()) == "available"
        kernel.write(OVERRIDE, "\n")
        assert state_of(await next_turn(agent)) == "drifted"
        status = await next_turn(agent)
        assert state_of(status) == "drifted"
        assert "0000:01:00.0 has vfio-pci" in finding(status, nodes.GPU)
        assert kernel.read(OVERRIDE) == "(null)"
        kernel.write(OVERRIDE, "vfio-pci")
        assert state_of(await next_turn(agent)) == "available"

    run(kernel, events, script)


def test_a_changed_file_is_only_reported_then_too(kernel: FakeKernel, events: Events) -> None:
    write_blueprint(kernel, REPORT)
    spec = kernel.host.path(CDI)

    async def script(agent: Agent) -> None:
        await agent.status()
        mended = spec.read_text()
        spec.write_text("{}")
        status = await next_turn(agent)
        assert finding(status, CDI) == "somebody changed it since it was written"
        assert state_of(status) == "drifted"
        assert spec.read_text() == "{}"
        spec.write_text(mended)
        assert (await next_turn(agent))["findings"] == []

    run(kernel, events, script)


def test_what_a_new_blueprint_asks_for_is_no_drift(kernel: FakeKernel, events: Events) -> None:
    write_blueprint(kernel, REPORT)

    async def script(agent: Agent) -> None:
        write_blueprint(kernel, REPORT.replace("passthrough", "host").replace("resource", "# r"))
        os.kill(os.getpid(), signal.SIGHUP)
        await agent.until(lambda status: state_of(status) == "host")

    run(kernel, events, script)
    assert journal_of(kernel.host).ledger.entries == ()


def test_who_undoes_our_work_again_and_again_is_not_fought(
    kernel: FakeKernel, events: Events
) -> None:
    async def script(agent: Agent) -> None:
        for _ in range(3):
            kernel.write(OVERRIDE, "\n")
            status = await next_turn(agent)
            assert state_of(status) == "available"
        kernel.write(OVERRIDE, "\n")
        writes = len(kernel.writes)
        assert state_of(await next_turn(agent)) == "contested"
        status = await next_turn(agent)
        assert state_of(status) == "contested"
        assert "foreign writer: another program undid it 3 times" in finding(status, nodes.GPU)
        assert len(kernel.writes) == writes

    run(kernel, events, script)


def test_a_file_that_somebody_keeps_changing_is_left_too(
    kernel: FakeKernel, events: Events
) -> None:
    spec = kernel.host.path(CDI)

    async def script(agent: Agent) -> None:
        for _ in range(3):
            spec.write_text("{}")
            await next_turn(agent)
            assert nodes.GPU in spec.read_text()
        spec.write_text("{}")
        status = await next_turn(agent)
        assert "foreign writer" in finding(status, CDI)
        assert state_of(status) == "contested"
        assert spec.read_text() == "{}"

    run(kernel, events, script)


def test_one_repair_is_no_contest(kernel: FakeKernel, events: Events) -> None:
    async def script(agent: Agent) -> None:
        kernel.write(OVERRIDE, "\n")
        status = await next_turn(agent)
        assert state_of(status) == "available"
        assert status["findings"] == []

    run(kernel, events, script)


def test_an_admin_clears_a_unit_through_the_socket(kernel: FakeKernel, events: Events) -> None:
    async def script(agent: Agent) -> None:
        with kernel.vm_holds(nodes.GPU):
            assert state_of(await next_turn(agent)) == "in-use"
        kernel.fail_write(lambda path, _value: path.endswith("/reset"), 25)
        assert state_of(await next_turn(agent)) == "quarantined"
        path = kernel.host.path(QUICK.socket)
        answer = await agent.ask(client.post, path, "/v1/clear", {"unit": nodes.GPU})
        assert answer == {"unit": nodes.GPU, "state": "available"}

    run(kernel, events, script)
