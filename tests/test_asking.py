"""Kata is led through this agent where that knows of DRA devices, and to kubelet elsewhere."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.agent import asking, node
from kata_gpu.host import detour
from kata_gpu.model.plan import WriteFile
from kata_gpu.settings import blueprint
from kata_gpu.settings.agent import Kubernetes, Settings
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import TEXT, journal_of, put

CONFIG: Final = "/opt/kata/configuration.toml"
SERVING: Final = Settings(kubernetes=Kubernetes())
LINK: Final = SERVING.pod_resources_link
KUBELET: Final = "/var/lib/kubelet/pod-resources/kubelet.sock"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.gpu_with_audio(tmp_path)
    put(kernel.host.root, CONFIG, "[hypervisor.qemu]\n")
    return kernel


def asked(kernel: FakeKernel, settings: Settings, offer: str) -> str:
    """Return whom the drop-in of the plan has Kata ask."""
    handler = f'[[kata.handler]]\nname = "kata-go"\nruntime = "go"\nconfig = "{CONFIG}"\n'
    wanted = blueprint.parse(TEXT.replace("mode =", f'offer = "{offer}"\nmode =') + handler)
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


def test_each_agent_has_a_socket_of_its_own(kernel: FakeKernel) -> None:
    ways = [asking.detour(kernel.host, SERVING) for _ in range(2)]
    sockets = {way.through for way in ways if way is not None}
    assert len(sockets) == 2
    for path in sockets:
        folder, _, name = path.rpartition("/")
        assert (folder, detour.is_own_socket(name)) == ("/run/kata-gpu", True)
