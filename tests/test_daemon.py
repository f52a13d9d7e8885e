"""The daemon holds the node to the blueprint, and its end changes nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import binding
from kata_gpu.agent import daemon, node
from kata_gpu.errors import EndingError, HeldError, HostError, InvalidBlueprint
from kata_gpu.host.children import Children
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.ledger import Stage
from kata_gpu.model.pci import Binding, PciAddress
from kata_gpu.settings import blueprint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, SETTINGS, TEXT, journal_of
from tests.running import PATIENCE_S, QUICK, Agent, Events, run, sources, state_of, write_blueprint

GPU: Final = PciAddress.parse(nodes.GPU)
VFIO: Final = Binding(driver="vfio-pci", override="vfio-pci")
NVIDIA: Final = Binding(driver="nvidia", override=None)
OVERRIDE: Final = f"bus/pci/devices/{GPU}/driver_override"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path)
    path = kernel.host.path(SETTINGS.blueprint)
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    return kernel


def test_the_first_turn_binds_and_publishes(kernel: FakeKernel, events: Events) -> None:
    async def script(agent: Agent) -> None:
        status = await agent.status()
        assert state_of(status) == "available"
        assert status["units"][0]["nodes"] == ["/dev/vfio/1"]
        assert status["blueprint"] == "2026.1"
        assert [o["result"] for o in status["last_report"]["outcomes"]] == ["done"] * 3

    run(kernel, events, script)
    assert nodes.GPU in kernel.host.path(CDI).read_text()


async def nothing(_agent: Agent) -> None:
    """Let the daemon take its first turn, and end it."""


def test_its_end_leaves_devices_bound_and_files_written(kernel: FakeKernel, events: Events) -> None:
    run(kernel, events, nothing)
    assert binding.read(kernel, GPU) == VFIO
    assert kernel.host.path(CDI).exists()
    assert [entry.stage for entry in journal_of(kernel.host).ledger.entries] == [Stage.BOUND]
    assert not kernel.host.path(QUICK.socket).exists()


def test_a_turn_that_the_end_cuts_short_decides_nothing(kernel: FakeKernel, events: Events) -> None:
    run(kernel, events, nothing)
    published = kernel.host.path(CDI).read_text()
    sys_folder = kernel.host.root / "sys"
    forker = Children(root=sys_folder, timeout_s=1)
    forker.start()
    forker.give_up()
    ending = replace(kernel.host, sysfs=Sysfs(sys_folder, forker))
    with pytest.raises(EndingError, match="the agent ends"):
        node.converge(ending, QUICK, blueprint.parse(TEXT), journal_of(ending))
    forker.stop()
    assert kernel.host.path(CDI).read_text() == published
    assert [entry.stage for entry in journal_of(kernel.host).ledger.entries] == [Stage.BOUND]


def test_a_second_start_finds_all_in_order_and_writes_nothing(
    kernel: FakeKernel, events: Events
) -> None:
    run(kernel, events, nothing)
    kernel.writes.clear()
    run(kernel, events, nothing)
    assert kernel.writes == []


def test_a_start_reads_the_confidential_mode_that_an_older_agent_did_not(
    kernel: FakeKernel, events: Events
) -> None:
    run(kernel, events, nothing)
    kernel.tree.text("usr/share/misc/pci.ids", "#\n10de  NVIDIA\n\t2330  GH100 [H100]\n")
    kernel.tree.show_register(nodes.GPU, 0x1182CC, 1)

    async def script(agent: Agent) -> None:
        status = await agent.status()
        assert status["units"][0]["cc_mode"] == "on"
        count = len(kernel.writes)
        agent.events.tell()
        await agent.turn(2)
        assert len(kernel.writes) == count

    run(kernel, events, script)


def test_an_override_that_somebody_cleared_is_put_back_at_the_event(
    kernel: FakeKernel, events: Events
) -> None:
    async def script(agent: Agent) -> None:
        kernel.write(OVERRIDE, "\n")
        agent.events.tell()
        await agent.turn(2)
        assert binding.read(kernel, GPU) == VFIO

    run(kernel, events, script)


def test_a_device_that_the_host_driver_took_is_taken_back(
    kernel: FakeKernel, events: Events
) -> None:
    async def script(agent: Agent) -> None:
        kernel.write(OVERRIDE, "\n")
        kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.GPU)
        kernel.write("bus/pci/drivers/nvidia/bind", nodes.GPU)
        agent.events.tell()
        await agent.turn(2)
        assert binding.read(kernel, GPU) == VFIO
        assert state_of(await agent.status()) == "available"

    run(kernel, events, script)


def test_what_no_event_told_is_found_by_the_rescan(kernel: FakeKernel, events: Events) -> None:
    async def script(agent: Agent) -> None:
        kernel.write(OVERRIDE, "\n")
        await agent.turn((await agent.status())["pass_number"] + 2)
        assert binding.read(kernel, GPU) == VFIO

    run(kernel, events, script, replace(QUICK, rescan_interval_s=0.1))


def test_a_card_that_is_pulled_and_put_back_is_withdrawn_and_offered_again(
    kernel: FakeKernel, events: Events
) -> None:
    async def script(agent: Agent) -> None:
        kernel.unplug(nodes.GPU)
        agent.events.tell()
        await agent.until(lambda status: state_of(status) == "gone")
        assert not kernel.host.path(CDI).exists()
        kernel.plug(nodes.GPU)
        agent.events.tell()
        await agent.until(lambda status: state_of(status) == "available")

    run(kernel, events, script)
    assert nodes.GPU in kernel.host.path(CDI).read_text()


def refuse_unbinding(path: str, _value: str) -> None:
    if path.endswith("nvidia/unbind"):
        raise HostError("cannot unbind: the test says so")


def test_a_unit_that_failed_is_told_and_not_tried_at_once(
    kernel: FakeKernel, events: Events
) -> None:
    kernel.on_write = refuse_unbinding

    async def script(agent: Agent) -> None:
        status = await agent.status()
        assert state_of(status) == "failed"
        assert "the test says so" in status["units"][0]["reason"]
        writes = len(kernel.writes)
        agent.events.tell()
        assert state_of(await agent.turn(2)) == "failed"
        assert len(kernel.writes) == writes

    run(kernel, events, script)
    assert binding.read(kernel, GPU) == NVIDIA


def test_a_unit_that_failed_is_tried_again_after_a_while(
    kernel: FakeKernel, events: Events
) -> None:
    kernel.on_write = refuse_unbinding

    async def script(agent: Agent) -> None:
        assert state_of(await agent.status()) == "failed"
        kernel.on_write = None
        await agent.until(lambda status: state_of(status) == "available")

    run(kernel, events, script, replace(QUICK, rescan_interval_s=0.2))


def test_a_hangup_reads_the_blueprint_again(kernel: FakeKernel, events: Events) -> None:
    async def script(agent: Agent) -> None:
        write_blueprint(kernel, 'schema = 1\nversion = "2026.2"\n' + host_pool())
        os.kill(os.getpid(), signal.SIGHUP)
        status = await agent.until(lambda status: status["blueprint"] == "2026.2")
        assert state_of(status) == "host"

    run(kernel, events, script)
    assert binding.read(kernel, GPU) == NVIDIA
    assert not kernel.host.path(CDI).exists()


def host_pool() -> str:
    return '[[pool]]\nname = "gpus"\nmode = "host"\n[[pool.select]]\nclass = "03"\n'


def test_a_wrong_blueprint_is_complained_of_and_the_old_one_stays(
    kernel: FakeKernel, events: Events
) -> None:
    async def script(agent: Agent) -> None:
        write_blueprint(kernel, "schema = 7\n")
        os.kill(os.getpid(), signal.SIGHUP)
        status = await agent.until(lambda status: "blueprint_error" in status)
        assert "schema is 7: this agent knows schema 1" in status["blueprint_error"]
        assert (status["blueprint"], state_of(status)) == ("2026.1", "available")
        write_blueprint(kernel, TEXT)
        os.kill(os.getpid(), signal.SIGHUP)
        await agent.until(lambda status: "blueprint_error" not in status)

    run(kernel, events, script)
    assert binding.read(kernel, GPU) == VFIO


def test_a_hangup_lets_a_failed_unit_be_tried_at_once(kernel: FakeKernel, events: Events) -> None:
    kernel.on_write = refuse_unbinding

    async def script(agent: Agent) -> None:
        assert state_of(await agent.status()) == "failed"
        kernel.on_write = None
        os.kill(os.getpid(), signal.SIGHUP)
        await agent.until(lambda status: state_of(status) == "available")

    run(kernel, events, script)


def test_a_hangup_in_the_middle_of_a_turn_waits_for_its_end(tmp_path: Path, events: Events) -> None:
    kernel = nodes.three_vendors(tmp_path)
    kernel.host.path(SETTINGS.blueprint).parent.mkdir(parents=True)
    write_blueprint(kernel, TEXT)
    kernel.on_write = refuse_unbinding

    def hang_up(path: str, _value: str) -> None:
        if nodes.AMD_GPU in path:
            kernel.on_write = None
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.2)

    async def script(agent: Agent) -> None:
        assert state_of(await agent.status()) == "failed"
        kernel.write(f"bus/pci/devices/{nodes.AMD_GPU}/driver_override", "\n")
        kernel.on_write = hang_up
        agent.events.tell()
        await agent.until(lambda status: state_of(status) == "available")
        assert state_of(await agent.status(), nodes.AMD_GPU) == "available"

    run(kernel, events, script)


def test_a_stop_during_the_first_turn_lets_it_end_and_offers_nothing(
    kernel: FakeKernel, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def stop(_path: str, _value: str) -> None:
        kernel.on_write = None
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # until the loop has heard of it: a turn may be quicker than a signal

    kernel.on_write = stop
    run(kernel, events, None)
    assert binding.read(kernel, GPU) == VFIO
    assert nodes.GPU in kernel.host.path(CDI).read_text()
    assert "ready: " not in caplog.text
    assert caplog.messages[-1] == "stopped; every device stays bound as it is"


def test_what_a_killed_agent_left_half_written_is_swept(kernel: FakeKernel, events: Events) -> None:
    left = [
        kernel.host.path(f"{folder}/.kata-gpu-0123456789abcdef")
        for folder in (
            *(SETTINGS.state_directory, SETTINGS.cdi_directory),
            *(SETTINGS.quarantine, "/etc/cdi"),
        )
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kernel.host.path(f"{SETTINGS.quarantine}/%2Fetc%2Fcdi%2Fvendor.yaml").touch()

    run(kernel, events, nothing)
    assert not any(path.exists() for path in left)


# Refused starts


def test_a_second_daemon_is_refused_and_the_first_goes_on(
    kernel: FakeKernel, events: Events
) -> None:
    load = partial(blueprint.load, kernel.host.path(SETTINGS.blueprint))

    async def script(agent: Agent) -> None:
        with pytest.raises(HeldError, match=rf"process {os.getpid()} holds"):
            await daemon.run(kernel.host, QUICK, load, sources(kernel, events, None))
        assert state_of(await agent.status()) == "available"

    run(kernel, events, script)


def test_a_wrong_blueprint_at_the_start_changes_nothing(kernel: FakeKernel, events: Events) -> None:
    write_blueprint(kernel, "schema = 7\n")
    with pytest.raises(InvalidBlueprint, match="schema is 7"):
        run(kernel, events, None)
    assert kernel.writes == []


# As a process


@dataclass(frozen=True)
class Service:
    """A daemon as a process, and the socket on which it tells its manager."""

    process: subprocess.Popen[str]
    manager: socket.socket

    def says(self) -> bytes:
        """Return its next message; its log when there is none."""
        try:
            return self.manager.recv(200)
        except TimeoutError:
            self.process.kill()
            _, log = self.process.communicate()
            raise AssertionError(f"it ended with {self.process.returncode}: {log}") from None


@contextmanager
def managing(folder: Path) -> Iterator[Callable[[list[str]], Service]]:
    """Start daemons that tell of themselves, and let none outlive the block."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        ExitStack() as services,
    ):
        manager.settimeout(PATIENCE_S)
        manager.bind(str(folder / "notify"))

        def start(argv: list[str]) -> Service:
            environment = {"NOTIFY_SOCKET": str(folder / "notify")}
            process = services.enter_context(
                subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
            )
            services.callback(process.kill)
            return Service(process, manager)

        yield start


def test_the_service_manager_is_told_of_start_and_end(kernel: FakeKernel, tmp_path: Path) -> None:
    write_blueprint(kernel, 'schema = 1\nversion = "empty"\n')
    argv = [sys.executable, "-m", "kata_gpu", "run", "--root", str(tmp_path)]
    with managing(tmp_path) as start:
        first = start(argv)
        assert first.says() == b"READY=1\nSTATUS=blueprint empty: no units"
        second = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
        first.process.send_signal(signal.SIGTERM)
        assert first.says() == b"STOPPING=1"
        _, log = first.process.communicate(timeout=PATIENCE_S)
    assert first.process.returncode == 0
    assert "stopped; every device stays bound as it is" in log
    assert second.returncode == 1
    holds = f"kata-gpu: cannot change this node: process {first.process.pid} holds"
    assert second.stderr.startswith(holds)
    assert second.stderr.count("\n") == 1


def test_one_that_waits_begins_when_the_agent_before_it_has_ended(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    write_blueprint(kernel, 'schema = 1\nversion = "empty"\n')
    argv = [sys.executable, "-m", "kata_gpu", "run", "--root", str(tmp_path)]
    with managing(tmp_path) as start:
        first = start(argv)
        assert first.says().startswith(b"READY=1")
        second = start([*argv, "--wait"])
        assert second.process.stderr is not None
        assert f"until process {first.process.pid}," in second.process.stderr.readline()
        first.process.kill()
        assert second.says().startswith(b"READY=1")
        second.process.send_signal(signal.SIGTERM)
        assert second.says() == b"STOPPING=1"
        assert second.process.wait(PATIENCE_S) == 0
