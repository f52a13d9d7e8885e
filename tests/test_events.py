"""Events tell what becomes of units, and are never a flood."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_gpu.model.slices import NodeIdentity
from kata_gpu.model.unit import UnitState
from kata_gpu.publish.kubernetes import client, events
from kata_gpu.publish.kubernetes.events import EventPublisher, Happening
from kata_gpu.publish.kubernetes.pacing import Pacing
from tests.api_server import ApiServer, api_server, validation
from tests.node_states import node_state, unit
from tests.waiting import Clock, until

NODE: Final = NodeIdentity(name="node-1", uid="u-1")
AT: Final = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
STUCK: Final = Happening(
    unit="0000:01:00.0", reason="UnitStuck", action="Move", note="it hangs", is_warning=True
)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as api:
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
        yield api


@asynccontextmanager
async def telling(api: ApiServer, path: Path, clock: Clock) -> AsyncIterator[EventPublisher]:
    pacing = Pacing(start_spread_s=0, retry_s=0.02, retry_max_s=0.05, now=clock)
    kubeconfig = str(api.kubeconfig(path / "kubeconfig"))
    async with client.connected(kubeconfig, agent="kata-gpu/test") as asking:
        publisher = EventPublisher(asking, "node-1", pacing)
        task = asyncio.create_task(publisher.run())
        try:
            yield publisher
        finally:
            assert not task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def told(api: ApiServer) -> list[dict[str, Any]]:
    return api.objects("Event")


def counts(api: ApiServer) -> list[int]:
    return sorted(event.get("series", {}).get("count", 1) for event in told(api))


# What is told


def happened(*states: UnitState | None) -> list[tuple[str, str]]:
    """Return what is told of a unit that was in these states, one after another."""
    found, before = [], None
    for state in states:
        after = node_state() if state is None else node_state(unit("01:00.0", state))
        found += [(h.reason, h.note) for h in events.happenings(before, after)]
        before = after
    return found


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (UnitState.QUARANTINED, "UnitQuarantined"),
        (UnitState.STUCK, "UnitStuck"),
        (UnitState.FAILED, "UnitFailed"),
        (UnitState.FOREIGN, "UnitForeign"),
    ],
)
def test_what_an_admin_should_see_is_told_once(state: UnitState, reason: str) -> None:
    note = f"unit 0000:01:00.0 is {state}: as the test says"
    assert happened(UnitState.AVAILABLE, state, state) == [(reason, note)]
    assert happened(state) == [(reason, note)]


@pytest.mark.parametrize("state", [UnitState.AVAILABLE, UnitState.IN_USE, UnitState.HOST])
def test_that_a_unit_is_well_again_is_told(state: UnitState) -> None:
    assert happened(UnitState.FAILED, state)[1:] == [
        ("UnitAvailable", f"unit 0000:01:00.0 is {state} again, was failed")
    ]


def test_what_is_usual_is_not_told() -> None:
    usual = [UnitState.PENDING, UnitState.AVAILABLE, UnitState.IN_USE, UnitState.AVAILABLE, None]
    assert happened(*usual) == []


@pytest.mark.parametrize("state", UnitState)
def test_the_server_takes_the_event_of_every_state(state: UnitState) -> None:
    before = node_state(unit("01:00.0", UnitState.STUCK))
    for found in events.happenings(before, node_state(unit("01:00.0", state))):
        assert validation.event_faults(events.event(found, NODE, AT)) == ()


def test_an_event_is_about_the_node_and_one_unit_of_it() -> None:
    found = events.event(STUCK, NODE, AT)
    assert found["regarding"] == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "node-1",
        "uid": "u-1",
        "fieldPath": "units{0000:01:00.0}",
    }
    assert found["eventTime"] == "2026-03-04T05:06:07.000089Z"
    assert found["metadata"]["namespace"] == "default"


@given(
    st.text(max_size=2000),
    st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,200}[a-z0-9])?", fullmatch=True),
)
def test_whatever_the_note_is_the_server_takes_it(note: str, name: str) -> None:
    if not validation.is_subdomain(name):
        return
    found = events.event(replace(STUCK, note=note), NodeIdentity(name=name, uid="u"), AT)
    assert validation.event_faults(found) == ()


# How often


def test_the_first_is_told_at_once(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with telling(api, tmp_path, Clock()) as publisher:
            publisher.report([STUCK])
            await until(lambda: told(api))

    asyncio.run(main())
    (found,) = told(api)
    assert (found["reason"], found["note"], found["type"]) == ("UnitStuck", "it hangs", "Warning")
    assert found["regarding"]["uid"] == api.objects("Node")[0]["metadata"]["uid"]


def test_what_happens_again_is_counted_and_told_once_a_minute(
    api: ApiServer, tmp_path: Path
) -> None:
    clock = Clock()

    async def main() -> None:
        async with telling(api, tmp_path, clock) as publisher:
            publisher.report([STUCK])
            await until(lambda: told(api))
            for _ in range(59):
                clock.now_s += 1
                publisher.report([STUCK])
                await asyncio.sleep(0.002)
            assert len(api.writes) == 1
            clock.now_s += 1
            publisher.report([])
            await until(lambda: counts(api) == [60])
            assert [request.method for request in api.writes] == ["POST", "PATCH"]

    asyncio.run(main())


def test_what_happened_often_before_it_could_be_told_is_one_event(
    api: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with telling(api, tmp_path, Clock()) as publisher:
            publisher.report([STUCK, STUCK, STUCK])
            await until(lambda: counts(api) == [3])
            assert len(api.writes) == 1

    asyncio.run(main())


def test_what_happens_again_after_long_is_something_new(api: ApiServer, tmp_path: Path) -> None:
    clock = Clock()

    async def main() -> None:
        async with telling(api, tmp_path, clock) as publisher:
            publisher.report([STUCK])
            await until(lambda: told(api))
            clock.now_s += 601
            publisher.report([STUCK])
            await until(lambda: counts(api) == [1, 1])

    asyncio.run(main())


def test_a_series_whose_event_is_gone_is_a_new_event(api: ApiServer, tmp_path: Path) -> None:
    clock = Clock()

    async def main() -> None:
        async with telling(api, tmp_path, clock) as publisher:
            publisher.report([STUCK])
            await until(lambda: told(api))
            api.remove("Event", told(api)[0]["metadata"]["name"], "default")
            clock.now_s += 60
            publisher.report([STUCK])
            await until(lambda: counts(api) == [2])

    asyncio.run(main())


def test_an_event_of_a_node_that_was_made_anew_is_about_the_new_one(
    api: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with telling(api, tmp_path, Clock()) as publisher:
            publisher.report([STUCK])
            await until(lambda: told(api))
            api.remove("Node", "node-1")
            new = api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
            publisher.report([replace(STUCK, unit="0000:02:00.0")])
            await until(lambda: len(told(api)) == 2)
            assert new["metadata"]["uid"] in {e["regarding"]["uid"] for e in told(api)}

    asyncio.run(main())


def test_each_unit_and_reason_is_told_by_itself(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with telling(api, tmp_path, Clock()) as publisher:
            publisher.report([STUCK, replace(STUCK, unit="0000:02:00.0")])
            publisher.report([replace(STUCK, reason="UnitFailed")])
            await until(lambda: counts(api) == [1, 1, 1])

    asyncio.run(main())


def test_however_much_happens_there_are_few_events(api: ApiServer, tmp_path: Path) -> None:
    clock = Clock()
    many = [replace(STUCK, unit=f"0000:{bus:02x}:00.0") for bus in range(100)]

    async def main() -> None:
        async with telling(api, tmp_path, clock) as publisher:
            for _ in range(10):
                publisher.report(many)
                clock.now_s += 6
                await asyncio.sleep(0.02)
            await until(lambda: len(api.writes) >= 25)
            await asyncio.sleep(0.2)
            assert len(api.writes) <= 26
            clock.now_s += 300
            publisher.report([])
            await until(lambda: len(api.writes) >= 30)
            assert len(api.writes) <= 31

    asyncio.run(main())


def test_what_is_remembered_has_an_end(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with telling(api, tmp_path, Clock()) as publisher:
            publisher.report(replace(STUCK, unit=f"unit-{number}") for number in range(5000))
            await until(lambda: len(told(api)) >= 25)

    asyncio.run(main())


# Failures


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_server_that_cannot_now_is_told_later(
    api: ApiServer, tmp_path: Path, status: int
) -> None:
    api.fail(status, method="POST", times=3, retry_after_s=0)

    async def main() -> None:
        async with telling(api, tmp_path, Clock()) as publisher:
            publisher.report([STUCK])
            await until(lambda: told(api))
            await until(lambda: publisher.trouble is None)

    asyncio.run(main())
    assert len(api.asked("POST")) == 4


def test_an_event_that_the_server_refuses_is_not_tried_again_and_others_are_told(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.fail(403, method="POST")

    async def main() -> None:
        async with telling(api, tmp_path, Clock()) as publisher:
            publisher.report([STUCK, replace(STUCK, unit="0000:02:00.0")])
            await until(lambda: told(api))
            assert len(api.asked("POST")) == 2

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [r.getMessage().rpartition("; ")[2] for r in caplog.records] == ["not told: it hangs"]
