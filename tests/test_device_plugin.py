"""What kubelet is told of devices, and what a pod is given, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from kata_gpu.errors import HeldError
from kata_gpu.model.kubernetes import Device, Door
from kata_gpu.plan.kubernetes.preference import prefer
from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.device_plugin import (
    DevicePlugin,
    Grant,
    socket_name,
    socket_prefix,
)
from kata_gpu.publish.kubelet.protos import device_plugin_v1beta1_pb2 as pb
from tests import memory
from tests.kubelet.device_manager import AdmissionError, DeviceManager, kubelet
from tests.kubelet.plugin_agent import RESOURCE, PluginAgent, agent, gpu, gpus

NODES = Grant()
Story = Callable[[DeviceManager, PluginAgent], Awaitable[None]]


@pytest.fixture
def root() -> Iterator[Path]:
    """Make a folder with a short path, as a socket's must be."""
    with TemporaryDirectory(prefix="k-", dir=memory.folder()) as folder:
        yield Path(folder)


def with_kubelet(root: Path, story: Story, *devices: Device, grant: Grant = NODES) -> None:
    """Let *story* begin with an agent whose devices are known to kubelet."""

    async def main() -> None:
        async with kubelet(root) as manager, agent(root, *devices, grant=grant) as ours:
            await offered(manager, sum(device.is_healthy for device in devices))
            await story(manager, ours)

    asyncio.run(main())


async def offered(manager: DeviceManager, count: int, resource: str = RESOURCE) -> None:
    await manager.until(
        lambda: manager.is_running(resource) and manager.allocatable(resource) == count,
        f"{count} devices of {resource}",
    )


def nodes(answer: pb.ContainerAllocateResponse) -> list[str]:
    return [device.host_path for device in answer.devices]


# The list


def test_a_device_that_vanishes_is_unhealthy_and_not_dropped(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        ours.has(gpu(0))
        await offered(manager, 1)
        assert manager.capacity(RESOURCE) == 2
        assert manager.lists[RESOURCE][-1] == {gpu(0).id: "Healthy", gpu(1).id: "Unhealthy"}
        ours.has()
        await offered(manager, 0)
        assert manager.capacity(RESOURCE) == 2
        ours.has(*gpus(3))
        await offered(manager, 3)

    with_kubelet(root, story, *gpus(2))


def test_a_device_goes_down_and_comes_back(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        for _ in range(20):
            ours.has(gpu(0), gpu(1, is_healthy=False, reason="quarantined"))
            await offered(manager, 1)
            ours.has(*gpus(2))
            await offered(manager, 2)

    with_kubelet(root, story, *gpus(2))


def test_kubelet_hears_nothing_while_nothing_changes_for_it(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        for number in range(5):
            ours.has(*(replace(device, reason=f"reason {number}") for device in gpus(2)))
            await asyncio.sleep(0.02)
        ours.has(gpu(1), gpu(0))
        ours.has(gpu(0), gpu(1), gpu(2))
        await offered(manager, 3)
        assert len(manager.lists[RESOURCE]) == 2

    with_kubelet(root, story, *gpus(2))


def test_topology_is_one_numa_node_or_none(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        assert manager.topology[RESOURCE] == {
            gpu(0).id: (0,),
            gpu(8).id: (1,),
            gpu(9).id: (),
            gpu(10).id: (),
        }

    with_kubelet(root, story, gpu(0), gpu(8), gpu(9, numa_node=None), gpu(10, numa_node=-1))


def test_the_list_is_in_the_order_of_ids(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        known = list(manager.lists[RESOURCE][-1])
        assert known == sorted(known)

    with_kubelet(root, story, *reversed(gpus(40)))


def test_each_resource_has_a_plugin_of_its_own(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        ours.has(gpu(0), gpu(1, resource="amd.com/pgpu"))
        await offered(manager, 1)
        await offered(manager, 1, "amd.com/pgpu")
        assert manager.capacity(RESOURCE) == 2

    with_kubelet(root, story, *gpus(2))


def test_what_goes_through_another_door_is_not_listed(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        assert manager.capacity(RESOURCE) == 1
        ours.has(gpu(0, door=Door.DRA), gpu(1, door=Door.DRA))
        await offered(manager, 0)
        with pytest.raises(AdmissionError, match="no healthy devices"):
            await manager.admit("pod", "main", RESOURCE, 1)

    async def main() -> None:
        async with kubelet(root) as manager, agent(root) as ours:
            ours.has(gpu(0), gpu(1, door=Door.NONE))
            await offered(manager, 1)
            await story(manager, ours)

    asyncio.run(main())


def test_many_devices_are_listed_and_given(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        for number in range(40):
            answer = await manager.admit(f"pod-{number}", "main", RESOURCE, 4)
            assert len(nodes(answer)) == 4
        given = [name for number in range(40) for name in manager.devices_of(f"pod-{number}")]
        assert len(set(given)) == 160

    with_kubelet(root, story, *gpus(160))


# Allocate


def test_a_pod_gets_the_nodes_of_its_device(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        answer = await manager.admit("pod", "main", RESOURCE, 1)
        (given,) = answer.devices
        assert (given.host_path, given.container_path) == ("/dev/vfio/devices/vfio0",) * 2
        assert given.permissions == "mrw"
        answer.ClearField("devices")
        assert answer == pb.ContainerAllocateResponse()

    with_kubelet(root, story, gpu(0))


def test_eight_come_in_the_order_of_ids_and_each_node_once(root: Path) -> None:
    shared = [gpu(n, nodes=(f"/dev/vfio/{n // 2}", f"/dev/vfio/x{n}")) for n in range(8)]

    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        found = nodes(await manager.admit("pod", "main", RESOURCE, 8))
        assert found == list(dict.fromkeys(node for device in shared for node in device.nodes))
        assert len(found) == 12

    with_kubelet(root, story, *shared)


def test_a_bundle_is_one_device_with_all_its_nodes(root: Path) -> None:
    board = gpu(
        0,
        id="hgx-0",
        is_bundle=True,
        units=tuple(device.id for device in gpus(8)),
        nodes=tuple(f"/dev/vfio/devices/vfio{number}" for number in range(12)),
    )

    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        assert len(nodes(await manager.admit("pod", "main", RESOURCE, 1))) == 12
        assert manager.devices_of("pod") == ("hgx-0",)

    with_kubelet(root, story, board)


def test_legacy_groups_come_without_the_control_node_unless_it_is_asked_for(
    root: Path,
) -> None:
    async def alone(manager: DeviceManager, _ours: PluginAgent) -> None:
        assert nodes(await manager.admit("pod", "main", RESOURCE, 1)) == ["/dev/vfio/84"]

    async def together(manager: DeviceManager, _ours: PluginAgent) -> None:
        answer = await manager.admit("pod", "main", RESOURCE, 2)
        assert nodes(answer) == ["/dev/vfio/vfio", "/dev/vfio/84", "/dev/vfio/noiommu-2"]

    legacy = gpu(0, nodes=("/dev/vfio/84",))
    other = gpu(1, nodes=("/dev/vfio/noiommu-2",))
    with_kubelet(root / "a", alone, legacy)
    with_kubelet(root / "b", together, legacy, other, grant=Grant(control_node=True))


def test_cdevs_come_without_the_control_node_always(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        answer = await manager.admit("pod", "main", RESOURCE, 1)
        assert nodes(answer) == ["/dev/vfio/devices/vfio0"]

    with_kubelet(root, story, gpu(0), grant=Grant(control_node=True))


def test_cdi_names_are_told_where_they_are_asked_for(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        answer = await manager.admit("pod", "main", RESOURCE, 1)
        assert [device.name for device in answer.cdi_devices] == [f"{RESOURCE}={gpu(0).id}"]
        assert nodes(answer) == ["/dev/vfio/devices/vfio0"]

    with_kubelet(root, story, gpu(0), grant=Grant(cdi_names=True))


def test_kubelet_takes_the_devices_that_are_preferred(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        await manager.admit("one", "main", RESOURCE, 1)
        await manager.admit("four", "main", RESOURCE, 4)
        assert manager.devices_of("four") == tuple(gpu(n).id for n in range(4, 8))

    with_kubelet(root, story, *gpus(8))


def test_two_pods_race_for_one_gpu_and_one_gets_it(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        results = await asyncio.gather(
            *(manager.admit(pod, "main", RESOURCE, 1) for pod in ("a", "b")),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, AdmissionError)]
        assert len(refused) == 1
        assert "Requested: 1, Available: 0" in str(refused[0])

    with_kubelet(root, story, gpu(0))


def test_containers_of_a_pod_get_different_devices(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        first = await manager.admit("pod", "a", RESOURCE, 1)
        second = await manager.admit("pod", "b", RESOURCE, 1)
        assert not set(nodes(first)) & set(nodes(second))

    with_kubelet(root, story, *gpus(2))


def test_a_device_that_is_gone_unnoticed_is_refused_with_the_reason(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        ours.becomes()
        with pytest.raises(
            AdmissionError,
            match=r"FAILED_PRECONDITION: cannot allocate nvidia.*"
            r"cannot find 0000:41:00.0 on the node; see kata-gpu status",
        ):
            await manager.admit("pod", "main", RESOURCE, 1)
        ours.becomes(gpu(0))
        await manager.admit("pod-2", "main", RESOURCE, 1)

    with_kubelet(root, story, gpu(0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_healthy": False, "reason": "quarantined"}, "quarantined"),
        ({"is_ready": False, "reason": "on nvidia"}, "no device nodes yet: on nvidia"),
        ({"nodes": ()}, "no device nodes yet"),
        ({"door": Door.DRA}, "no longer offered"),
        ({"resource": "amd.com/pgpu"}, "no longer offered"),
    ],
    ids=["unhealthy", "unbound", "no-nodes", "door", "resource"],
)
def test_a_device_that_is_not_fit_any_more_is_refused(
    root: Path, changes: dict[str, Any], reason: str
) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        ours.becomes(gpu(0, **changes))
        with pytest.raises(AdmissionError, match=f"FAILED_PRECONDITION: .*{reason}"):
            await manager.admit("pod", "main", RESOURCE, 1)

    with_kubelet(root, story, gpu(0))


def test_a_device_lost_while_a_pod_has_it_comes_back_to_it(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        before = await manager.admit("pod", "main", RESOURCE, 1)
        ours.has()
        await offered(manager, 0)
        assert manager.replay("pod", "main", RESOURCE) == before
        ours.has(*gpus(2))
        await offered(manager, 2)
        assert await manager.admit("pod", "main", RESOURCE, 1) == before
        await manager.admit("pod-2", "main", RESOURCE, 1)
        assert manager.devices_of("pod") != manager.devices_of("pod-2")

    with_kubelet(root, story, *gpus(2))


def test_a_device_lost_while_it_is_allocated_is_refused_and_kubelet_lives(
    root: Path,
) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        async def lose() -> None:
            ours.has()
            await manager.until(lambda: manager.allocatable(RESOURCE) == 0)

        manager.slow_allocate = lose
        with pytest.raises(AdmissionError, match="no longer offered"):
            await manager.admit("pod", "main", RESOURCE, 1)

    with_kubelet(root, story, gpu(0))


# Kubelet's restarts


def test_a_pod_keeps_its_device_over_kubelets_restart(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        before = await manager.admit("pod", "main", RESOURCE, 1)
        await manager.restart()
        with pytest.raises(AdmissionError):
            await manager.admit("early", "main", RESOURCE, 1)
        assert manager.replay("pod", "main", RESOURCE) == before
        await offered(manager, 2)
        await manager.admit("late", "main", RESOURCE, 1)
        assert not set(manager.devices_of("pod")) & set(manager.devices_of("late"))

    with_kubelet(root, story, *gpus(2))


def test_a_kubelet_that_ends_during_allocate_leaves_the_device_free(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        reached, never = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            reached.set()
            await never.wait()

        manager.slow_allocate = hang
        admission = asyncio.create_task(manager.admit("pod", "main", RESOURCE, 1))
        await reached.wait()
        manager.slow_allocate = None
        admission.cancel()
        await asyncio.gather(admission, return_exceptions=True)
        await manager.restart()
        await offered(manager, 1)
        await manager.admit("pod-2", "main", RESOURCE, 1)

    with_kubelet(root, story, gpu(0))


def test_a_kubelet_that_is_lost_while_the_node_is_looked_at_finds_the_device_free(
    root: Path,
) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        ours.look.clear()
        admission = asyncio.create_task(manager.admit("pod", "main", RESOURCE, 1))
        await manager.until(lambda: ours.looks == 1)
        await manager.stop()
        await asyncio.gather(admission, return_exceptions=True)
        ours.look.set()
        await manager.start()
        await offered(manager, 1)
        await manager.admit("pod-2", "main", RESOURCE, 1)

    with_kubelet(root, story, gpu(0))


def test_an_allocation_waits_for_no_other(root: Path) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def verify(ids: Sequence[str]) -> Mapping[str, Device]:
            if gpu(0).id in ids:
                await release.wait()
            return {device.id: device for device in gpus(2)}

        async with served(root, *gpus(2), verify=verify) as (_, client):
            slow, quick = allocate([gpu(0).id]), allocate([gpu(1).id])
            first = asyncio.create_task(client.ask(pb, "DevicePlugin.Allocate", slow, timeout_s=30))
            await client.ask(pb, "DevicePlugin.Allocate", quick, timeout_s=30)
            assert not first.done()
            release.set()
            await first

    asyncio.run(main())


def test_an_agent_that_starts_again_finds_the_pods_device_taken(root: Path) -> None:
    async def main() -> None:
        async with kubelet(root) as manager:
            async with agent(root, *gpus(2), suffix="1"):
                await offered(manager, 2)
                await manager.admit("pod", "main", RESOURCE, 1)
            await manager.until(lambda: manager.allocatable(RESOURCE) == 0)
            assert manager.capacity(RESOURCE) == 2
            async with agent(root, *gpus(2), suffix="2"):
                await offered(manager, 2)
                await manager.admit("pod-2", "main", RESOURCE, 1)
                assert len({*manager.devices_of("pod"), *manager.devices_of("pod-2")}) == 2

    asyncio.run(main())


# Callers that mean no good


@asynccontextmanager
async def served(
    root: Path, *devices: Device, verify: Any = None
) -> AsyncIterator[tuple[DevicePlugin, sockets.Client]]:
    """Serve a plugin that no kubelet knows, and connect to it."""

    async def look(ids: Sequence[str]) -> Mapping[str, Device]:
        await asyncio.sleep(0)
        return {device.id: device for device in devices}

    plugin = DevicePlugin(RESOURCE, root, "1", verify=verify or look, prefer=prefer)
    plugin.directory.mkdir()
    plugin.update(devices)
    async with sockets.serve(plugin.socket, plugin.service):
        client = sockets.Client(plugin.socket)
        yield plugin, client
        await client.close()


def allocate(*containers: Sequence[str]) -> pb.AllocateRequest:
    return pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    )


def refusal(root: Path, request: pb.AllocateRequest, **more: Any) -> tuple[str, str]:
    """Return code and text of a refused Allocate, with three devices, the last of them ill."""

    async def main() -> tuple[str, str]:
        ill = gpu(2, is_healthy=False, reason="it hangs")
        async with served(root, *gpus(2), ill, **more) as (_, client):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.ask(pb, "DevicePlugin.Allocate", request, timeout_s=30)
            return caught.value.code().name, caught.value.details() or ""

    return asyncio.run(main())


def test_no_ids_are_refused(root: Path) -> None:
    assert refusal(root, allocate([])) == (
        "INVALID_ARGUMENT",
        "cannot allocate nvidia.com/pgpu: no device is named",
    )


def test_an_unknown_id_is_refused(root: Path) -> None:
    code, text = refusal(root, allocate([gpu(0).id, "0000:99:00.0"]))
    assert (code, text) == (
        "INVALID_ARGUMENT",
        "cannot allocate nvidia.com/pgpu: there is no device '0000:99:00.0'",
    )


def test_many_and_long_ids_are_refused_in_few_words(root: Path) -> None:
    names = [f"{number}" + "\n\x1b" * 5000 for number in range(100)]
    code, text = refusal(root, allocate(names))
    assert code == "INVALID_ARGUMENT"
    assert text.endswith("and 92 more")
    assert "\n" not in text
    assert len(text) < 4000


@pytest.mark.parametrize("containers", [[[0, 0]], [[0], [1, 0]]], ids=["one", "two"])
def test_an_id_that_is_named_twice_is_refused(root: Path, containers: list[list[int]]) -> None:
    request = allocate(*([gpu(number).id for number in numbers] for numbers in containers))
    code, text = refusal(root, request)
    assert code == "INVALID_ARGUMENT"
    assert "a device is named twice" in text


def test_one_that_is_listed_as_unhealthy_is_refused(root: Path) -> None:
    code, text = refusal(root, allocate([gpu(0).id], [gpu(2).id]))
    assert code == "FAILED_PRECONDITION"
    assert text == ("cannot allocate nvidia.com/pgpu 0000:43:00.0: it hangs; see kata-gpu status")


def test_what_the_look_at_the_host_refuses_is_refused(root: Path) -> None:
    async def verify(_ids: Sequence[str]) -> Mapping[str, Device]:
        await asyncio.sleep(0)
        raise HeldError("cannot give 0000:41:00.0: pid 7 has it")

    code, text = refusal(root, allocate([gpu(0).id]), verify=verify)
    assert code == "FAILED_PRECONDITION"
    assert "pid 7 has it" in text


def test_each_container_request_has_its_answer(root: Path) -> None:
    async def main() -> pb.AllocateResponse:
        async with served(root, *gpus(3)) as (_, client):
            request = allocate([gpu(2).id, gpu(0).id], [gpu(1).id])
            answer = await client.ask(pb, "DevicePlugin.Allocate", request, timeout_s=30)
            assert isinstance(answer, pb.AllocateResponse)
            return answer

    first, second = asyncio.run(main()).container_responses
    assert nodes(first) == ["/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio2"]
    assert nodes(second) == ["/dev/vfio/devices/vfio1"]


def test_nonsense_is_preferred_nothing_and_no_error(root: Path) -> None:
    wishes = [
        pb.ContainerPreferredAllocationRequest(allocation_size=1),
        pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=[gpu(0).id, gpu(0).id, "x"], allocation_size=2
        ),
        pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=[gpu(0).id], must_include_deviceIDs=["x"], allocation_size=1
        ),
        pb.ContainerPreferredAllocationRequest(available_deviceIDs=[gpu(0).id], allocation_size=-5),
        pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=[gpu(1).id, gpu(0).id, "x"], allocation_size=2
        ),
    ]

    async def main() -> list[list[str]]:
        async with served(root, *gpus(2)) as (_, client):
            request = pb.PreferredAllocationRequest(container_requests=wishes)
            answer = await client.ask(
                pb, "DevicePlugin.GetPreferredAllocation", request, timeout_s=30
            )
            return [list(one.deviceIDs) for one in answer.container_responses]

    assert asyncio.run(main()) == [[], [], [], [], [gpu(0).id, gpu(1).id]]


def test_nothing_is_to_be_done_before_a_container_starts(root: Path) -> None:
    async def main() -> None:
        async with served(root, *gpus(1)) as (_, client):
            options = await client.ask(
                pb, "DevicePlugin.GetDevicePluginOptions", pb.Empty(), timeout_s=30
            )
            assert not options.pre_start_required
            assert options.get_preferred_allocation_available
            request = pb.PreStartContainerRequest(devices_ids=["x"])
            await client.ask(pb, "DevicePlugin.PreStartContainer", request, timeout_s=30)

    asyncio.run(main())


# Sockets


def test_sockets_of_different_resources_have_different_names() -> None:
    names = ["a-b/c", "a/b-c", "a.b/c", "a/b.c", "a/b_c"]
    long = ["x" * 200 + "/a", "x" * 200 + "/b", "x" * 250]
    made = {socket_name(name, "1") for name in (*names, *long)}
    assert len(made) == len({*names, *long})
    assert max(map(len, made)) < 60


def test_a_resource_is_told_from_one_whose_name_is_longer() -> None:
    with pytest.raises(ValueError, match="suffix 'c-1'"):
        socket_name("a.com/b", "c-1")
    assert not socket_prefix("a.com/b").startswith(socket_prefix("a.com/b-c"))


@pytest.mark.parametrize("suffix", ["", "A", "../x", "a.b", "x" * 33])
def test_a_suffix_that_is_none_is_refused(suffix: str) -> None:
    with pytest.raises(ValueError, match="cannot name a socket"):
        socket_name(RESOURCE, suffix)
