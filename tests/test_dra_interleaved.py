"""Whatever two agents are asked for, in whatever order, and whenever they die: one owner each."""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import hypothesis.strategies as st
from hypothesis import given, settings

from kata_gpu.errors import KataGpuError
from kata_gpu.publish.kubelet.checkpoint import Checkpoint
from kata_gpu.publish.kubelet.prepared import PreparedClaim, Progress
from kata_gpu.publish.kubelet.preparing import Patience, Preparer
from tests import memory
from tests.dra_node import DEADLINE_S, Node, Turns, device

CLAIMS: Final = {
    "one": ("0000-01-00-0",),
    "two": ("0000-02-00-0",),
    "both": ("0000-01-00-0", "0000-02-00-0"),
    "rival": ("0000-02-00-0", "0000-03-00-0"),
}
UNITS: Final = ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0")

Step = tuple[Literal["prepare", "unprepare", "kill", "pause", "hang", "break"], int, str]
"""What is done, by which agent, and to which claim."""

STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(["prepare", "prepare", "unprepare", "kill", "pause", "hang", "break"]),
        st.integers(0, 1),
        st.sampled_from(sorted(CLAIMS)),
    ),
    max_size=14,
)


class Play:
    """Two agents of one node, and what they were asked for."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.names = {name: node.named(name) for name in CLAIMS}
        self.tasks: list[asyncio.Task[Any]] = []
        self._numbers = itertools.count()
        self._agents: list[tuple[AsyncExitStack, Preparer]] = []
        self.checkpoint: Checkpoint

    async def begin(self, at: int) -> None:
        """Let an agent begin; the last that began sees to the turns."""
        stack = AsyncExitStack()
        patience = Patience(call_s=DEADLINE_S, settle_s=0)
        running = self.node.preparer(f"n{next(self._numbers)}", patience=patience)
        preparer, self.checkpoint = await stack.enter_async_context(running)
        self._agents[at : at + 1] = [(stack, preparer)]

    async def do(self, step: Step) -> None:
        verb, at, claim = step
        preparer = self._agents[at][1]
        match verb:
            case "prepare":
                self.tasks.append(asyncio.create_task(preparer.prepare(self.names[claim])))
            case "unprepare":
                self.tasks.append(asyncio.create_task(preparer.unprepare(self.names[claim])))
            case "kill":
                await self._agents[at][0].aclose()
                await self.begin(at)
            case "pause":
                await asyncio.sleep(0.002)
            case "hang":
                self.node.turns.gate.clear()
            case "break":
                self.node.turns.broken ^= {UNITS[at]}
        await asyncio.sleep(0)
        self.check()

    def check(self) -> None:
        """See that no unit has two owners."""
        units = [unit for claim in self.checkpoint.claims().values() for unit in claim.units]
        assert len(units) == len(set(units))

    async def settle(self) -> None:
        """Let everything that hangs go on, and see what came of it."""
        self.node.turns.gate.set()
        for found in await asyncio.gather(*self.tasks, return_exceptions=True):
            assert found is None or isinstance(found, PreparedClaim | KataGpuError)
        self.check()

    async def end(self) -> None:
        """See that the last agent can set everything right."""
        self.node.turns.broken.clear()
        preparer = self._agents[0][1]
        for name in self.names.values():
            await preparer.unprepare(name)
        assert self.checkpoint.claims() == {}
        assert not [one.name for one in self.node.turns.devices.values() if one.is_ready]
        prepared = await asyncio.gather(
            *(preparer.prepare(self.names[n]) for n in ("one", "rival"))
        )
        assert all(one is not None and one.progress is Progress.COMPLETED for one in prepared)
        assert all(one.is_ready for one in self.node.turns.devices.values())
        for stack, _ in self._agents:
            await stack.aclose()


async def play(root: Path, steps: Sequence[Step]) -> None:
    devices = [device(n, on_claim=True) for n in (1, 2, 3)]
    node = Node(root, Turns({one.name: one for one in devices}))
    for claim, names in CLAIMS.items():
        node.claims.give(claim, *names)
    acts = Play(node)
    await acts.begin(0)
    await acts.begin(1)
    for step in steps:
        await acts.do(step)
    await acts.settle()
    await acts.end()


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_no_order_of_calls_and_deaths_gives_a_device_two_owners(steps: list[Step]) -> None:
    with TemporaryDirectory(prefix="kata-gpu-", dir=memory.folder()) as folder:
        asyncio.run(play(Path(folder), steps))
