"""The whole agent between a kernel, a kubelet and an API server."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import pytest

from kata_gpu.act import binding
from kata_gpu.model.kubernetes import GPU_DRIVER
from kata_gpu.model.pci import PciAddress
from tests.cluster import ON_CLAIM, RESOURCE, THROUGH_DRA, Cluster, cluster
from tests.kernel import nodes
from tests.kubelet.claims import POOL
from tests.kubelet.device_manager import AdmissionError
from tests.kubelet.dra_manager import PrepareError
from tests.kubelet.pod_resources import claim, container
from tests.passthrough import TEXT
from tests.running import Agent, state_of
from tests.waiting import until

GPU: Final = PciAddress.parse(nodes.GPU)
DEVICE: Final = str(GPU).replace(":", "-").replace(".", "-")
NAME: Final = f"{RESOURCE}={nodes.GPU}"


@pytest.fixture
def by_plugin() -> Iterator[Cluster]:
    with cluster(nodes.single_gpu, TEXT) as found:
        yield found


@pytest.fixture
def by_dra() -> Iterator[Cluster]:
    with cluster(nodes.single_gpu, THROUGH_DRA) as found:
        yield found


@pytest.fixture
def on_claim() -> Iterator[Cluster]:
    with cluster(nodes.single_gpu, ON_CLAIM) as found:
        yield found


def driver(node: Cluster) -> str | None:
    return binding.read(node.kernel, GPU).driver


# The device plugin


def test_a_pod_gets_the_nodes_of_a_unit_from_the_device_plugin(by_plugin: Cluster) -> None:
    kubelet = by_plugin.plugins

    async def script(agent: Agent) -> None:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        answer = await kubelet.admit("p", "c", RESOURCE, 1)
        assert [d.host_path for d in answer.devices] == ["/dev/vfio/1"]
        assert kubelet.devices_of("p") == (nodes.GPU,)
        status = await agent.status()
        (plugin,) = status["kubernetes"]["device_plugins"]
        assert plugin["resource"] == RESOURCE
        assert plugin["problem"] is None
        assert status["kubernetes"]["troubles"] == {}

    by_plugin.run(script)
    assert kubelet.complaints == []
    assert by_plugin.slices() == []


def test_a_unit_that_leaves_its_driver_meanwhile_is_not_given_to_a_pod(by_plugin: Cluster) -> None:
    kubelet, kernel = by_plugin.plugins, by_plugin.kernel

    async def taken() -> None:
        kernel.deaf.add("vfio-pci")
        kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.GPU)

    async def script(agent: Agent) -> None:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        kubelet.slow_allocate = taken
        with pytest.raises(AdmissionError, match=nodes.GPU):
            await kubelet.admit("p", "c", RESOURCE, 1)
        assert kubelet.devices_of("p") == ()
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0)
        await agent.until(lambda status: state_of(status) == "failed")

    by_plugin.run(script)


def test_a_unit_that_is_unplugged_stays_listed_and_is_unhealthy(by_plugin: Cluster) -> None:
    kubelet = by_plugin.plugins

    async def script(agent: Agent) -> None:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        by_plugin.kernel.unplug(nodes.GPU)
        agent.events.tell()
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0)
        assert kubelet.capacity(RESOURCE) == 1
        by_plugin.kernel.plug(nodes.GPU)
        agent.events.tell()
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)

    by_plugin.run(script)


def test_a_node_that_is_gone_and_back_is_told_before_any_turn(by_plugin: Cluster) -> None:
    kubelet = by_plugin.plugins
    vfio = by_plugin.kernel.host.path("/dev/vfio/1")

    async def script(agent: Agent) -> None:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        target = vfio.readlink()
        for _ in range(5):
            vfio.unlink()
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0)
            vfio.symlink_to(target)
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        assert state_of(await agent.status()) == "available"

    by_plugin.run(script)
    assert kubelet.complaints == []


def test_a_kubelet_that_starts_again_has_its_devices_back(by_plugin: Cluster) -> None:
    kubelet = by_plugin.plugins

    async def script(_agent: Agent) -> None:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        await kubelet.admit("p", "c", RESOURCE, 1)
        await kubelet.restart()
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        answer = kubelet.replay("p", "c", RESOURCE)
        assert [d.host_path for d in answer.devices] == ["/dev/vfio/1"]

    by_plugin.run(script)


# DRA


def test_a_claim_for_a_bound_unit_is_prepared_and_leaves_it_bound(by_dra: Cluster) -> None:
    async def script(_agent: Agent) -> None:
        await until(lambda: DEVICE in by_dra.devices(), "the ResourceSlice")
        await until(lambda: by_dra.dra.plugins, "the registration")
        by_dra.claims.give("c", DEVICE)
        assert await by_dra.dra.start_pod("p", "c") == [NAME]
        assert driver(by_dra) == "vfio-pci"
        await by_dra.dra.stop_pod("p")
        assert driver(by_dra) == "vfio-pci"

    by_dra.run(script)
    assert by_dra.dra.errors == []


def test_a_workload_reads_of_its_devices_where_the_settings_say_so(by_dra: Cluster) -> None:
    assert by_dra.settings.kubernetes is not None
    by_dra.settings = replace(
        by_dra.settings, kubernetes=replace(by_dra.settings.kubernetes, device_metadata=True)
    )

    async def script(_agent: Agent) -> None:
        await until(lambda: by_dra.dra.plugins, "the registration")
        by_dra.claims.give("c", DEVICE)
        device, metadata = await by_dra.dra.start_pod("p", "c")
        assert device == NAME
        assert metadata.startswith(f"{GPU_DRIVER}/metadata=")
        directory = by_dra.kernel.host.path(by_dra.settings.cdi_directory)
        assert len(list(directory.glob(f"{GPU_DRIVER}_metadata_*.json"))) == 1
        await by_dra.dra.stop_pod("p")
        assert list(directory.glob(f"{GPU_DRIVER}_metadata_*.json")) == []

    by_dra.run(script)


def test_a_claim_brings_a_gpu_from_its_host_driver_to_kata_and_back(on_claim: Cluster) -> None:
    async def script(agent: Agent) -> None:
        assert state_of(await agent.status()) == "unclaimed"
        assert driver(on_claim) == "nvidia"
        await until(lambda: DEVICE in on_claim.devices(), "the ResourceSlice")
        await until(lambda: on_claim.dra.plugins, "the registration")
        published = len(on_claim.api.writes)

        on_claim.claims.give("c", DEVICE)
        assert await on_claim.dra.start_pod("p", "c") == [NAME]
        assert driver(on_claim) == "vfio-pci"
        assert state_of(await agent.status()) == "available"
        resources = claim("c", GPU_DRIVER, [(DEVICE, [NAME])])
        on_claim.pods.has("default", "p", container("main", claims=[resources]))
        assert await on_claim.pod_resources("p") == [(RESOURCE, nodes.GPU)]

        await on_claim.dra.stop_pod("p")
        assert driver(on_claim) == "nvidia"
        assert state_of(await agent.status()) == "unclaimed"
        assert len(on_claim.api.writes) == published

    on_claim.run(script)
    assert on_claim.dra.errors == []


def test_an_agent_that_starts_again_leaves_a_claimed_unit_where_it_is(on_claim: Cluster) -> None:
    async def first(_agent: Agent) -> None:
        await until(lambda: on_claim.dra.plugins, "the registration")
        on_claim.claims.give("c", DEVICE)
        assert await on_claim.dra.start_pod("p", "c") == [NAME]

    async def second(agent: Agent) -> None:
        assert state_of(await agent.status()) == "available"
        await until(lambda: on_claim.dra.plugins, "the registration")
        await on_claim.dra.stop_pod("p")
        assert driver(on_claim) == "nvidia"

    on_claim.run(first)
    assert driver(on_claim) == "vfio-pci"
    on_claim.kernel.writes.clear()
    on_claim.run(second)


@pytest.mark.parametrize("status", [0, 429, 503])
def test_a_server_that_fails_for_a_moment_fails_no_pod(on_claim: Cluster, status: int) -> None:
    async def script(_agent: Agent) -> None:
        await until(lambda: on_claim.dra.plugins, "the registration")
        on_claim.claims.give("c", DEVICE)
        on_claim.api.fail(status, path="resourceclaims/c", times=2)
        assert await on_claim.dra.start_pod("p", "c") == [NAME]

    on_claim.run(script)


def test_a_server_that_forbids_is_not_asked_again(on_claim: Cluster) -> None:
    async def script(_agent: Agent) -> None:
        await until(lambda: on_claim.dra.plugins, "the registration")
        on_claim.claims.give("c", DEVICE)
        on_claim.api.fail(403, path="resourceclaims/c")
        with pytest.raises(PrepareError, match="ClusterRole"):
            await on_claim.dra.start_pod("p", "c")

    on_claim.run(script)


def test_of_two_pods_that_want_one_gpu_one_gets_it(on_claim: Cluster) -> None:
    async def script(_agent: Agent) -> None:
        await until(lambda: on_claim.dra.plugins, "the registration")
        on_claim.claims.give("first", DEVICE)
        on_claim.claims.give("second", DEVICE)
        assert await on_claim.dra.start_pod("p", "first") == [NAME]
        with pytest.raises(PrepareError, match="claim"):
            await on_claim.dra.start_pod("q", "second")
        assert driver(on_claim) == "vfio-pci"
        await on_claim.dra.stop_pod("p")
        assert await on_claim.dra.start_pod("q", "second") == [NAME]

    on_claim.run(script)


def test_a_bind_that_fails_is_said_to_the_pod_and_undone(on_claim: Cluster) -> None:
    async def script(_agent: Agent) -> None:
        await until(lambda: on_claim.dra.plugins, "the registration")
        on_claim.kernel.deaf.add("vfio-pci")
        on_claim.claims.give("c", DEVICE)
        with pytest.raises(PrepareError, match=nodes.GPU):
            await on_claim.dra.start_pod("p", "c")
        assert driver(on_claim) == "nvidia"

    on_claim.run(script)


# The API server


def labels(node: Cluster) -> dict[str, str]:
    (found,) = node.api.objects("Node")
    return dict(found["metadata"].get("labels", {}))


def test_the_node_is_labelled_and_a_failure_is_an_event(by_dra: Cluster) -> None:
    async def script(agent: Agent) -> None:
        await until(lambda: labels(by_dra).get("kata-gpu.io/ready") == "true", "the label")
        assert labels(by_dra)["kata-gpu.io/blueprint"] == "2026.1"
        assert by_dra.api.objects("Event") == []
        by_dra.kernel.deaf.add("vfio-pci")
        by_dra.kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.GPU)
        agent.events.tell()
        await until(lambda: by_dra.api.objects("Event"), "the Event")
        (event,) = by_dra.api.objects("Event")
        assert event["reason"] == "UnitFailed"
        assert nodes.GPU in event["note"]
        await until(lambda: labels(by_dra)["kata-gpu.io/ready"] == "false", "the other label")

    by_dra.run(script)


def test_while_nothing_changes_nothing_is_written(by_dra: Cluster) -> None:
    async def script(agent: Agent) -> None:
        await until(lambda: DEVICE in by_dra.devices(), "the ResourceSlice")
        await until(lambda: "kata-gpu.io/ready" in labels(by_dra), "the label")
        written = [(r.method, r.path) for r in by_dra.api.writes]
        for _ in range(20):
            number = (await agent.status())["pass_number"]
            agent.events.tell()
            await agent.turn(number + 1)
        assert [(r.method, r.path) for r in by_dra.api.writes] == written
        assert sorted(method for method, _ in written) == ["PATCH", "POST"]

    by_dra.run(script)


def problems(status: dict[str, Any]) -> list[str | None]:
    return [driver["problem"] for driver in status["kubernetes"]["dra_drivers"]]


def test_a_driver_that_kubelet_knows_has_no_problem(by_dra: Cluster) -> None:
    async def script(agent: Agent) -> None:
        await agent.until(lambda status: problems(status) == [None])

    by_dra.run(script)


def test_a_driver_that_kubelet_does_not_find_is_told(by_dra: Cluster) -> None:
    assert by_dra.settings.kubernetes is not None
    elsewhere = replace(by_dra.settings.kubernetes, kubelet_directory="/e")
    by_dra.settings = replace(by_dra.settings, kubernetes=elsewhere)

    async def script(agent: Agent) -> None:
        status = await agent.until(lambda status: bool(problems(status)))
        assert "kubelet has not registered it yet" in str(problems(status)[0])
        assert "is /e by kubernetes.kubelet_directory" in str(problems(status)[0])

    by_dra.run(script)


def test_a_slice_is_the_nodes_own(by_dra: Cluster) -> None:
    async def script(_agent: Agent) -> None:
        await until(lambda: DEVICE in by_dra.devices(), "the ResourceSlice")
        (found,) = by_dra.slices()
        assert found["spec"]["nodeName"] == POOL
        assert found["metadata"]["ownerReferences"][0]["name"] == POOL

    by_dra.run(script)


def test_without_its_api_server_a_node_serves_kubelet_all_the_same(by_plugin: Cluster) -> None:
    kubelet = by_plugin.plugins
    by_plugin.api.fail(500, times=1000)

    async def script(agent: Agent) -> None:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1)
        await kubelet.admit("p", "c", RESOURCE, 1)
        assert state_of(await agent.status()) == "available"

    by_plugin.run(script)
