"""Kata is led through this agent where that knows of DRA devices, and to kubelet elsewhere."""

import asyncio
import os
import signal
import socket
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.agent import asking, node
from kata_gpu.host import detour, listeners
from kata_gpu.host.detour import Detour, Guardian
from kata_gpu.model.plan import WriteFile
from kata_gpu.settings import blueprint
from kata_gpu.settings.agent import Kubernetes, Settings
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import TEXT, journal_of, put
from tests.test_cli import run

CONFIG: Final = "/opt/kata/configuration.toml"
SERVING: Final = Settings(kubernetes=Kubernetes())
LINK: Final = SERVING.pod_resources_link
KUBELET: Final = "/var/lib/kubelet/pod-resources/kubelet.sock"


@pytest.fixture
def kernel(short_path: Path) -> FakeKernel:
    kernel = nodes.gpu_with_audio(short_path)
    put(kernel.host.root, CONFIG, "[hypervisor.qemu]\n")
    return kernel


def handler_of(offer: str) -> str:
    """Return a blueprint with a handler, and a pool that is offered so."""
    handler = f'[[kata.handler]]\nname = "kata-go"\nruntime = "go"\nconfig = "{CONFIG}"\n'
    return TEXT.replace("mode =", f'offer = "{offer}"\nmode =') + handler


def asked(kernel: FakeKernel, settings: Settings, offer: str) -> str:
    """Return whom the drop-in of the plan has Kata ask."""
    wanted = blueprint.parse(handler_of(offer))
    _, plan = node.make_plan(kernel.host, settings, wanted, journal_of(kernel.host).ledger)
    (text,) = (
        step.content
        for step in plan.steps
        if isinstance(step, WriteFile) and step.path.endswith(".toml")
    )
    return str(tomllib.loads(text)["runtime"]["pod_resource_api_sock"])


@pytest.mark.parametrize(
    ("settings", "offer", "whom"),
    [
        pytest.param(SERVING, "dra", LINK, id="dra"),
        pytest.param(SERVING, "device-plugin", KUBELET, id="device-plugin"),
        pytest.param(Settings(), "dra", KUBELET, id="no-kubernetes"),
        pytest.param(
            replace(SERVING, kubernetes=Kubernetes(api=False)), "dra", KUBELET, id="no-api"
        ),
    ],
)
def test_the_plan_has_kata_ask_who_knows_all(
    kernel: FakeKernel, settings: Settings, offer: str, whom: str
) -> None:
    assert asked(kernel, settings, offer) == whom


def test_the_path_leads_to_kubelet_where_no_agent_runs(kernel: FakeKernel) -> None:
    asking.settle(kernel.host, SERVING)
    assert kernel.host.path(LINK).readlink() == Path(KUBELET)


def test_without_kubernetes_there_is_no_path(kernel: FakeKernel) -> None:
    asking.settle(kernel.host, Settings())
    assert not kernel.host.path(LINK).is_symlink()
    assert asking.detour(kernel.host, Settings()) is None


@pytest.fixture
def guardian(short_path: Path) -> Guardian:
    """Return one that is not started: tests with threads do not fork."""
    return Guardian(
        Detour(
            root=Path("/"),
            link=str(short_path / "state/pod-resources.sock"),
            through=detour.own_socket(str(short_path / "run")),
            around=str(short_path / "kubelet.sock"),
        )
    )


def test_kata_is_led_through_the_agent_while_it_answers(guardian: Guardian) -> None:
    way = guardian.detour

    async def main() -> None:
        async with asking.answering(guardian, lambda: None):
            assert way.is_open()
            assert listeners.is_served(Path(way.link))
        assert Path(way.link).readlink() == Path(way.around)
        assert not Path(way.through).exists()

    asyncio.run(main())


def test_what_a_killed_agent_left_is_removed(
    guardian: Guardian, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(guardian.detour.through).parent
    run.mkdir()
    left = Path(detour.own_socket(str(run)))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))

    async def main() -> None:
        async with asking.answering(guardian, lambda: None):
            assert not left.exists()

    asyncio.run(main())
    assert f"removed {left}, which a killed agent left" in caplog.text


def test_what_somebody_changed_is_changed_back(
    guardian: Guardian, caplog: pytest.LogCaptureFixture
) -> None:
    link = Path(guardian.detour.link)

    async def main() -> None:
        async with asking.answering(guardian, lambda: None):
            asking.hold(guardian)
            assert caplog.text == ""
            link.unlink()
            asking.hold(guardian)
            assert guardian.detour.is_open()
            assert "somebody had changed it" in caplog.text
            link.unlink()
            link.mkdir()
            asking.hold(guardian)
            assert "it is no symbolic link; remove it" in caplog.text
            link.rmdir()

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_guardian_that_is_gone_is_told_once(
    guardian: Guardian, caplog: pytest.LogCaptureFixture
) -> None:
    guardian.detour.settle()
    guardian.detour.open()
    with asking.guarded(guardian.detour) as started:
        asking.hold(started)
        assert caplog.text == ""
        assert started.pid is not None
        os.kill(started.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while not caplog.text and time.monotonic() < end:
            asking.hold(started)
        asking.hold(started)
    assert caplog.text.count("is gone: if this agent is killed now") == 1


def test_apply_makes_the_path_before_kata_is_told_of_it(kernel: FakeKernel) -> None:
    root = kernel.host.root
    put(root, "/etc/kata-gpu/agent.toml", "[kubernetes]\n")
    put(root, SERVING.blueprint, 'schema = 1\nversion = "1"\n')
    done = run("apply", "--yes", "--root", root)
    assert done.returncode == 0
    assert not kernel.host.path(LINK).is_symlink()
    put(root, SERVING.blueprint, handler_of("dra"))
    run("apply", "--yes", "--root", root)
    assert kernel.host.path(LINK).readlink() == Path(KUBELET)


def test_each_agent_has_a_socket_of_its_own(kernel: FakeKernel) -> None:
    ways = [asking.detour(kernel.host, SERVING) for _ in range(2)]
    sockets = {way.through for way in ways if way is not None}
    assert len(sockets) == 2
    for path in sockets:
        folder, _, name = path.rpartition("/")
        assert (folder, detour.is_own_socket(name)) == ("/run/kata-gpu", True)
