"""The API server has what the node has, and is written to only when that changes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Device, Door
from kata_gpu.plan.kubernetes import slices, taints
from kata_gpu.publish.kubernetes import client
from kata_gpu.publish.kubernetes.errors import ApiError, TooManyRequestsError
from kata_gpu.publish.kubernetes.mirror import Mirror
from kata_gpu.publish.kubernetes.pacing import BackOff, Pacing
from kata_gpu.publish.kubernetes.resource_slices import SlicePublisher, SliceRules
from tests.api_server import ApiServer, api_server, validation
from tests.kubernetes_devices import bundle, gpu, with_taint
from tests.waiting import Clock, until

RULES: Final = SliceRules(settle=taints.settle, plan=slices.plan, differences=slices.differences)
SOON: Final = Pacing(start_spread_s=0, sync_delay_s=0.05, retry_s=0.05, watch_s=(300, 600))
EIGHT: Final = tuple(gpu(bus) for bus in range(1, 9))
TAINTED: Final = tuple(map(with_taint, EIGHT))


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as api:
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
        yield api


@asynccontextmanager
async def publishing(
    api: ApiServer, path: Path, pacing: Pacing = SOON, driver: str = GPU_DRIVER
) -> AsyncIterator[SlicePublisher]:
    """Run a publisher until the block ends."""
    kubeconfig = api.kubeconfig(path / "kubeconfig")
    async with client.connected(str(kubeconfig), agent="kata-gpu/test") as asking:
        publisher = SlicePublisher(asking, driver, "node-1", RULES, pacing)
        task = asyncio.create_task(publisher.run())
        try:
            yield publisher
        finally:
            assert not task.done() or task.exception() is None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def published(api: ApiServer) -> list[str]:
    return [
        device["name"]
        for found in api.objects("ResourceSlice")
        for device in found["spec"].get("devices", ())
    ]


def has(api: ApiServer, devices: Sequence[Device]) -> bool:
    return published(api) == [device.name for device in devices] and sound(api)


async def shows(api: ApiServer, devices: Sequence[Device]) -> None:
    await until(lambda: has(api, devices))


async def watched(api: ApiServer, before: int) -> None:
    """Wait until there were more watches than *before*."""
    await until(lambda: api.watches() > before)


async def is_quiet(api: ApiServer) -> None:
    """Wait until two agents have nothing more to say."""
    asked = -1
    while api.watches() < 2 or asked != len(api.requests):
        asked = len(api.requests)
        await asyncio.sleep(1)


def sound(api: ApiServer) -> bool:
    found = api.objects("ResourceSlice")
    return bool(found) and validation.pool_faults(found) == ()


def writes(api: ApiServer) -> list[str]:
    return [request.method for request in api.writes]


def run(main: Callable[[], Any]) -> None:
    asyncio.run(main())


# Writes


def test_the_devices_are_published_in_one_write(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await shows(api, EIGHT)
            assert writes(api) == ["POST"]
            assert publisher.trouble is None

    run(main)


def test_nothing_is_written_before_the_devices_are_known(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path):
            await until(api.watches)
            began_s = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - began_s < 0.1
        assert writes(api) == []

    run(main)


def test_a_node_without_devices_says_so(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update((replace(gpu(1), door=Door.DEVICE_PLUGIN),))
            await until(lambda: api.objects("ResourceSlice"))
            assert published(api) == []

    run(main)


def test_each_change_is_one_write(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            for number in range(1, 6):
                devices = EIGHT[:number]
                publisher.update(devices)
                await shows(api, devices)
                assert len(writes(api)) == number
        assert writes(api) == ["POST", *["PUT"] * 4]
        assert api.objects("ResourceSlice")[0]["spec"]["pool"]["generation"] == 1

    run(main)


def test_a_bundle_and_then_none_is_published_in_whole(api: ApiServer, tmp_path: Path) -> None:
    members = tuple(replace(device, counts={device.name: 1}) for device in EIGHT)
    both = (*members, bundle("board", *members))

    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            for devices, generation in ((both, 1), (members, 2), (both, 3)):
                publisher.update(devices)
                await shows(api, devices)
                found = api.objects("ResourceSlice")
                assert {s["spec"]["pool"]["generation"] for s in found} == {generation}

    run(main)


def test_a_steady_hour_is_no_write(api: ApiServer, tmp_path: Path) -> None:
    """An hour of turns, one each two seconds; watches end meanwhile, and bookmarks come."""
    clock = Clock()
    pacing = replace(SOON, now=clock, watch_s=(1, 1))

    async def main() -> None:
        async with publishing(api, tmp_path, pacing) as publisher:
            publisher.update(EIGHT)
            await shows(api, EIGHT)
            for turn in range(1800):
                clock.now_s += 2
                publisher.update([replace(d, reason=f"turn {turn}") for d in EIGHT])
                if turn % 100 == 0:
                    api.bookmark()
                    await asyncio.sleep(0.1)
                await asyncio.sleep(0)
            await until(lambda: api.watches() >= 3)
        assert writes(api) == ["POST"]
        assert len(api.asked("GET", "/nodes")) <= 2  # at the start, and before the first write
        assert len([r for r in api.asked("GET", "slices") if "watch" not in r.query]) <= 2

    run(main)


def test_an_agent_that_starts_again_writes_nothing(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        for _ in range(2):
            async with publishing(api, tmp_path) as publisher:
                publisher.update(EIGHT)
                started = api.watches()
                await shows(api, EIGHT)
                await watched(api, started)
        assert writes(api) == ["POST"]

    run(main)


def test_two_agents_at_once_agree(api: ApiServer, tmp_path: Path) -> None:
    """As in a rolling update with surge."""

    async def main() -> None:
        async with publishing(api, tmp_path) as old, publishing(api, tmp_path) as new:
            old.update(EIGHT)
            new.update(EIGHT)
            await is_quiet(api)
            assert has(api, EIGHT)

    run(main)


def test_the_two_drivers_leave_each_others_slices(api: ApiServer, tmp_path: Path) -> None:
    switch = replace(gpu(99), driver=FABRIC_DRIVER)

    async def main() -> None:
        async with (
            publishing(api, tmp_path) as gpus,
            publishing(api, tmp_path, driver=FABRIC_DRIVER) as fabric,
        ):
            gpus.update((*EIGHT, switch))
            fabric.update((*EIGHT, switch))
            await until(lambda: len(api.objects("ResourceSlice")) == 2)
            assert sorted(published(api)) == sorted(d.name for d in (*EIGHT, switch))
            assert writes(api) == ["POST", "POST"]

    run(main)


# Taints


def test_a_taint_is_written_when_it_is_due_and_once(api: ApiServer, tmp_path: Path) -> None:
    clock = Clock()

    def tainted() -> int:
        return sum(
            "taints" in d for s in api.objects("ResourceSlice") for d in s["spec"]["devices"]
        )

    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, now=clock)) as publisher:
            publisher.update(EIGHT)
            await shows(api, EIGHT)
            failed = (with_taint(EIGHT[0]), *EIGHT[1:])
            for _ in range(20):
                publisher.update(failed)
                await asyncio.sleep(0.01)
            assert writes(api) == ["POST"]
            clock.now_s += 5
            publisher.update(failed)
            await until(tainted)
            publisher.update(EIGHT)
            await asyncio.sleep(0.1)
            assert writes(api) == ["POST", "PUT"]
            clock.now_s += 30
            publisher.update(EIGHT)
            await until(lambda: not tainted())
            assert writes(api) == ["POST", "PUT", "PUT"]

    run(main)


# What others do


def test_slices_that_kubelet_wipes_come_back(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await shows(api, EIGHT)
            for _ in range(3):
                await until(lambda: api.wipe("node-1") or has(api, EIGHT))
                await shows(api, EIGHT)

    run(main)


def test_they_come_back_after_a_while_and_not_at_once(api: ApiServer, tmp_path: Path) -> None:
    clock = Clock()

    async def main() -> None:
        pacing = replace(SOON, now=clock, sync_delay_s=30)
        async with publishing(api, tmp_path, pacing) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            api.wipe("node-1")
            for _ in range(20):
                publisher.update(EIGHT)
                await asyncio.sleep(0.02)
            assert writes(api) == ["POST"]
            clock.now_s += 31
            publisher.update(EIGHT)
            await shows(api, EIGHT)
            assert writes(api) == ["POST", "POST"]

    run(main)


def test_a_slice_that_somebody_changed_is_put_right(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            (found,) = api.objects("ResourceSlice")
            found["spec"]["devices"] = found["spec"]["devices"][:2]
            api.put(found)
            assert not has(api, EIGHT)
            await shows(api, EIGHT)

    run(main)


def test_what_an_older_agent_left_makes_way(api: ApiServer, tmp_path: Path) -> None:
    spec = {
        "driver": GPU_DRIVER,
        "nodeName": "node-1",
        "pool": {"name": "node-1", "generation": 4, "resourceSliceCount": 2},
    }
    for name in ("old-a", "00001-gpu.kata-passthrough.io-node-1-x"):
        metadata = {"name": name}
        body = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": metadata}
        api.put({**body, "spec": spec})

    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and len(api.objects("ResourceSlice")) == 1)
        assert api.objects("ResourceSlice")[0]["spec"]["pool"]["generation"] == 5

    run(main)


def test_a_node_that_is_made_anew_owns_the_slices_that_come_back(
    api: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            api.remove("Node", "node-1")
            node = api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
            api.wipe("node-1")
            await shows(api, EIGHT)
            (owner,) = api.objects("ResourceSlice")[0]["metadata"]["ownerReferences"]
            assert owner["uid"] == node["metadata"]["uid"]

    run(main)


# Failures


@pytest.mark.parametrize("status", [0, 403, 409, 429, 500, 503])
def test_a_write_that_fails_is_tried_again(api: ApiServer, tmp_path: Path, status: int) -> None:
    api.fail(status, method="POST", times=3)

    async def main() -> None:
        pacing = replace(SOON, retry_s=0.01, retry_max_s=0.05)
        async with publishing(api, tmp_path, pacing) as publisher:
            publisher.update(EIGHT)
            await shows(api, EIGHT)
            await until(lambda: publisher.trouble is None)
            assert len(api.asked("POST")) == 4

    run(main)


def test_a_create_whose_answer_was_lost_makes_no_second_slice(
    api: ApiServer, tmp_path: Path
) -> None:
    api.fail(0, method="POST", is_after=True)

    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and publisher.trouble is None and api.watches())
            publisher.update(EIGHT[1:])
            await shows(api, EIGHT[1:])
        assert [r.method for r in api.requests if r.is_write] == ["POST", "PUT"]

    run(main)


def test_a_conflict_is_looked_at_again_before_the_next_write(
    api: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            api.fail(409, method="PUT")
            lists = len(api.asked("GET"))
            publisher.update(EIGHT[1:])
            await shows(api, EIGHT[1:])
            assert len(api.asked("GET")) > lists
            assert len(api.asked("PUT")) == 2

    run(main)


def test_a_server_that_asks_for_time_gets_it(api: ApiServer, tmp_path: Path) -> None:
    clock = Clock()

    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, now=clock)) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            api.fail(429, method="PUT", retry_after_s=60)
            publisher.update(EIGHT[1:])
            await until(lambda: publisher.trouble)
            for _ in range(20):
                clock.now_s += 2
                publisher.update(EIGHT[1:])
                await asyncio.sleep(0.01)
            assert len(api.asked("PUT")) == 1
            clock.now_s += 25
            publisher.update(EIGHT[1:])
            await shows(api, EIGHT[1:])

    run(main)


def test_history_that_is_forgotten_is_a_new_list_and_no_write(
    api: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, watch_s=(1, 1))) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            lists = len(api.asked("GET", "/nodes"))
            api.expire()
            await until(lambda: len(api.asked("GET", "/nodes")) > lists)
            watches = api.watches()
            await watched(api, watches)
            assert writes(api) == ["POST"]
            publisher.update(EIGHT[1:])
            await shows(api, EIGHT[1:])

    run(main)


def test_a_wipe_that_no_watch_told_of_is_found_by_the_list(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, watch_s=(1, 1))) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            with api.store.changed:
                api.reset_watches()
                api.wipe("node-1")
                api.expire()
            await shows(api, EIGHT)

    run(main)


def test_watches_that_break_are_begun_again_from_where_they_were(
    api: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, retry_max_s=0.05)) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            lists = len(api.asked("GET", "/nodes"))
            for _ in range(5):
                watches = api.watches()
                api.reset_watches()
                await watched(api, watches)
            await until(lambda: publisher.trouble is None)
            assert len(api.asked("GET", "/nodes")) == lists
            assert writes(api) == ["POST"]

    run(main)


def test_watches_that_break_after_a_while_are_no_failures(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As behind a proxy that cuts a connection on which nothing is said for half a minute."""

    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, watch_held_s=0.1)) as publisher:
            publisher.update(EIGHT)
            await until(lambda: has(api, EIGHT) and api.watches())
            for _ in range(10):  # with pauses that grow, the last of them would be of 25 s
                await asyncio.sleep(0.15)
                watches = api.watches()
                api.reset_watches()
                await watched(api, watches)
            assert publisher.trouble is None
            publisher.update(EIGHT[1:])
            await shows(api, EIGHT[1:])

    run(main)
    assert "cannot watch" not in caplog.text


def test_watches_that_end_at_once_do_not_follow_without_a_pause(
    api: ApiServer, tmp_path: Path
) -> None:
    """As behind a proxy that will not have anybody wait."""
    api.watch_max_s = 0

    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, retry_s=0.2)) as publisher:
            publisher.update(EIGHT)
            await shows(api, EIGHT)
            await until(lambda: publisher.trouble)
            assert publisher.trouble == "cannot watch ResourceSlices: the server ended it at once"
            publisher.update(EIGHT[1:])
            await shows(api, EIGHT[1:])
            assert api.watches() <= 5
            api.watch_max_s = 600
            await until(lambda: publisher.trouble is None)
        assert writes(api) == ["POST", "PUT"]

    run(main)


def test_fields_that_the_server_drops_are_told_once_and_not_written_again_and_again(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.dropped = {"taints"}

    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(TAINTED)
            await until(lambda: has(api, EIGHT) and api.watches())
            for turn in range(100):
                publisher.update([replace(d, reason=str(turn)) for d in TAINTED])
                await asyncio.sleep(0)
            publisher.update(TAINTED[1:])
            await shows(api, EIGHT[1:])
            await asyncio.sleep(0.2)
        assert writes(api) == ["POST", "PUT"]

    with caplog.at_level(logging.WARNING):
        run(main)
    told = [r.getMessage() for r in caplog.records]
    assert told == [
        "the API server does not keep spec.devices.taints of ResourceSlices; is a feature gate off?"
    ]


def test_what_the_server_dropped_of_a_slice_is_forgotten_with_the_slice(
    api: ApiServer, tmp_path: Path
) -> None:
    api.dropped = {"taints"}

    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(TAINTED)
            await shows(api, EIGHT)
            for _ in range(3):
                await until(lambda: api.wipe("node-1") or has(api, EIGHT))
                await shows(api, EIGHT)
            assert len(publisher._truncated) <= 2  # with the one that went last

    run(main)


def test_a_server_without_dra_is_told_clearly_and_once(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.has_dra = False

    async def main() -> None:
        async with publishing(api, tmp_path, replace(SOON, retry_max_s=0.05)) as publisher:
            publisher.update(EIGHT)
            await until(lambda: len(api.asked("GET", "slices")) > 3)
            assert publisher.trouble is not None
            assert publisher.trouble.startswith(
                "cannot publish ResourceSlices: the API server has no resource.k8s.io/v1; "
            )
            api.has_dra = True
            await shows(api, EIGHT)
            await until(lambda: publisher.trouble is None)

    with caplog.at_level(logging.WARNING):
        run(main)
    assert len(caplog.records) == 1


def test_a_node_that_the_cluster_has_not_is_named(api: ApiServer, tmp_path: Path) -> None:
    api.remove("Node", "node-1")

    async def main() -> None:
        async with publishing(api, tmp_path) as publisher:
            publisher.update(EIGHT)
            await until(lambda: publisher.trouble)
            assert "the cluster has no node node-1; set kubernetes.node_name" in str(
                publisher.trouble
            )

    run(main)


def test_a_server_that_comes_later_is_found(tmp_path: Path) -> None:
    async def main() -> None:
        with api_server() as api:
            api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
            api.fail(0, times=5)
            async with publishing(api, tmp_path, replace(SOON, retry_max_s=0.05)) as publisher:
                publisher.update(EIGHT)
                await shows(api, EIGHT)

    run(main)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_all_of_it_is_right_in_the_end(
    api: ApiServer, tmp_path: Path, seed: int
) -> None:
    members = tuple(replace(gpu(n), counts={f"c{n}": 1}) for n in range(70))
    wishes = (EIGHT, members, (*members[:20], bundle("board", *members[:20])), ())
    faults = [0, 409, 410, 429, 500]

    async def main() -> None:
        pacing = replace(SOON, retry_s=0.01, retry_max_s=0.05, watch_s=(1, 1))
        async with publishing(api, tmp_path, pacing) as publisher:
            for turn in range(12):
                number = turn * (seed + 3)
                is_after = bool(number % 2)
                api.fail(faults[number % 5], times=number % 4, is_after=is_after)
                publisher.update(wishes[number % 4])
                await asyncio.sleep(0.03)
                (api.wipe, lambda _: api.expire(), lambda _: api.reset_watches())[turn % 3](
                    "node-1"
                )
            api.faults.clear()
            publisher.update(members)
            await until(lambda: set(published(api)) == {d.name for d in members} and sound(api))
            await until(lambda: publisher.trouble is None)

    run(main)


# What is known of the server


def stored(version: int, uid: str = "a") -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "resourceVersion": str(version)}}


def heard(mirror: Mirror, kind: str, version: int, uid: str = "a") -> bool:
    return mirror.hear({"type": kind, "object": stored(version, uid)})


def test_what_a_watch_tells_late_does_not_undo_what_is_known() -> None:
    mirror = Mirror()
    mirror.reset([stored(5)], "10")
    assert not heard(mirror, "DELETED", 9)
    assert mirror.objects == (stored(5),)
    mirror.keep(stored(20))
    assert not heard(mirror, "MODIFIED", 15)
    assert not heard(mirror, "MODIFIED", 20)
    assert mirror.objects == (stored(20),)
    assert mirror.version == "20"


def test_what_others_did_is_known_and_told() -> None:
    mirror = Mirror()
    mirror.reset([stored(5), stored(6, "b")], "10")
    assert heard(mirror, "MODIFIED", 11)
    assert heard(mirror, "DELETED", 12, "b")
    assert heard(mirror, "ADDED", 13, "c")
    assert mirror.objects == (stored(11), stored(13, "c"))


def test_what_we_deleted_is_nobody_elses_doing() -> None:
    mirror = Mirror()
    mirror.reset([stored(5)], "10")
    mirror.drop(stored(5))
    assert not heard(mirror, "DELETED", 11)


def test_a_bookmark_says_how_far_a_watch_is_and_nothing_else() -> None:
    mirror = Mirror()
    mirror.reset([stored(5)], "10")
    event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "99"}}}
    assert not mirror.hear(event)
    assert (mirror.version, mirror.objects) == ("99", (stored(5),))


# Pace


def test_the_agents_of_a_thousand_nodes_begin_all_over_half_a_minute() -> None:
    """In no second do more of them begin than chance has it: 33 are the mean."""
    starts = [Pacing().start_delay_s() for _ in range(1000)]
    assert 0 <= min(starts) < 2
    assert 28 < max(starts) <= 30
    seconds = [int(start) for start in starts]
    assert max(seconds.count(second) for second in range(30)) < 80


def test_watches_last_five_to_ten_minutes_and_not_all_the_same() -> None:
    times = {Pacing().watch_timeout_s() for _ in range(200)}
    assert min(times) >= 300
    assert max(times) <= 600
    assert len(times) > 50


def test_pauses_grow_to_five_minutes_and_no_longer() -> None:
    back_off = BackOff(replace(Pacing(), now=lambda: 0.0))
    pauses = [back_off.failed(ApiError("cannot")) for _ in range(40)]
    assert pauses[0] <= 1
    assert all(150 <= pause <= 300 for pause in pauses[10:])


def test_a_pause_is_never_shorter_than_the_server_asked_for_nor_without_bounds() -> None:
    back_off = BackOff(Pacing())
    assert 17.5 <= back_off.failed(TooManyRequestsError("cannot", retry_after_s=17)) <= 18
    assert back_off.failed(TooManyRequestsError("cannot", retry_after_s=1e9)) <= 302


def test_pauses_are_short_again_after_a_success_or_a_long_time() -> None:
    clock = Clock()
    back_off = BackOff(replace(Pacing(), now=clock))
    for _ in range(10):
        back_off.failed(ApiError("cannot"))
    back_off.succeeded()
    assert back_off.failed(ApiError("cannot")) <= 1
    for _ in range(10):
        back_off.failed(ApiError("cannot"))
    clock.now_s += 1000
    assert back_off.failed(ApiError("cannot")) <= 1
