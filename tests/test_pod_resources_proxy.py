"""Kata gets kubelet's answer and the DRA devices of the pod, whatever becomes of kubelet."""

import asyncio
import stat
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_gpu.errors import HostError
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Device, Door
from kata_gpu.publish.kubelet import kata_devices, pod_resources
from kata_gpu.publish.kubelet.kata_devices import Ours
from kata_gpu.publish.kubelet.pace import Pace
from kata_gpu.publish.kubelet.pod_resources import Limits, Proxy
from kata_gpu.publish.kubelet.protos import pod_resources_v1_pb2 as api
from kata_gpu.publish.kubelet.sockets import Client
from tests.kubelet.pod_resources import PodResources, claim, container, device
from tests.pods import OURS, PGPU, SWITCH, cdi_names, gpu_claim

PATIENCE_S: Final = 20.0
USUAL: Final = Limits()
UNKNOWN_FIELD: Final = b"\xfa\x07\x05later"  # number 127, five bytes


@dataclass(frozen=True)
class Scene:
    """A kubelet, the proxy before it, and who asks."""

    kubelet: PodResources
    kubelet_path: Path
    client: Client
    proxy: Proxy

    async def get(self, name: str, *, timeout_s: float = PATIENCE_S) -> Any:
        request = api.GetPodResourcesRequest(pod_name=name, pod_namespace="default")
        answer = await self.raw("Get", request, timeout_s=timeout_s)
        return api.GetPodResourcesResponse.FromString(answer).pod_resources

    async def raw(self, method: str, request: Any, *, timeout_s: float = PATIENCE_S) -> bytes:
        return await self.client.forward(
            api, f"PodResourcesLister.{method}", request, timeout_s=timeout_s
        )

    async def until_refused(self, name: str) -> grpc.aio.AioRpcError:
        """Ask until there is an error, and return it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self.get(name)
                except grpc.aio.AioRpcError as error:
                    return error
                await asyncio.sleep(0.02)


def play(
    short_path: Path,
    script: Callable[[Scene], Awaitable[None]],
    *,
    ours: Ours | None = OURS,
    limits: Limits = USUAL,
    pace: Pace | None = None,
    is_up: bool = True,
) -> None:
    """Run the script with a proxy, and a kubelet unless that *is* not *up*."""
    path, kubelet_path = short_path / "proxy.sock", short_path / "kubelet.sock"

    async def main() -> None:
        kubelet = PodResources()
        client = Client(path)
        pace_ = pace or Pace(per_second=90, burst=8)
        try:
            async with pod_resources.serve(
                path, kubelet_path, lambda: ours, limits=limits, pace=pace_
            ) as proxy:
                scene = Scene(kubelet, kubelet_path, client, proxy)
                if not is_up:
                    await script(scene)
                    return
                async with kubelet.serve(kubelet_path):
                    await script(scene)
        finally:
            await client.close()

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE_S))


# What is added


def test_a_device_of_a_claim_is_among_those_of_plugins(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has(
            "default",
            "pod",
            container(
                "main",
                devices=device("example.com/nic", "eth0"),
                claims=[gpu_claim("0000-41-00-0")],
            ),
        )
        pod = await scene.get("pod")
        assert cdi_names(pod) == ["example.com/nic=eth0", f"{PGPU}=0000:41:00.0"]
        (part,) = pod.containers
        assert part.dynamic_resources[0].claim_resources[0].driver_name == GPU_DRIVER

    play(short_path, script)


def test_names_that_kubelet_repeats_are_said_once(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        shared = gpu_claim("0000-81-00-0", "0000-41-00-0")
        scene.kubelet.has(
            "default", "pod", container("a", claims=[shared]), container("b", claims=[shared])
        )
        pod = await scene.get("pod")
        assert cdi_names(pod) == [f"{PGPU}=0000:41:00.0", f"{PGPU}=0000:81:00.0"]
        assert not pod.containers[1].devices

    play(short_path, script)


def test_what_a_plugin_gave_is_not_added_and_not_taken_away(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has(
            "default",
            "pod",
            container("a", claims=[gpu_claim("0000-41-00-0")]),
            container("b", devices=device(PGPU, "0000:41:00.0", (0, 1))),
        )
        assert cdi_names(await scene.get("pod")) == [f"{PGPU}=0000:41:00.0"] * 2

    play(short_path, script)


def test_a_device_that_is_not_known_goes_by_the_names_that_kubelet_has(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        strange = [("new", [f"{PGPU}=0000:05:00.0", "example.com/x=1", "nonsense", f"{PGPU}="])]
        scene.kubelet.has(
            "default", "pod", container("a", claims=[claim("c", GPU_DRIVER, strange)])
        )
        assert cdi_names(await scene.get("pod")) == [f"{PGPU}=0000:05:00.0"]

    play(short_path, script)


def test_a_device_without_a_name_is_told(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(scene: Scene) -> None:
        lost = claim("c", GPU_DRIVER, [("0000-99-00-0", [])])
        scene.kubelet.has("default", "pod", container("a", claims=[lost]))
        assert cdi_names(await scene.get("pod")) == []

    play(short_path, script)
    assert (
        "pod default/pod has device gpu.kata-passthrough.io/node-a/0000-99-00-0, which has no CDI "
        "name: its VM does not get it"
    ) in caplog.text


def test_a_bundle_is_each_of_its_devices_in_order(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        fabric = claim("fabric", FABRIC_DRIVER, [("switches", [])])
        scene.kubelet.has("default", "pod", container("a", claims=[fabric]))
        expected = [f"{SWITCH}=0000:c0:00.0", f"{SWITCH}=0000:c1:00.0"]
        assert cdi_names(await scene.get("pod")) == expected

    play(short_path, script)


def test_a_list_has_the_devices_too(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "a", container("c", claims=[gpu_claim("0000-41-00-0")]))
        scene.kubelet.has("default", "b", container("c", claims=[gpu_claim("0000-41-00-0")]))
        raw = await scene.raw("List", api.ListPodResourcesRequest())
        pods = api.ListPodResourcesResponse.FromString(raw).pod_resources
        assert [cdi_names(pod) for pod in pods] == [[f"{PGPU}=0000:41:00.0"]] * 2

    play(short_path, script)


def test_devices_are_known_by_what_is_published() -> None:
    def published(name: str, door: Door) -> Device:
        return Device(
            id="0000:41:00.0",
            name=name,
            door=door,
            driver=GPU_DRIVER,
            resource=PGPU,
            units=("0000:41:00.0",),
            is_healthy=True,
            is_ready=True,
            reason="",
        )

    devices = (published("0000-41-00-0", Door.DRA), published("other", Door.DEVICE_PLUGIN))
    ours = Ours.of(devices, "node-a")
    assert ours.names(GPU_DRIVER, "node-a", "0000-41-00-0") == (f"{PGPU}=0000:41:00.0",)
    assert ours.names(GPU_DRIVER, "node-b", "0000-41-00-0") == ()
    assert ours.names(GPU_DRIVER, "node-a", "other") == ()


@given(st.permutations(["0000-41-00-0", "0000-81-00-0"]), st.permutations(["a", "b", "c"]))
def test_the_order_is_not_kubelets(devices: list[str], others: list[str]) -> None:
    strangers = [claim(name, "gpu.example.com", [(name, [f"{PGPU}=x{name}"])]) for name in others]
    part = container("main", claims=[*strangers, gpu_claim(*devices)])
    pod = api.PodResources(containers=[part])
    assert kata_devices.add(pod, OURS)
    assert cdi_names(pod) == [f"{PGPU}=0000:41:00.0", f"{PGPU}=0000:81:00.0"]
    assert not kata_devices.add(pod, OURS)


# What goes through


def strangers() -> Iterable[tuple[str, Any]]:
    yield "nothing", container("a")
    yield "plugin", container("a", devices=device(PGPU, "0000:41:00.0", (0, 1)))
    yield "driver", container("a", claims=[claim("c", "gpu.example.com", [("d", [f"{PGPU}=x"])])])
    yield "kind", container("a", claims=[claim("c", GPU_DRIVER, [("d", ["example.com/gpu=x"])])])


@pytest.mark.parametrize("part", [pytest.param(p, id=name) for name, p in strangers()])
def test_what_is_not_ours_comes_through_byte_by_byte(short_path: Path, part: Any) -> None:
    async def script(scene: Scene) -> None:
        said = scene.kubelet.has("default", "pod", part)
        odd = UNKNOWN_FIELD + said  # not the order in which a message would be written here
        scene.kubelet.answers["default", "pod"] = odd
        request = api.GetPodResourcesRequest(pod_name="pod", pod_namespace="default")
        assert await scene.raw("Get", request) == odd

    play(short_path, script)


def test_everything_comes_through_where_kata_reads_dra_itself(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        part = container("main", claims=[gpu_claim("0000-41-00-0")])
        said = scene.kubelet.has("default", "pod", part)
        request = api.GetPodResourcesRequest(pod_name="pod", pod_namespace="default")
        assert await scene.raw("Get", request) == said

    play(short_path, script, ours=None)


def test_fields_of_a_later_kubelet_stay_where_devices_are_added(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        part = container("main", claims=[gpu_claim("0000-41-00-0")])
        part = api.ContainerResources.FromString(part.SerializeToString() + UNKNOWN_FIELD)
        scene.kubelet.has("default", "pod", part)
        scene.kubelet.answers["default", "pod"] += UNKNOWN_FIELD
        request = api.GetPodResourcesRequest(pod_name="pod", pod_namespace="default")
        answer = await scene.raw("Get", request)
        assert answer.endswith(UNKNOWN_FIELD)
        assert answer.count(UNKNOWN_FIELD) == 2

    play(short_path, script)


def test_an_answer_that_is_no_message_comes_through(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.answers["default", "pod"] = b"\x0a\xff"
        request = api.GetPodResourcesRequest(pod_name="pod", pod_namespace="default")
        assert await scene.raw("Get", request) == b"\x0a\xff"

    play(short_path, script)
    assert "passed on an answer of kubelet's that cannot be read" in caplog.text


def test_what_the_node_has_comes_through(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        raw = await scene.raw("GetAllocatableResources", api.AllocatableResourcesRequest())
        assert len(api.AllocatableResourcesResponse.FromString(raw).devices) == 2

    play(short_path, script)


def test_an_answer_of_several_megabytes_comes_through(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        many = [devices for n in range(100_000) for devices in device(PGPU, f"{n:032}")]
        said = scene.kubelet.has("default", "pod", container("main", devices=many))
        assert len(said) > 4 << 20  # the limit of who sets none
        assert len((await scene.get("pod")).containers[0].devices) == len(many)

    play(short_path, script)


def test_the_socket_is_roots_alone(short_path: Path) -> None:
    async def script(_scene: Scene) -> None:
        await asyncio.sleep(0)
        assert stat.S_IMODE((short_path / "proxy.sock").stat().st_mode) == 0o600

    play(short_path, script)
    assert not (short_path / "proxy.sock").exists()


def test_a_path_that_is_too_long_is_refused(short_path: Path) -> None:
    async def main() -> None:
        async with pod_resources.serve(short_path / ("x" * 108), short_path / "k", lambda: None):
            pass

    with pytest.raises(HostError, match="has at most 107"):
        asyncio.run(main())


# Errors, and a kubelet that is not there


def test_an_error_of_kubelets_keeps_its_code_and_words(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scene.get("nobody")
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert caught.value.details() == "pod nobody in namespace default not found"
        assert scene.proxy.answered == {"none": 1}

    play(short_path, script)


def test_a_pod_that_is_known_is_answered_for_while_kubelet_is_away(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def script(scene: Scene) -> None:
        part = container("main", claims=[gpu_claim("0000-41-00-0")])
        scene.kubelet.has("default", "pod", part)
        async with scene.kubelet.serve(scene.kubelet_path):
            first = await scene.get("pod")
        for _ in range(3):
            assert await scene.get("pod") == first
        assert scene.proxy.answered == {"kubelet": 1, "kept": 3}
        async with scene.kubelet.serve(scene.kubelet_path):
            scene.kubelet.has("default", "new", part)
            assert cdi_names(await scene.get("new")) == [f"{PGPU}=0000:41:00.0"]

    play(short_path, script, is_up=False)
    told = [record.message for record in caplog.records if "kubelet" in record.message]
    assert ["does not answer" in told[0], "again" in told[1], len(told)] == [True, True, 2]


def test_a_pod_that_is_not_known_waits_for_kubelet(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        asking = asyncio.create_task(scene.get("pod"))
        await asyncio.sleep(0.2)
        assert not asking.done()
        async with scene.kubelet.serve(scene.kubelet_path):
            assert (await asking).name == "pod"

    play(short_path, script, is_up=False, limits=Limits(deadline_s=PATIENCE_S))


def test_who_waits_for_kubelet_does_not_wait_for_ever(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scene.get("pod")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    play(short_path, script, is_up=False, limits=Limits(deadline_s=0.3))


def test_a_kubelet_that_hangs_is_not_waited_for_where_the_answer_is_known(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        first = await scene.get("pod")
        scene.kubelet.is_open.clear()
        assert await scene.get("pod") == first
        scene.kubelet.is_open.set()

    play(short_path, script, limits=Limits(known_deadline_s=0.3))


def test_a_pod_that_is_gone_is_not_answered_for(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        async with scene.kubelet.serve(scene.kubelet_path):
            await scene.get("pod")
            scene.kubelet.answers.clear()
            gone = await scene.until_refused("pod")
            assert gone.code() is grpc.StatusCode.UNKNOWN
        unreached = await scene.until_refused("pod")
        assert unreached.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    play(short_path, script, is_up=False, limits=Limits(deadline_s=0.5))


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(Limits(deadline_s=0.5, kept_s=0.0), id="old"),
        pytest.param(Limits(deadline_s=0.5, kept_max=0), id="too-many"),
    ],
)
def test_what_is_not_kept_is_not_answered(short_path: Path, limits: Limits) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        async with scene.kubelet.serve(scene.kubelet_path):
            await scene.get("pod")
        await scene.until_refused("pod")

    play(short_path, script, is_up=False, limits=limits)


def test_after_a_device_changed_hands_nothing_is_said_twice(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        async with scene.kubelet.serve(scene.kubelet_path):
            await scene.get("pod")
        scene.proxy.forget()
        with pytest.raises(grpc.aio.AioRpcError):
            await scene.get("pod")

    play(short_path, script, is_up=False, limits=Limits(deadline_s=0.3))


def test_a_question_from_before_is_not_shared_after_a_device_changed_hands(
    short_path: Path,
) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        scene.kubelet.is_open.clear()
        before = asyncio.create_task(scene.get("pod"))
        async with asyncio.timeout(PATIENCE_S):
            while scene.kubelet.asked != ["pod"]:
                await asyncio.sleep(0.01)
        scene.proxy.forget()
        after = asyncio.create_task(scene.get("pod"))
        async with asyncio.timeout(PATIENCE_S):
            while scene.kubelet.asked != ["pod", "pod"]:
                await asyncio.sleep(0.01)
        scene.kubelet.is_open.set()
        assert await before == await after

    play(short_path, script)


# How fast kubelet is asked


def test_a_crowd_never_meets_kubelets_limit(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        names = [f"pod-{n}" for n in range(60)]
        for name in names:
            scene.kubelet.has("default", name, container("main"))
        pods = await asyncio.gather(*map(scene.get, names))
        assert [pod.name for pod in pods] == names
        assert scene.kubelet.refused == 0

    play(short_path, script, limits=Limits(deadline_s=PATIENCE_S), pace=Pace())


def test_who_asks_the_same_at_a_time_shares_the_answer(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        scene.kubelet.is_open.clear()
        crowd = [asyncio.create_task(scene.get("pod")) for _ in range(50)]
        impatient = asyncio.create_task(scene.get("pod", timeout_s=0.3))
        with pytest.raises(grpc.aio.AioRpcError):
            await impatient
        scene.kubelet.is_open.set()
        assert {pod.name for pod in await asyncio.gather(*crowd)} == {"pod"}
        assert scene.kubelet.asked == ["pod"]

    play(short_path, script)


def test_who_would_wait_too_long_is_told_so(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "a", container("main"))
        await scene.get("a")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scene.get("b")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "it would take too long" in (caught.value.details() or "")
        assert scene.kubelet.asked == ["a"]

    play(short_path, script, pace=Pace(per_second=0.01, burst=1))


def test_who_is_about_to_give_up_is_answered_before_and_no_log_has_a_traceback(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.is_open.clear()
        asking = [scene.get(f"pod-{n}", timeout_s=0.2 + n / 100) for n in range(40)]
        told = [str(error) for error in await asyncio.gather(*asking, return_exceptions=True)]
        ours = [text for text in told if "it would take too long" in text]
        assert len(ours) >= 36  # a busy machine may be late for some

    play(short_path, script)
    assert "Traceback" not in caplog.text


def test_who_is_about_to_give_up_gets_the_answer_that_is_kept(short_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        await scene.get("pod")
        scene.kubelet.is_open.clear()
        assert (await scene.get("pod", timeout_s=1.0)).name == "pod"

    play(short_path, script, limits=Limits(known_deadline_s=PATIENCE_S))


def test_turns_come_in_a_burst_and_then_one_by_one() -> None:
    pace = Pace(per_second=10, burst=3, clock=lambda: 100.0)
    waits = [pace.take(within_s=0.25) for _ in range(7)]
    assert waits == pytest.approx([0, 0, 0, 0.1, 0.2, None, None])


@given(st.lists(st.floats(0, 1), max_size=60))
def test_no_second_has_more_turns_than_it_should(pauses_s: list[float]) -> None:
    now = 1000.0
    pace = Pace(per_second=20, burst=5, clock=lambda: now)
    turns = []
    for pause_s in pauses_s:
        now += pause_s
        wait_s = pace.take(within_s=10)
        assert wait_s is not None
        turns.append(now + wait_s)
    assert turns == sorted(turns)
    for start in turns:
        assert sum(start <= turn < start + 1 - 1e-6 for turn in turns) <= 20 + 5


def test_who_is_being_answered_at_the_end_is_answered(short_path: Path) -> None:
    waiting: list[asyncio.Task[Any]] = []

    async def script(scene: Scene) -> None:
        scene.kubelet.has("default", "pod", container("main"))
        scene.kubelet.is_open.clear()
        waiting.append(asyncio.create_task(scene.get("pod")))
        async with asyncio.timeout(PATIENCE_S):
            while not scene.kubelet.asked:
                await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.1, scene.kubelet.is_open.set)

    path, kubelet_path = short_path / "proxy.sock", short_path / "kubelet.sock"

    async def main() -> None:
        kubelet, client = PodResources(), Client(path)
        limits = Limits(grace_s=PATIENCE_S)
        async with kubelet.serve(kubelet_path):
            async with pod_resources.serve(
                path, kubelet_path, lambda: OURS, limits=limits
            ) as proxy:
                await script(Scene(kubelet, kubelet_path, client, proxy))
            assert (await waiting[0]).name == "pod"
            await client.close()

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE_S))


def test_it_ends_while_somebody_waits(short_path: Path) -> None:
    started = time.monotonic()

    async def script(scene: Scene) -> None:
        asking = asyncio.create_task(scene.get("pod"))
        await asyncio.sleep(0.1)
        asking.cancel()

    play(short_path, script, is_up=False)
    assert time.monotonic() - started < PATIENCE_S
