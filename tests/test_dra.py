"""Kubelet gets the claims of a pod prepared by a DRA driver, each whole or not at all."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Door
from kata_gpu.publish.kubelet.dra import DraDriver
from kata_gpu.publish.kubelet.prepared import Progress
from kata_gpu.publish.kubelet.preparing import Patience
from kata_gpu.publish.kubelet.protos import dra_v1_pb2
from tests.dra_node import PATIENCE, Node, Turns, device, until
from tests.kubelet.claims import NAMESPACE, allocated, opaque
from tests.kubelet.dra_manager import DraManager, PrepareError

FIRST: Final = "0000-01-00-0"
SECOND: Final = "0000-02-00-0"
LENT: Final = "0000-03-00-0"
LENT_UNIT: Final = frozenset({"0000:03:00.0"})


@pytest.fixture
def node(short_path: Path) -> Node:
    """Two GPUs on VFIO, and one that is bound on claim."""
    devices = (device(1), device(2), device(3, on_claim=True))
    return Node(short_path, Turns({one.name: one for one in devices}))


async def refusal(kubelet: DraManager, *claims: str, pod: str = "pod") -> str:
    """Return why a pod does not start."""
    with pytest.raises(PrepareError) as caught:
        await kubelet.start_pod(pod, *claims)
    return str(caught.value)


# What is prepared


def test_a_pod_gets_the_cdi_name_of_the_device_that_its_claim_has(node: Node) -> None:
    uid = node.claims.give("one", FIRST)

    async def main() -> list[str]:
        async with node.running() as (driver, kubelet):
            found = await kubelet.start_pod("pod", "one")
            assert driver.claimed_units() == {"0000:01:00.0"}
            assert driver.claims()[uid].claim.name == "one"
            return found

    assert asyncio.run(main()) == ["nvidia.com/pgpu=0000:01:00.0"]
    assert node.turns.brought == []  # it was on VFIO


def test_a_device_that_is_bound_on_claim_is_brought_and_goes_back_after(node: Node) -> None:
    node.claims.give("one", LENT)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            assert await kubelet.start_pod("pod", "one") == ["nvidia.com/pgpu=0000:03:00.0"]
            assert node.turns.devices[LENT].is_ready
            await kubelet.stop_pod("pod")
            assert not node.turns.devices[LENT].is_ready
            assert driver.claimed_units() == frozenset()

    asyncio.run(main())
    assert (node.turns.brought, node.turns.let_go) == ([LENT_UNIT], [LENT_UNIT])


def test_a_device_that_is_bound_on_claim_is_brought_though_it_still_seems_ready(node: Node) -> None:
    node.turns.change(LENT, is_ready=True)  # the last turn's word: the next one would take it away
    node.claims.give("one", LENT)

    async def main() -> None:
        async with node.running() as (_, kubelet):
            await kubelet.start_pod("pod", "one")

    asyncio.run(main())
    assert node.turns.brought == [LENT_UNIT]


def test_what_is_prepared_is_answered_again_without_asking_anybody(node: Node) -> None:
    node.claims.give("one", FIRST, LENT)

    async def main() -> None:
        async with node.running() as (_, kubelet):
            found = await kubelet.start_pod("pod", "one")
            node.claims.is_down = True
            node.turns.change(FIRST, is_healthy=False)
            del node.turns.devices[LENT]
            assert await kubelet.start_pod("other pod", "one") == found
            again = DraManager(node.root, node.claims)
            async with again.run():
                await until(lambda: again.plugins, "registered again")
                assert await again.start_pod("pod", "one") == found * 2

    asyncio.run(main())
    assert (node.claims.reads, len(node.turns.brought)) == (1, 1)


def test_a_bundle_gives_the_cdi_names_of_its_units(node: Node) -> None:
    units = ("0000:01:00.0", "0000:02:00.0")
    bundle = device(1, id="board", name="board", units=units, is_bundle=True)
    node.turns.devices["board"] = bundle
    node.claims.give("all", "board")
    node.claims.give("one", FIRST)

    async def main() -> None:
        async with node.running() as (_, kubelet):
            found = await kubelet.start_pod("pod", "all")
            assert found == [f"nvidia.com/pgpu={unit}" for unit in units]
            assert "prepared for claim" in await refusal(kubelet, "one", pod="late")

    asyncio.run(main())


def test_only_this_drivers_devices_are_prepared(node: Node) -> None:
    node.claims.put(
        "mixed", allocated(FIRST, "gpu"), allocated("nic-1", "nic", driver="nic.example.com")
    )
    node.claims.put("strange", allocated("nic-1", "nic", driver="nic.example.com"))

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            for name, expected in (("mixed", [FIRST]), ("strange", [])):
                answer = await ask(kubelet, name, node.claims.objects[name]["metadata"]["uid"])
                assert [one.device_name for one in answer.devices] == expected
            assert len(driver.claims()) == 1

    asyncio.run(main())


async def ask(kubelet: DraManager, name: str, uid: str, verb: str = "Prepare") -> Any:
    """Ask the driver for one claim, and return its entry in the answer."""
    method = f"Node{verb}Resources"
    request = getattr(dra_v1_pb2, f"{method}Request")(
        claims=[dra_v1_pb2.Claim(namespace=NAMESPACE, name=name, uid=uid)]
    )
    client = kubelet.newest(GPU_DRIVER).client
    response = await client.ask(dra_v1_pb2, f"DRAPlugin.{method}", request, timeout_s=30)
    assert list(response.claims) == [uid]
    return response.claims[uid]


def test_requests_are_named_as_containers_name_them(node: Node) -> None:
    node.claims.put("one", allocated(FIRST, "gpu/big"), allocated(SECOND, "other"))

    async def main() -> list[str]:
        async with node.running() as (_, kubelet):
            await kubelet.start_pod("pod", "one")
            return kubelet.requests("one")

    assert asyncio.run(main()) == ["gpu", "other"]


def test_a_device_that_two_requests_have_is_named_once_for_both(node: Node) -> None:
    node.claims.put("one", allocated(FIRST, "a"), allocated(FIRST, "b/c"), allocated(FIRST, "b/d"))

    async def main() -> tuple[list[str], list[str]]:
        async with node.running() as (_, kubelet):
            return await kubelet.start_pod("pod", "one"), kubelet.requests("one")

    assert asyncio.run(main()) == (["nvidia.com/pgpu=0000:01:00.0"], ["a", "b"])


def test_sixty_four_claims_at_once_are_all_prepared(short_path: Path) -> None:
    devices = [device(n, on_claim=n % 2 == 0) for n in range(1, 65)]
    node = Node(short_path, Turns({one.name: one for one in devices}))
    names = [f"claim-{n}" for n in range(64)]
    for name, one in zip(names, devices, strict=True):
        node.claims.give(name, one.name)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            found = await kubelet.start_pod("pod", *names)
            assert found == [name for one in devices for name in one.cdi_names]
            assert len(driver.claims()) == 64
            await kubelet.stop_pod("pod")
            assert driver.claims() == {}

    asyncio.run(main())


def test_claims_of_one_pod_do_not_wait_for_each_other(node: Node) -> None:
    node.turns.gate.clear()
    node.claims.give("slow", LENT)
    uid = node.claims.give("quick", FIRST)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            starting = asyncio.create_task(kubelet.start_pod("pod", "slow", "quick"))
            await until(lambda: uid in driver.claims(), "the quick one is prepared")
            node.turns.gate.set()
            assert len(await starting) == 2

    asyncio.run(main())


# What is refused


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (allocated("0000-09-00-0"), "this node has none such now"),
        (allocated(FIRST, pool="node-2"), "of pool node-2: this node has none such now"),
        (allocated(FIRST, adminAccess=True), "with admin access: a VM takes a GPU whole"),
        (allocated("0000-04-00-0"), "cannot prepare device 0000-04-00-0: quarantined"),
        (allocated("0000-05-00-0"), "this node has none such now"),
        (allocated("0000-06-00-0"), "this node has none such now"),
        (allocated("../../etc"), "this node has none such now"),
        (allocated(FIRST, "../x"), "'../x' is no name of a request"),
        (allocated(FIRST, "a/b/c"), "'a/b/c' is no name of a request"),
        (allocated(""), "its allocation has device ''"),
        ({"driver": GPU_DRIVER, "request": "gpu", "pool": "node-1"}, "has device None"),
    ],
    ids=[
        *("unknown", "pool", "admin", "unhealthy", "other door", "other driver", "path"),
        *("path as request", "deep request"),
        *("empty", "missing"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(
    node: Node, result: dict[str, Any], reason: str
) -> None:
    others = (
        device(4, is_healthy=False, reason="quarantined: no reset worked"),
        device(5, door=Door.DEVICE_PLUGIN),
        device(6, driver=FABRIC_DRIVER),
    )
    node.turns.devices |= {one.name: one for one in others}
    node.claims.put("one", result)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            assert reason in await refusal(kubelet, "one")
            assert driver.claims() == {}

    asyncio.run(main())
    assert (node.turns.brought, node.turns.let_go) == ([], [])


def test_a_claim_that_is_another_by_now_is_refused(node: Node) -> None:
    old = node.claims.give("one", FIRST)
    new = node.claims.give("one", FIRST)

    async def main() -> None:
        async with node.running() as (_, kubelet):
            answer = await ask(kubelet, "one", old)
            assert f"its name has claim {new} now" in answer.error
            assert not answer.devices

    asyncio.run(main())


@pytest.mark.parametrize("status", [{}, {"allocation": None}, None, {"allocation": []}])
def test_a_claim_without_an_allocation_is_refused(node: Node, status: Any) -> None:
    uid = node.claims.give("one", FIRST)
    node.claims.objects["one"]["status"] = status

    async def main() -> None:
        async with node.running() as (_, kubelet):
            assert "not allocated" in (await ask(kubelet, "one", uid)).error

    asyncio.run(main())


def test_a_claim_that_cannot_be_read_or_is_gone_is_refused(node: Node) -> None:
    uid = node.claims.give("one", FIRST)

    async def main() -> None:
        async with node.running() as (_, kubelet):
            assert "gone from the API server" in (await ask(kubelet, "none", uid)).error
            node.claims.is_down = True
            assert "connection refused" in (await ask(kubelet, "one", uid)).error

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "uid"),
    [("one", "../../x"), ("../x", "u-1"), ("one", "a" * 129), ("one", "a/b"), ("a..b", "u-1")],
)
def test_a_name_that_could_lead_out_of_a_folder_is_refused(node: Node, name: str, uid: str) -> None:
    async def main() -> None:
        async with node.running() as (_, kubelet):
            assert "not a claim's" in (await ask(kubelet, name, uid)).error

    asyncio.run(main())
    assert node.claims.reads == 0


def test_what_a_claim_asks_of_a_device_is_held_against_it(node: Node) -> None:
    wish = opaque({"confidential": "required"}, requests=["gpu"])
    node.claims.put("one", allocated(FIRST, "gpu/small"), config=[wish])
    node.claims.put("two", allocated(SECOND, "gpu"), config=[wish])
    node.turns.change(
        SECOND, attributes={**node.turns.devices[SECOND].attributes, "confidential": True}
    )

    async def main() -> None:
        async with node.running() as (_, kubelet):
            reason = await refusal(kubelet, "one")
            assert f"device {FIRST}: it is not ready for confidential VMs" in reason
            assert await kubelet.start_pod("other", "two")

    asyncio.run(main())


def test_a_claim_has_all_of_its_devices_or_none(node: Node) -> None:
    broken = device(4, on_claim=True)
    node.turns.devices[broken.name] = broken
    node.turns.broken = set(broken.units)
    node.claims.give("three", FIRST, LENT, broken.name)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            assert "cannot bind 0000:04:00.0: no such device" in await refusal(kubelet, "three")
            assert driver.claims() == {}

    asyncio.run(main())
    assert node.turns.let_go == [{"0000:01:00.0", "0000:03:00.0", "0000:04:00.0"}]
    assert not node.turns.devices[LENT].is_ready


def test_a_device_that_is_not_ready_after_it_was_brought_is_refused(node: Node) -> None:
    node.claims.give("one", LENT)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            node.turns.claimed = lambda: LENT_UNIT  # a turn that does nothing
            node.turns.broken = {"0000:03:00.0"}
            node.turns.change(LENT, units=("0000:03:00.0",), on_claim=False)
            node.turns.broken = set()
            assert "on its host driver" in await refusal(kubelet, "one")
            assert driver.claims() == {}

    asyncio.run(main())


def test_what_a_claim_s_author_writes_begins_no_line(node: Node) -> None:
    wish = opaque({"x\nINFO bound\x1b[2J": 1})
    node.claims.put("one", allocated(FIRST), config=[wish])

    async def main() -> None:
        async with node.running() as (_, kubelet):
            assert "x?INFO bound?[2J: there is no such field" in await refusal(kubelet, "one")

    asyncio.run(main())


def test_a_device_that_is_lost_while_it_is_brought_is_refused(node: Node) -> None:
    node.claims.give("one", LENT)
    node.turns.gate.clear()

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            starting = asyncio.create_task(refusal(kubelet, "one"))
            await until(lambda: node.turns.in_turn, "it is being brought")
            node.turns.change(LENT, is_healthy=False, reason="it is on no driver")
            node.turns.gate.set()
            assert "it is on no driver" in await starting
            assert driver.claims() == {}

    asyncio.run(main())


def test_a_bug_is_an_answer_and_a_traceback(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.claims.give("one", LENT)
    node.turns.devices[LENT] = replace(node.turns.devices[LENT], units=())
    node.turns.gate = None  # type: ignore[assignment]

    async def main() -> None:
        async with node.running() as (_, kubelet):
            assert "AttributeError; the agent's log says where" in await refusal(kubelet, "one")

    asyncio.run(main())
    assert "a bug: a claim cannot be handled" in caplog.text
    assert "Traceback" in caplog.text


# Two claims, one device


def test_of_two_claims_for_one_device_one_gets_it_and_the_other_is_told_who(node: Node) -> None:
    uids = {name: node.claims.give(name, LENT) for name in ("one", "two")}

    async def main() -> None:
        async with node.running() as (_, kubelet):
            starts = [kubelet.start_pod(f"pod {name}", name) for name in uids]
            found = await asyncio.gather(*starts, return_exceptions=True)
            lost = [
                name for name, one in zip(uids, found, strict=True) if isinstance(one, Exception)
            ]
            assert len(lost) == 1
            winner = next(uid for name, uid in uids.items() if name not in lost)
            assert f"prepared for claim {winner}" in str(
                [e for e in found if not isinstance(e, list)]
            )

    asyncio.run(main())


def test_who_comes_for_a_device_that_is_just_let_go_gets_it(node: Node) -> None:
    node.claims.give("one", LENT)
    node.claims.give("two", LENT)

    async def main() -> None:
        async with node.running(patience=Patience(call_s=20, settle_s=20)) as (_, kubelet):
            await kubelet.start_pod("old", "one")
            starting = asyncio.create_task(kubelet.start_pod("new", "two"))
            await until(lambda: node.claims.reads == 2, "the second claim waits")
            await kubelet.stop_pod("old")
            assert await starting == ["nvidia.com/pgpu=0000:03:00.0"]
            assert node.turns.devices[LENT].is_ready

    asyncio.run(main())


def test_who_comes_while_the_same_claim_is_unprepared_gets_it_anew(node: Node) -> None:
    node.claims.give("one", LENT)

    async def main() -> None:
        async with node.preparer() as (preparer, checkpoint):
            name = node.named("one")
            await preparer.prepare(name)
            unpreparing = asyncio.create_task(preparer.unprepare(name))
            await asyncio.sleep(0)
            prepared = await preparer.prepare(name)
            await unpreparing
            assert checkpoint.claims() == {name.uid: prepared}
            assert node.turns.devices[LENT].is_ready

    asyncio.run(main())


def test_a_device_that_gets_well_in_time_is_given(node: Node) -> None:
    node.turns.change(FIRST, is_healthy=False, reason="being cleaned")
    node.claims.give("one", FIRST)

    async def main() -> None:
        async with node.running(patience=Patience(call_s=20, settle_s=20)) as (driver, kubelet):
            starting = asyncio.create_task(kubelet.start_pod("pod", "one"))
            await until(lambda: node.claims.reads, "the claim waits")
            node.turns.change(FIRST, is_healthy=True)
            driver.changed()
            assert await starting

    asyncio.run(main())


# Slow work


def test_slow_work_goes_on_and_the_retry_finds_it(node: Node) -> None:
    node.turns.gate.clear()
    uid = node.claims.give("one", LENT)

    async def main() -> None:
        quick = replace(PATIENCE, call_s=0.3)
        async with node.running(patience=quick) as (driver, kubelet):
            for _ in range(2):
                assert f"still preparing claim {uid} after 0.3 s" in await refusal(kubelet, "one")
            node.turns.gate.set()
            await until(
                lambda: driver.claims()[uid].progress is Progress.COMPLETED, "it is completed"
            )
            assert await kubelet.start_pod("pod", "one") == ["nvidia.com/pgpu=0000:03:00.0"]

    asyncio.run(main())
    assert node.turns.brought == [LENT_UNIT]


def test_slow_work_that_fails_leaves_nothing_and_the_retry_begins_anew(node: Node) -> None:
    node.turns.gate.clear()
    node.turns.broken = set(LENT_UNIT)
    node.claims.give("one", LENT)

    async def main() -> None:
        quick = replace(PATIENCE, call_s=0.3)
        async with node.running(patience=quick) as (driver, kubelet):
            assert "still preparing" in await refusal(kubelet, "one")
            node.turns.gate.set()
            await until(lambda: node.turns.let_go and not driver.claims(), "it is undone")
            node.turns.broken.clear()
            assert await kubelet.start_pod("pod", "one")

    asyncio.run(main())
    assert node.turns.brought == [LENT_UNIT] * 2


# Unprepare


def test_unprepare_needs_no_api_and_knows_no_unknown_claim(node: Node) -> None:
    node.claims.give("one", FIRST)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            await kubelet.start_pod("pod", "one")
            node.claims.delete("one")
            node.claims.is_down = True
            await kubelet.stop_pod("pod")
            assert driver.claims() == {}
            assert (await ask(kubelet, "never", "u-1", "Unprepare")).error == ""

    asyncio.run(main())


def test_a_claim_that_is_deleted_while_its_device_is_bound_has_nothing_in_the_end(
    node: Node,
) -> None:
    node.turns.gate.clear()
    node.claims.give("one", LENT)
    claim = node.named("one")

    async def main() -> None:
        async with node.preparer() as (preparer, checkpoint):
            starting = asyncio.create_task(preparer.prepare(claim))
            await until(lambda: node.turns.in_turn, "the device is being bound")
            node.claims.delete("one")
            stopping = asyncio.create_task(preparer.unprepare(claim))
            await asyncio.sleep(0)
            again = asyncio.create_task(preparer.prepare(claim))
            await asyncio.sleep(0)
            node.turns.gate.set()
            await stopping
            with pytest.raises(KataGpuError, match="unprepared meanwhile"):
                await starting
            with pytest.raises(KataGpuError, match="gone from the API server"):
                await again
            assert checkpoint.claims() == {}
            assert not node.turns.devices[LENT].is_ready

    asyncio.run(main())


def test_a_claim_that_waits_for_another_to_end_can_be_deleted(node: Node) -> None:
    node.claims.give("one", LENT)
    node.claims.give("two", LENT)

    async def main() -> None:
        patience = Patience(call_s=20, settle_s=3600)
        async with node.preparer(patience=patience) as (preparer, checkpoint):
            await preparer.prepare(node.named("one"))
            waiting = asyncio.create_task(preparer.prepare(node.named("two")))
            await until(lambda: node.claims.reads == 2, "the second claim waits")
            await preparer.unprepare(node.named("two"))
            with pytest.raises(KataGpuError, match="prepared for claim"):
                await waiting
            assert len(checkpoint.claims()) == 1

    asyncio.run(main())


def test_an_unprepare_that_would_wait_too_long_says_so(node: Node) -> None:
    node.turns.gate.clear()
    node.claims.give("one", LENT)

    async def main() -> None:
        async with node.running(patience=replace(PATIENCE, call_s=0.3)) as (driver, kubelet):
            assert "still preparing" in await refusal(kubelet, "one")
            with pytest.raises(PrepareError, match="still unpreparing"):
                await kubelet.stop_pod("pod")
            node.turns.gate.set()
            await until(lambda: driver.claims() == {}, "it is undone")
            await kubelet.stop_pod("pod")

    asyncio.run(main())


def test_a_claim_is_unprepared_though_a_vm_still_has_its_device(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.claims.give("one", LENT)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            await kubelet.start_pod("pod", "one")
            node.turns.held = set(LENT_UNIT)
            await kubelet.stop_pod("pod")
            assert driver.claims() == {}

    asyncio.run(main())
    assert "cannot give 0000:03:00.0 back yet: cannot unbind" in caplog.text


def test_a_claim_is_prepared_anew_after_it_was_unprepared_while_being_prepared(
    node: Node,
) -> None:
    node.turns.gate.clear()
    node.claims.give("one", LENT)
    claim = node.named("one")

    async def main() -> None:
        async with node.preparer() as (preparer, checkpoint):
            first = asyncio.create_task(preparer.prepare(claim))
            await until(lambda: node.turns.in_turn, "the device is being bound")
            removed = asyncio.create_task(preparer.unprepare(claim))
            await asyncio.sleep(0)
            second = asyncio.create_task(preparer.prepare(claim))
            await asyncio.sleep(0)
            node.turns.gate.set()
            await asyncio.gather(first, removed, return_exceptions=True)
            assert await second == checkpoint.claims()[claim.uid]

    asyncio.run(main())
    assert node.turns.brought == [LENT_UNIT] * 2


# The checkpoint


def test_a_damaged_checkpoint_stops_everything_and_is_left_as_it_is(node: Node) -> None:
    uid = node.claims.give("one", FIRST)
    path = node.root / "plugins" / GPU_DRIVER / "checkpoint.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "sha256": "0", "checkpoint": {}}')
    before = path.read_text()

    async def main() -> DraDriver:
        async with node.running() as (driver, kubelet):
            assert "its checksum does not match" in await refusal(kubelet, "one")
            assert "its checksum" in (await ask(kubelet, "one", uid, "Unprepare")).error
            return driver

    driver = asyncio.run(main())
    with pytest.raises(Exception, match="cannot trust"):
        driver.claimed_units()
    assert path.read_text() == before
    assert node.turns.brought == []


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_prepared(node: Node) -> None:
    node.claims.give("one", FIRST)
    folder = node.root / "plugins" / GPU_DRIVER

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            (folder / "checkpoint.json").mkdir()
            assert "cannot" in await refusal(kubelet, "one")
            (folder / "checkpoint.json").rmdir()
            assert driver.claims() == {}
            assert await kubelet.start_pod("pod", "one")

    asyncio.run(main())


def test_host_errors_of_giving_back_do_not_stop_a_roll_back(node: Node) -> None:
    node.claims.give("one", LENT)
    node.turns.broken = set(LENT_UNIT)
    node.turns.held = set(LENT_UNIT)

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            assert "cannot bind" in await refusal(kubelet, "one")
            assert driver.claims() == {}

    asyncio.run(main())


def test_the_error_of_an_agent_that_takes_no_turn_is_told(node: Node) -> None:
    async def bring(_units: frozenset[str]) -> dict[str, Any]:
        raise HostError("cannot take a turn: the agent ends")

    node.turns.bring = bring  # type: ignore[method-assign,assignment]
    node.claims.give("one", LENT)

    async def main() -> None:
        async with node.running() as (_, kubelet):
            assert "cannot take a turn: the agent ends" in await refusal(kubelet, "one")

    asyncio.run(main())
