"""Services that keep a GPU busy are stopped before it leaves its driver, and start again."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.errors import HostError
from kata_gpu.host import services
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.report import Report, Result
from kata_gpu.model.unit import UnitState
from kata_gpu.settings import blueprint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kernel.nvml import CHILD, Nvml
from tests.kernel.systemd import Systemd
from tests.passthrough import CDI, SETTINGS, TEXT, journal_of

DAEMON: Final = "nvidia-persistenced.service"
DCGM: Final = "nvidia-dcgm.service"
FREED: Final = blueprint.parse(
    TEXT.replace("[[pool.select]]", f'stop_services = ["{DAEMON}", "{DCGM}"]\n\n[[pool.select]]')
)
HOST: Final = blueprint.parse(
    TEXT.replace('"passthrough"\nresource = "example.com/pgpu"', '"host"')
)


class Killed(BaseException):
    """The end of the process, which no handler sees."""


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.single_gpu(tmp_path)


@pytest.fixture
def card(kernel: FakeKernel) -> Path:
    """A node of the GPU's."""
    return kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")


@pytest.fixture
def systemd(kernel: FakeKernel, card: Path) -> Systemd:
    """A service that has the GPU open, one that does not run, and nothing else."""
    systemd = Systemd(kernel)
    systemd.install(DAEMON, [card])
    systemd.install(DCGM, running=False)
    kernel.on_run = systemd.run
    return systemd


def converge(kernel: FakeKernel, wanted: Blueprint = FREED) -> Turn:
    return node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))


def release(kernel: FakeKernel) -> Report:
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    return executor.execute(kernel.host, plan, journal)


def remembered(kernel: FakeKernel) -> tuple[str, ...]:
    return journal_of(kernel.host).ledger.services


def driver(kernel: FakeKernel) -> str | None:
    return kernel.link(f"bus/pci/devices/{nodes.GPU}/driver")


# Stopped


def test_a_service_is_stopped_before_the_first_store_and_noted_before_that(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    running: list[set[str]] = []
    noted: list[tuple[str, ...]] = []
    kernel.on_write = lambda _path, _value: running.append(systemd.running)

    def note(argv: tuple[str, ...]) -> str:
        if "stop" in argv:
            noted.append(remembered(kernel))
        return systemd.run(argv)

    kernel.on_run = note
    assert not converge(kernel).report.failures
    assert running == [set()] * 3
    assert noted == [(DAEMON,)]
    assert driver(kernel) == "vfio-pci"
    assert nodes.GPU in kernel.host.path(CDI).read_text()


def test_what_did_not_run_is_not_noted_and_never_started(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    converge(kernel)
    assert remembered(kernel) == (DAEMON,)
    assert not release(kernel).failures
    assert systemd.running == {DAEMON}


def test_a_service_that_the_node_does_not_have_is_no_failure(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    systemd.uninstall(DCGM)
    assert not converge(kernel).report.failures
    assert driver(kernel) == "vfio-pci"


def test_a_node_in_order_asks_systemd_nothing(kernel: FakeKernel, systemd: Systemd) -> None:
    converge(kernel)
    runs = len(kernel.runs)
    assert converge(kernel).report.outcomes == ()
    assert len(kernel.runs) == runs
    assert systemd.running == set()


def test_another_user_keeps_the_gpu_and_the_service(
    kernel: FakeKernel, systemd: Systemd, card: Path
) -> None:
    with kernel.process("python3", card):
        (finding,) = converge(kernel).plan.refusals
    assert "it is in use: python3" in str(finding)
    assert DAEMON not in str(finding)
    assert kernel.runs == []
    assert systemd.running == {DAEMON}


def test_a_service_that_the_pool_does_not_stop_is_named_as_a_user(
    kernel: FakeKernel, systemd: Systemd, card: Path
) -> None:
    systemd.install("gdm.service", [card])
    (finding,) = converge(kernel).plan.refusals
    assert "gdm.service (pid 41" in str(finding)
    assert "user 0, service gdm.service) has /dev/dri/card0 open" in str(finding)


# Not stopped


def be_deaf(systemd: Systemd) -> None:
    systemd.deaf = True


def refuse(systemd: Systemd) -> None:
    systemd.refused = {DAEMON}


def be_gone(systemd: Systemd) -> None:
    systemd.is_there = False


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (be_deaf, "cannot stop service nvidia-persistenced.service: systemd did it, and says "),
        (refuse, "exit status 1: Job for nvidia-persistenced.service failed."),
        (be_gone, "cannot ask the host's systemd about nvidia-dcgm.service (cannot run "),
    ],
)
def test_what_does_not_stop_keeps_its_gpu(
    kernel: FakeKernel, systemd: Systemd, fault: Callable[[Systemd], None], reason: str
) -> None:
    fault(systemd)
    turn = converge(kernel)
    assert reason in turn.failed[nodes.GPU].reason
    assert kernel.writes == []
    assert systemd.running == {DAEMON}
    assert driver(kernel) == "nvidia"


def test_what_only_seemed_to_be_stopped_is_forgotten_when_it_runs(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    be_deaf(systemd)
    converge(kernel)
    assert remembered(kernel) == ()


def test_an_answer_of_systemctl_that_is_none_is_an_error(kernel: FakeKernel) -> None:
    kernel.on_run = lambda _argv: "Running in chroot, ignoring command 'show'\n"
    with pytest.raises(HostError, match=r"cannot read systemd's answer about a.service: .Running"):
        services.read(kernel.host, "a.service")


def test_who_works_on_a_gpu_unseen_keeps_it_and_is_not_chased(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    nvml = Nvml(kernel, persistent=set())
    nvml.at_work = {nodes.GPU: [4242]}
    kernel.on_run = lambda argv: (nvml if argv[:4] == CHILD else systemd).run(argv)
    turn = converge(kernel)
    (held,) = (o for o in turn.report.outcomes if o.result is Result.HELD)
    assert "(pid 4242) runs work on GPU 0000:01:00.0" in str(held.detail)
    assert turn.failed[nodes.GPU].state is UnitState.FAILED
    assert systemd.running == {DAEMON}
    assert kernel.writes == []


# Started again


@pytest.mark.parametrize("index", range(3), ids=["override", "unbind", "bind"])
def test_after_a_failed_bind_it_runs_again(
    kernel: FakeKernel, systemd: Systemd, index: int
) -> None:
    kernel.fail_write(index, errno.EIO)
    assert converge(kernel).report.failures
    assert systemd.running == {DAEMON}
    assert journal_of(kernel.host).ledger == Ledger()


@pytest.mark.parametrize(
    "give_back", [lambda kernel: converge(kernel, HOST).report, release], ids=["host", "release"]
)
def test_after_the_last_release_it_runs_again(
    kernel: FakeKernel, systemd: Systemd, give_back: Callable[[FakeKernel], Report]
) -> None:
    converge(kernel)
    drivers: list[str | None] = []

    def note(argv: tuple[str, ...]) -> str:
        drivers.append(driver(kernel))
        return systemd.run(argv)

    kernel.on_run = note
    assert not give_back(kernel).failures
    assert set(drivers) == {"nvidia"}
    assert systemd.running == {DAEMON}
    assert journal_of(kernel.host).ledger == Ledger()


@pytest.mark.parametrize("fate", [Systemd.uninstall, lambda s, name: s.masked.add(name)])
def test_what_an_admin_took_away_is_forgotten(
    kernel: FakeKernel, systemd: Systemd, fate: Callable[[Systemd, str], None]
) -> None:
    converge(kernel)
    fate(systemd, DAEMON)
    assert not release(kernel).failures
    assert systemd.running == set()
    assert journal_of(kernel.host).ledger == Ledger()


def test_what_does_not_start_is_said_and_tried_again(kernel: FakeKernel, systemd: Systemd) -> None:
    converge(kernel)
    systemd.refused = {DAEMON}
    turn = converge(kernel, HOST)
    assert driver(kernel) == "nvidia"
    assert "Job for nvidia-persistenced.service failed" in turn.failed[DAEMON].reason
    assert "does not start again" in str(turn.plan.findings[-1])
    assert remembered(kernel) == (DAEMON,)
    systemd.refused = set()
    assert not converge(kernel, HOST).report.failures
    assert systemd.running == {DAEMON}


def test_what_starts_and_does_not_run_has_failed(kernel: FakeKernel, systemd: Systemd) -> None:
    converge(kernel)
    be_deaf(systemd)
    (failure,) = release(kernel).failures
    assert "says that it is inactive; see journalctl -u" in str(failure.detail)
    assert remembered(kernel) == (DAEMON,)


# A sudden end


def kill_at(kernel: FakeKernel, systemd: Systemd, run: int, act: Callable[[], object]) -> None:
    """Let the process end around a run of systemctl: before even ones, after odd ones."""
    runs = iter(range(1000))

    def end(argv: tuple[str, ...]) -> str:
        if next(runs) == run:
            raise Killed
        answer = systemd.run(argv)
        if next(runs) == run:
            raise Killed
        return answer

    kernel.on_run = end
    with pytest.raises(Killed):
        act()
    kernel.on_run = systemd.run


@pytest.mark.parametrize("then", [converge, release])
@pytest.mark.parametrize("run", range(8))
def test_an_end_around_a_stop_is_mended(
    kernel: FakeKernel, systemd: Systemd, run: int, then: Callable[[FakeKernel], object]
) -> None:
    kill_at(kernel, systemd, run, lambda: converge(kernel))
    then(kernel)
    release(kernel)
    assert systemd.running == {DAEMON}
    assert driver(kernel) == "nvidia"
    assert journal_of(kernel.host).ledger == Ledger()


@pytest.mark.parametrize("then", [converge, release])
@pytest.mark.parametrize("run", range(6))
def test_an_end_around_a_start_is_mended(
    kernel: FakeKernel, systemd: Systemd, run: int, then: Callable[[FakeKernel], object]
) -> None:
    converge(kernel)
    kill_at(kernel, systemd, run, lambda: release(kernel))
    then(kernel)
    release(kernel)
    assert systemd.running == {DAEMON}
    assert driver(kernel) == "nvidia"
    assert journal_of(kernel.host).ledger == Ledger()
