"""Kubelet, the agent or both restart, die or overlap at any moment, and every claim ends well."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.errors import KataGpuError
from kata_gpu.model.kubernetes import GPU_DRIVER, Device
from kata_gpu.publish.kubelet.checkpoint import Change, Checkpoint
from kata_gpu.publish.kubelet.dra import DraDriver
from kata_gpu.publish.kubelet.news import News
from kata_gpu.publish.kubelet.prepared import Claims, Home, Progress
from kata_gpu.publish.kubelet.preparing import Agent, Patience, Preparer
from tests.dra_node import BOOT, PATIENCE, Node, Turns, device, registered, until, without_metadata
from tests.kubelet.claims import POOL
from tests.kubelet.dra_manager import PrepareError

LENT: Final = "0000-03-00-0"
UNITS: Final = frozenset({"0000:03:00.0"})
CDI: Final = ["nvidia.com/pgpu=0000:03:00.0"]


@pytest.fixture
def node(short_path: Path) -> Node:
    """One GPU on VFIO and one that is bound on claim; and a claim for the latter."""
    devices = (device(1), device(3, on_claim=True))
    made = Node(short_path, Turns({one.name: one for one in devices}))
    made.claims.give("one", LENT)
    return made


# Kubelet restarts


def test_a_kubelet_that_comes_later_finds_the_driver(node: Node) -> None:
    async def main() -> None:
        async with node.driver().serve():
            for _ in range(2):
                async with node.kubelet().run() as kubelet:
                    await registered(kubelet)

    asyncio.run(main())


def test_a_kubelet_that_restarts_while_a_claim_is_prepared_finds_the_work_done(node: Node) -> None:
    node.turns.gate.clear()

    async def main() -> None:
        async with node.driver().serve():
            async with node.kubelet().run() as kubelet:
                await registered(kubelet)
                starting = asyncio.create_task(kubelet.start_pod("pod", "one"))
                await until(lambda: node.turns.in_turn, "the device is being bound")
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            async with node.kubelet().run() as kubelet:
                await registered(kubelet)
                starting = asyncio.create_task(kubelet.start_pod("pod", "one"))
                await asyncio.sleep(0)
                node.turns.gate.set()
                assert await starting == CDI

    asyncio.run(main())
    assert node.turns.brought == [UNITS]


def test_a_kubelet_that_restarts_while_a_pod_runs_gets_the_same_answer(node: Node) -> None:
    async def main() -> None:
        async with node.driver().serve():
            async with node.kubelet().run() as kubelet:
                await registered(kubelet)
                assert await kubelet.start_pod("pod", "one") == CDI
            async with node.kubelet().run() as kubelet:
                await registered(kubelet)
                assert await kubelet.start_pod("pod", "one") == CDI * 2  # it appends
                await kubelet.stop_pod("pod")

    asyncio.run(main())
    assert (node.turns.brought, node.turns.let_go) == ([UNITS], [UNITS])


def test_a_kubelet_that_restarts_while_a_claim_is_unprepared_ends_it(node: Node) -> None:
    async def main() -> None:
        driver = node.driver()
        async with driver.serve():
            async with node.kubelet().run() as kubelet:
                await registered(kubelet)
                await kubelet.start_pod("pod", "one")
                stopping = asyncio.create_task(kubelet.stop_pod("pod"))
                await until(lambda: not driver.claims() or stopping.done(), "it is unprepared")
                stopping.cancel()
                await asyncio.gather(stopping, return_exceptions=True)
            async with node.kubelet().run() as kubelet:
                await registered(kubelet)
                await kubelet.stop_pod("pod")
                assert driver.claims() == {}

    asyncio.run(main())


# The agent restarts


@pytest.mark.parametrize("name", ["a", "b"], ids=["same pod", "new pod"])
def test_an_agent_that_comes_anew_knows_what_is_prepared(node: Node, name: str) -> None:
    async def main() -> None:
        async with node.kubelet().run() as kubelet:
            async with node.driver("a").serve():
                await registered(kubelet)
                await kubelet.start_pod("pod", "one")
            await registered(kubelet, plugins=0)
            with pytest.raises(PrepareError, match="not registered"):
                await kubelet.stop_pod("pod")
        reads = node.claims.reads
        driver = node.driver(name)
        assert driver.claimed_units() == UNITS  # before it serves: its first turn keeps them
        async with driver.serve(), node.kubelet().run() as kubelet:
            await registered(kubelet)
            assert await kubelet.start_pod("pod", "one") == CDI * 2
            await kubelet.stop_pod("pod")
            assert driver.claimed_units() == frozenset()
        assert node.claims.reads == reads

    asyncio.run(main())
    assert (node.turns.brought, node.turns.let_go) == ([UNITS], [UNITS])


@pytest.mark.parametrize("name", ["a", "b"], ids=["same pod", "new pod"])
def test_what_an_agent_left_half_prepared_is_undone_and_done_anew(node: Node, name: str) -> None:
    async def main() -> None:
        async with node.kubelet().run() as kubelet:
            await leave_half_prepared(node)
            node.turns.gate.set()
            driver = node.driver(name)
            assert driver.claimed_units() == UNITS
            async with driver.serve():
                await registered(kubelet)
                assert await kubelet.start_pod("pod", "one") == CDI

    asyncio.run(main())
    assert (node.turns.brought, node.turns.let_go) == ([UNITS, UNITS], [UNITS])


async def leave_half_prepared(node: Node) -> None:
    """Let an agent end while it prepares the claim."""
    node.turns.gate.clear()
    async with node.preparer("a") as (preparer, _):
        starting = asyncio.create_task(preparer.prepare(node.named("one")))
        await until(lambda: node.turns.in_turn, "the device is being bound")
        asyncio.get_running_loop().call_soon(starting.cancel)
        await asyncio.gather(starting, return_exceptions=True)


def test_what_an_agent_left_half_prepared_is_unprepared(node: Node) -> None:
    async def main() -> None:
        await leave_half_prepared(node)
        async with node.preparer("b") as (preparer, checkpoint):
            assert checkpoint.claims()[node.named("one").uid].progress is Progress.STARTED
            await preparer.unprepare(node.named("one"))
            assert checkpoint.claims() == {}

    asyncio.run(main())
    assert node.turns.let_go == [UNITS]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_half_prepared_claims_that_are_gone_are_cleaned_up(
    node: Node, *, is_replaced: bool
) -> None:
    async def main() -> None:
        await leave_half_prepared(node)
        driver = node.driver("b", clean_every_s=0.02)
        async with driver.serve():
            await until(lambda: node.claims.reads > 3, "it has looked")
            assert driver.claims()
            node.claims.delete("one")
            if is_replaced:
                node.claims.give("one", LENT)
            await until(lambda: not driver.claims(), "it is cleaned up")

    asyncio.run(main())
    assert node.turns.let_go == [UNITS]


def test_nothing_is_cleaned_up_while_the_api_server_cannot_say(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await leave_half_prepared(node)
        node.claims.is_down = True
        driver = node.driver("b", clean_every_s=0.02)
        async with driver.serve():
            await until(lambda: node.claims.reads > 3, "it has looked")
            assert driver.claims()

    asyncio.run(main())
    assert "cannot look for claims that are gone: cannot read the claim" in caplog.text


def test_a_boot_makes_all_that_was_prepared_void(node: Node) -> None:
    async def main() -> None:
        async with node.running() as (_, kubelet):
            await kubelet.start_pod("pod", "one")
        driver = node.driver(boot="another-boot")
        assert driver.claimed_units() == frozenset()
        async with driver.serve(), node.kubelet().run() as kubelet:
            await registered(kubelet)
            assert await kubelet.start_pod("pod", "one") == CDI * 2

    asyncio.run(main())
    assert node.turns.brought == [UNITS] * 2


# A rolling update: two agents are alive


def test_the_newest_agent_is_asked_and_the_other_takes_over_when_it_goes(node: Node) -> None:
    async def main() -> None:
        async with node.kubelet().run() as kubelet:
            async with node.driver("a").serve():
                await registered(kubelet)
                async with node.driver("b").serve():
                    await registered(kubelet, plugins=2)
                    assert kubelet.newest(GPU_DRIVER).endpoint.name == "dra-b.sock"
                    assert await kubelet.start_pod("pod", "one") == CDI
                await registered(kubelet, plugins=1)
                assert kubelet.newest(GPU_DRIVER).endpoint.name == "dra-a.sock"
                await kubelet.stop_pod("pod")
            await registered(kubelet, plugins=0)

    asyncio.run(main())
    assert (node.turns.brought, node.turns.let_go) == ([UNITS], [UNITS])


def test_what_the_old_agent_prepares_the_new_one_waits_for(node: Node) -> None:
    node.turns.gate.clear()
    claim = node.named("one")

    async def main() -> None:
        patience = Patience(call_s=20, settle_s=20)
        async with (
            node.preparer("a", patience=patience) as (old, _),
            node.preparer("b", patience=patience) as (new, checkpoint),
        ):
            first = asyncio.create_task(old.prepare(claim))
            await until(lambda: node.turns.in_turn, "the device is being bound")
            second = asyncio.create_task(new.prepare(claim))
            await asyncio.sleep(0)
            node.turns.gate.set()
            assert await first == await second == checkpoint.claims()[claim.uid]

    asyncio.run(main())
    assert node.turns.brought == [UNITS]


def test_what_the_old_agent_prepares_the_new_one_can_unprepare(node: Node) -> None:
    node.turns.gate.clear()
    claim = node.named("one")

    async def main() -> None:
        async with (
            node.preparer("a") as (old, _),
            node.preparer("b") as (new, checkpoint),
        ):
            first = asyncio.create_task(old.prepare(claim))
            await until(lambda: node.turns.in_turn, "the device is being bound")
            await new.unprepare(claim)
            node.turns.gate.set()
            with pytest.raises(KataGpuError, match="cannot prepare"):
                await first
            assert checkpoint.claims() == {}
            assert not node.turns.devices[LENT].is_ready

    asyncio.run(main())


def test_a_claim_that_the_new_agent_begins_anew_is_not_the_old_ones_to_complete_or_undo(
    node: Node,
) -> None:
    node.turns.gate.clear()
    claim = node.named("one")

    async def main() -> None:
        async with (
            node.preparer("a") as (old, _),
            node.preparer("b") as (new, checkpoint),
        ):
            first = asyncio.create_task(old.prepare(claim))
            await until(lambda: node.turns.in_turn == 1, "the old agent binds the device")
            await new.unprepare(claim)
            second = asyncio.create_task(new.prepare(claim))
            await until(lambda: node.turns.in_turn == 2, "the new agent binds it too")
            node.turns.gate.set()
            with pytest.raises(KataGpuError, match="another agent took it over"):
                await first
            assert await second == checkpoint.claims()[claim.uid]
            assert checkpoint.claims()[claim.uid].owner == "b"
            assert node.turns.devices[LENT].is_ready

    asyncio.run(main())


def test_two_agents_do_not_give_one_device_to_two_claims(node: Node) -> None:
    node.claims.give("two", LENT)

    async def main() -> list[Any]:
        async with (
            node.preparer("a") as (old, _),
            node.preparer("b") as (new, checkpoint),
        ):
            found = await asyncio.gather(
                old.prepare(node.named("one")),
                new.prepare(node.named("two")),
                return_exceptions=True,
            )
            assert len(checkpoint.claims()) == 1
            return list(found)

    lost = [one for one in asyncio.run(main()) if isinstance(one, Exception)]
    assert len(lost) == 1
    assert "prepared for claim" in str(lost[0])


def test_the_sockets_of_a_dead_agent_are_removed_and_those_of_a_living_one_not(
    node: Node,
) -> None:
    def names() -> set[str]:
        folders = (node.directory, node.root / "plugins_registry")
        return {path.name for folder in folders for path in folder.iterdir()}

    async def main() -> None:
        async with node.driver("alive").serve():
            dead = node.root / "plugins_registry" / f"{GPU_DRIVER}-dead-reg.sock"
            for path in (
                node.directory / "dra-dead.sock",
                dead,
                node.directory / "agent-dead.lock",
            ):
                path.touch()
            async with node.driver("new").serve():
                assert not {name for name in names() if "dead" in name}
                assert {"dra-alive.sock", f"{GPU_DRIVER}-alive-reg.sock"} < names()

    asyncio.run(main())
    assert not [name for name in names() if name.endswith(".sock")]


# The agent is killed


class Killed(BaseException):
    """The end of the process, which no handler sees."""


class Points:
    """Counts what an agent passes, and kills it at one of the points."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.passed: list[str] = []

    def __call__(self, point: str) -> None:
        if len(self.passed) == self.at:
            raise Killed
        self.passed.append(point)


class ToldCheckpoint(Checkpoint):
    """One that tells of each change before it is on disk, and when it is."""

    points: Points

    async def update(self, change: Change) -> Claims:
        self.points("before the checkpoint")
        after = await super().update(change)
        self.points("after the checkpoint")
        return after


async def act(node: Node, points: Points) -> None:
    """Let one agent prepare the claim and unprepare it, and tell of its points."""

    async def bring(units: frozenset[str]) -> Mapping[str, Device]:
        points("before bring")
        found = await node.turns.bring(units)
        points("after bring")
        return found

    async def let_go(units: frozenset[str]) -> None:
        points("before let go")
        await node.turns.give_back(units)
        points("after let go")

    home = Home(driver=GPU_DRIVER, pool=POOL, agent="a", directory=node.directory)
    checkpoint = ToldCheckpoint(home.checkpoint, boot_id=BOOT)
    checkpoint.points = points
    node.turns.claimed = lambda: units_of(checkpoint)
    agent = Agent(
        get_claim=node.claims.get, devices=lambda: node.turns.devices, bring=bring, let_go=let_go
    )
    preparer = Preparer(
        home,
        checkpoint,
        agent,
        news=News(),
        patience=PATIENCE,
        metadata=without_metadata(home),
    )
    claim = node.named("one")
    try:
        await preparer.prepare(claim)
        await preparer.unprepare(claim)
    finally:
        await preparer.close()
        await checkpoint.close()


def units_of(checkpoint: Checkpoint) -> frozenset[str]:
    return frozenset(u for claim in checkpoint.claims().values() for u in claim.units)


def kills(root: Path) -> Iterator[tuple[Node, str]]:
    """Yield a node for each point of an agent's work, whose agent was killed there."""
    for at in itertools.count():
        devices = (device(1), device(3, on_claim=True))
        node = Node(root / str(at), Turns({one.name: one for one in devices}))
        node.claims.give("one", LENT)
        points = Points(at)
        try:
            asyncio.run(act(node, points))
        except Killed:
            yield node, points.passed[-1] if points.passed else "the start"
        else:
            return


def prepares_again(node: Node) -> None:
    async def main() -> None:
        async with node.preparer("b") as (preparer, checkpoint):
            node.turns.turn()  # the agent's first
            prepared = await preparer.prepare(node.named("one"))
            assert prepared is not None
            assert prepared.devices[0].cdi_names == tuple(CDI)
            assert node.turns.devices[LENT].is_ready
            assert units_of(checkpoint) == UNITS

    asyncio.run(main())


def unprepares(node: Node) -> None:
    async def main() -> None:
        async with node.preparer("b") as (preparer, checkpoint):
            node.turns.turn()
            await preparer.unprepare(node.named("one"))
            assert checkpoint.claims() == {}
            assert not node.turns.devices[LENT].is_ready

    asyncio.run(main())


def prepares_another(node: Node) -> None:
    async def main() -> None:
        async with node.preparer("b") as (preparer, checkpoint):
            node.turns.turn()
            await preparer.unprepare(node.named("one"))
            node.claims.give("two", LENT)
            assert await preparer.prepare(node.named("two"))
            assert len(checkpoint.claims()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("mend", [prepares_again, unprepares, prepares_another])
def test_whenever_an_agent_is_killed_the_next_one_sets_it_right(
    short_path: Path, mend: Callable[[Node], None]
) -> None:
    points = []
    for node, point in kills(short_path):
        mend(node)
        points.append(point)
    assert points == [
        "the start",
        *("before the checkpoint", "after the checkpoint", "before bring", "after bring"),
        *("before the checkpoint", "after the checkpoint"),
        *("before the checkpoint", "after the checkpoint", "before let go"),
    ]


_VICTIM: Final = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.dra_node import Node, Turns, device

async def main(root):
    node = Node(root, Turns({"0000-03-00-0": device(3, on_claim=True)}))
    node.claims.give("one", "0000-03-00-0")
    node.turns.gate.clear()
    async with node.driver("victim").serve():
        await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""


def test_an_agent_that_is_killed_in_the_middle_is_followed_by_one_that_ends_it(
    node: Node,
) -> None:
    claim = node.named("one")

    async def main() -> None:
        async with node.kubelet().run() as kubelet:
            victim = subprocess.Popen([sys.executable, "-c", _VICTIM, str(node.root)])
            try:
                await registered(kubelet)
                starting = asyncio.create_task(kubelet.start_pod("pod", "one"))
                driver = node.driver("next")
                await until(lambda: claim.uid in driver.claims(), "it is begun")
            finally:
                victim.kill()
                victim.wait()
            with pytest.raises(PrepareError):
                await starting
            assert len(kubelet.plugins) == 1  # its sockets are still there
            async with driver.serve():
                await until(
                    lambda: (
                        [p.endpoint.name for p in kubelet.plugins.values()] == ["dra-next.sock"]
                    ),
                    "the dead one is forgotten",
                )
                assert await kubelet.start_pod("pod", "one") == CDI
                await kubelet.stop_pod("pod")
                assert driver.claims() == {}

    asyncio.run(main())
    assert node.turns.let_go == [UNITS, UNITS]


def test_a_second_agent_of_the_same_name_is_refused(node: Node) -> None:
    async def main() -> None:
        async with node.driver("a").serve():
            other: DraDriver = node.driver("a")
            with pytest.raises(KataGpuError, match=f"process {os.getpid()} holds"):
                async with other.serve():
                    pytest.fail("two serve by one name")

    asyncio.run(main())
