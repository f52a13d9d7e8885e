"""The container runtime gets our handlers by a drop-in, and is restarted only when allowed."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.discover import runtimes
from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.host import Host
from kata_gpu.model.blueprint import Blueprint, Restart, RuntimeKind
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.plan import RestartService, Severity, WriteFile
from kata_gpu.settings import blueprint
from tests import passthrough
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kernel.systemd import Systemd
from tests.passthrough import SETTINGS, everything, journal_of
from tests.running import QUICK, Agent, Events, run

CONFIG: Final = "/opt/kata/share/defaults/kata-containers/configuration.toml"
HEAD: Final = f"""\
schema = 1
version = "2026.1"

[[kata.handler]]
name = "kata-qemu-nvidia-gpu"
runtime = "go"
config = "{CONFIG}"
"""
OWN: Final = '\n[[runtime.handler]]\nname = "kata-gpu"\nbase = "kata-qemu-nvidia-gpu"\n'
ASKING: Final = blueprint.parse(HEAD + OWN)
RESTARTING: Final = blueprint.parse(f'{HEAD}\n[runtime]\nrestart = "when-changed"\n{OWN}')
WITHOUT: Final = blueprint.parse(HEAD)
MAIN: Final = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
DROP_IN: Final = "/etc/containerd/conf.d/kata-gpu.toml"
CONTAINERD: Final = "containerd.service"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.bare(tmp_path)
    put(kernel, "/etc/containerd/config.toml", MAIN)
    put(kernel, CONFIG, "[hypervisor.qemu]\n")
    return kernel


@pytest.fixture
def systemd(kernel: FakeKernel) -> Systemd:
    systemd = Systemd(kernel)
    systemd.install(CONTAINERD)
    kernel.on_run = systemd.run
    return systemd


def put(kernel: FakeKernel, path: str, text: str) -> None:
    at = passthrough.put(kernel.host.root, path, text)
    an_hour_ago = time.time() - 3600
    os.utime(at, (an_hour_ago, an_hour_ago))


def converge(kernel: FakeKernel, wanted: Blueprint) -> Turn:
    return node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))


def asked(turn: Turn) -> list[str]:
    return [f.reason for f in turn.plan.findings if f.severity is Severity.WARNING]


def release(kernel: FakeKernel) -> None:
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    executor.execute(kernel.host, plan, journal)


# The blueprint


def test_a_handler_of_ours_is_read_with_all_its_settings() -> None:
    text = f"""{HEAD}
[runtime]
restart = "when-changed"
kind = "crio"

[[runtime.handler]]
name = "kata-gpu-snp"
base = "kata-qemu-nvidia-gpu"
shim = "/usr/bin/shim"
snapshotter = "nydus"
guest_pull = true
"""
    wiring = blueprint.parse(text).wiring
    assert (wiring.restart, wiring.kind) == (Restart.WHEN_CHANGED, RuntimeKind.CRIO)
    (handler,) = wiring.handlers
    assert (handler.name, handler.base, handler.shim) == (
        "kata-gpu-snp",
        "kata-qemu-nvidia-gpu",
        "/usr/bin/shim",
    )
    assert (handler.snapshotter, handler.guest_pull) == ("nydus", True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('"kata-gpu"', '"kata-qemu"'), "other handlers are other people's"),
        (('"kata-gpu"', '"kata-gpu-"'), "expected kata-gpu or kata-gpu-"),
        (('"kata-gpu"', '"kata-gpux"'), "expected kata-gpu or kata-gpu-"),
        (('base = "kata-qemu-nvidia-gpu"', 'base = "none"'), "no [[kata.handler]] of that name"),
        (("base =", 'shim = "bin/shim"\nbase ='), "expected an absolute path"),
        (("base =", 'snapshotter = "../x"\nbase ='), "expected the name of a snapshotter"),
        (("[[runtime", '[runtime]\nrestart = "always"\n[[runtime'), "one of never, when-changed"),
        (("[[runtime", '[runtime]\nkind = "docker"\n[[runtime'), "one of containerd, k3s"),
        (("[[runtime", f"{OWN}[[runtime"), "runtime handler kata-gpu is there twice"),
    ],
)
def test_a_wrong_handler_of_ours_is_refused(change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(InvalidBlueprint) as error:
        blueprint.parse(HEAD + OWN.replace(*change))
    assert complaint in str(error.value)


# Writing and removing


def test_the_drop_in_is_written_once_and_is_ours(kernel: FakeKernel, systemd: Systemd) -> None:
    first = converge(kernel, ASKING)
    assert DROP_IN in [step.path for step, _ in first.taken if isinstance(step, WriteFile)]
    assert DROP_IN in journal_of(kernel.host).ledger.files
    assert 'runtimes.kata-gpu]\nruntime_type = "io.containerd.kata-gpu.v2"' in (
        kernel.host.path(DROP_IN).read_text()
    )
    assert converge(kernel, ASKING).taken == ()
    assert systemd.restarts == []


@pytest.mark.usefixtures("systemd")
def test_the_main_file_is_not_touched(kernel: FakeKernel) -> None:
    main = kernel.host.path("/etc/containerd/config.toml")
    before = main.stat()
    converge(kernel, ASKING)
    after = main.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.usefixtures("systemd")
def test_a_handler_that_left_the_blueprint_is_unwired(kernel: FakeKernel) -> None:
    converge(kernel, ASKING)
    converge(kernel, WITHOUT)
    assert not kernel.host.path(DROP_IN).exists()
    assert DROP_IN not in journal_of(kernel.host).ledger.files


@pytest.mark.usefixtures("systemd")
def test_a_release_of_all_removes_the_drop_in(kernel: FakeKernel) -> None:
    converge(kernel, ASKING)
    release(kernel)
    assert not kernel.host.path(DROP_IN).exists()
    assert journal_of(kernel.host).ledger == Ledger()


@pytest.mark.usefixtures("systemd")
def test_where_it_would_do_harm_nothing_is_written(kernel: FakeKernel) -> None:
    text = MAIN.replace("3", "2") + '[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "x"\n'
    put(kernel, "/etc/containerd/config.toml", text)
    before = everything(kernel.host.path("/etc"))
    turn = converge(kernel, ASKING)
    refused = [f for f in turn.plan.findings if f.severity is Severity.REFUSED]
    assert "would replace all that /etc/containerd/config.toml says" in refused[0].reason
    assert everything(kernel.host.path("/etc")) == before


# Restarting


def test_a_restart_is_asked_for_by_name_and_not_done(kernel: FakeKernel, systemd: Systemd) -> None:
    turn = converge(kernel, ASKING)
    assert asked(turn) == [f"containerd must be restarted to read {DROP_IN}"]
    assert systemd.restarts == []
    assert not turn.plan.steps


def test_a_restart_by_an_admin_ends_the_asking(kernel: FakeKernel, systemd: Systemd) -> None:
    converge(kernel, ASKING)
    systemd.run((*services_restart(), CONTAINERD))
    assert asked(converge(kernel, ASKING)) == []


def services_restart() -> tuple[str, ...]:
    return (
        *("/usr/bin/env", "SYSTEMD_IGNORE_CHROOT=1", "/usr/bin/systemctl"),
        *("--no-ask-password", "restart", "--"),
    )


def test_a_restart_that_is_allowed_is_done_once_after_the_file(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    turn = converge(kernel, RESTARTING)
    steps = [step for step, _ in turn.taken]
    assert isinstance(steps[-1], RestartService)
    assert isinstance(steps[steps[-1].needs[0] - 1], WriteFile)
    assert not turn.report.failures
    assert systemd.restarts == [CONTAINERD]
    assert converge(kernel, RESTARTING).taken == ()


def test_a_restart_that_was_missed_is_made_up_for(kernel: FakeKernel, systemd: Systemd) -> None:
    converge(kernel, ASKING)
    turn = converge(kernel, RESTARTING)
    assert [type(step) for step, _ in turn.taken] == [RestartService]
    assert systemd.restarts == [CONTAINERD]


def test_a_runtime_that_does_not_start_with_our_file_is_started_without(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    systemd.may_start = lambda _: not kernel.host.path(DROP_IN).exists()
    turn = converge(kernel, RESTARTING)
    (failure,) = turn.report.failures
    assert "so it runs without" in str(failure.detail)
    assert CONTAINERD in systemd.running
    assert not kernel.host.path(DROP_IN).exists()
    assert not turn.plan.steps  # nor is it written again at once


def test_a_runtime_that_does_not_run_is_not_started(kernel: FakeKernel, systemd: Systemd) -> None:
    systemd.install("crio.service", running=False)
    systemd.run(
        ("/usr/bin/env", *services_restart()[1:3], "--no-ask-password", "stop", "--", CONTAINERD)
    )
    converge(kernel, RESTARTING)
    assert systemd.restarts == []
    assert CONTAINERD not in systemd.running


def test_a_runtime_that_would_not_come_up_again_is_not_restarted(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    put(kernel, "/etc/containerd/conf.d/99-broken.toml", "version = [")
    turn = converge(kernel, RESTARTING)
    assert systemd.restarts == []
    assert "may not come up again: containerd does not start with" in asked(turn)[0]


def test_without_systemd_the_restart_is_asked_for_when_the_file_is_written(
    kernel: FakeKernel,
) -> None:
    def refuse(argv: tuple[str, ...]) -> str:
        raise HostError(f"cannot run {argv[0]}: it is not there")

    kernel.on_run = refuse
    _, plan = node.make_plan(kernel.host, SETTINGS, RESTARTING, Ledger())
    assert any("must be restarted" in finding.reason for finding in plan.findings)
    assert not converge(kernel, RESTARTING).report.failures


def test_a_clock_that_was_put_back_causes_no_restart_for_ever(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    converge(kernel, RESTARTING)
    in_an_hour = time.time() + 3600
    os.utime(kernel.host.path(DROP_IN), (in_an_hour, in_an_hour))
    turn = converge(kernel, RESTARTING)
    assert turn.taken == ()
    assert systemd.restarts == [CONTAINERD]


def test_a_daemon_does_not_try_a_restart_that_failed_again_and_again(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    systemd.may_start = lambda _: not kernel.host.path(DROP_IN).exists()
    put(kernel, SETTINGS.blueprint, f'{HEAD}\n[runtime]\nrestart = "when-changed"\n{OWN}')
    events = Events()

    async def script(agent: Agent) -> None:
        status = await agent.turn(4)
        assert systemd.restarts == [CONTAINERD, CONTAINERD]  # with our file, and without
        assert any("have the blueprint read again" in f["remedy"] for f in status["findings"])
        os.kill(os.getpid(), signal.SIGHUP)
        await agent.until(lambda _: len(systemd.restarts) == 4)

    try:
        run(kernel, events, script, replace(QUICK, rescan_interval_s=0.2))
    finally:
        events.close()


# What is asked once


def containerd_of(kernel: FakeKernel, systemd: Systemd, version: str) -> None:
    """Give the node a containerd, in a file of its own, that tells its version."""
    binary = kernel.host.path("/usr/bin/containerd")
    binary.parent.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_name("fresh")
    fresh.write_text(version)
    fresh.replace(binary)

    def answer(argv: tuple[str, ...]) -> str:
        if argv[-1] != "--version":
            return systemd.run(argv)
        return f"containerd github.com/containerd/containerd/v2 v{binary.read_text()} abc"

    kernel.on_run = answer


def found(host: Host) -> tuple[str | None, float | None]:
    (runtime,) = runtimes.find(host)
    return runtime.version, runtime.started_at_s


def test_a_container_runtime_that_is_the_same_is_asked_once(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    containerd_of(kernel, systemd, "2.0.5")
    host = kernel.host
    version, started = found(host)
    assert (version, started is not None) == ("2.0.5", True)
    asked = len(kernel.runs)
    again, since = found(host)
    assert again == "2.0.5"
    assert since == pytest.approx(started, abs=1)
    assert len(kernel.runs) == asked


def test_a_container_runtime_that_was_replaced_or_restarted_is_asked_again(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    containerd_of(kernel, systemd, "2.0.5")
    host = kernel.host
    _, started = found(host)
    containerd_of(kernel, systemd, "2.1.0")
    systemd.run((*services_restart(), CONTAINERD))
    version, since = found(host)
    assert version == "2.1.0"
    assert started is not None
    assert since is not None
    assert since > started


def test_a_service_whose_process_nobody_can_tell_is_asked_each_time(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    host = kernel.host
    found(host)
    for cgroup in host.path("/proc").glob("[0-9]*/cgroup"):
        cgroup.write_text("0::/\n")
    asked = len(kernel.runs)
    assert found(host)[1] is not None
    assert len(kernel.runs) == asked + 1


def test_a_container_runtime_that_does_not_answer_is_asked_again(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    containerd_of(kernel, systemd, "2.0.5")
    answer, host = kernel.on_run, kernel.host

    def refuse(argv: tuple[str, ...]) -> str:
        raise HostError(f"cannot run {argv[0]}: it is busy")

    kernel.on_run = refuse
    assert found(host) == (None, None)
    kernel.on_run = answer
    assert found(host)[0] == "2.0.5"
