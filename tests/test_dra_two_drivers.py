"""A unit that one driver has prepared is not prepared by the other, whatever has it by then."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HeldError
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.publish.kubelet import claim_changes
from kata_gpu.publish.kubelet.checkpoint import Checkpoint, CheckpointError
from kata_gpu.publish.kubelet.dra import DraDriver
from kata_gpu.publish.kubelet.prepared import (
    ClaimName,
    Claims,
    PreparedClaim,
    PreparedDevice,
    Progress,
)
from kata_gpu.publish.kubelet.preparing import Patience
from tests.dra_node import BOOT, PATIENCE, Node, Turns, device, registered, switch, until
from tests.kubelet.claims import POOL, allocated
from tests.kubelet.dra_manager import DraManager, PrepareError

SWITCH: Final = "0000-03-00-0"
SWITCH_UNIT: Final = "0000:03:00.0"
BOARD_UNITS: Final = ("0000:01:00.0", SWITCH_UNIT)


@pytest.fixture
def node(short_path: Path) -> Node:
    """A GPU and an NVSwitch, and a device of the GPUs' driver that has both.

    A node has the switch's unit in one of them at a time; its blueprint may have changed.
    """
    board = device(1, id="board", name="board", units=BOARD_UNITS, is_bundle=True)
    node = Node(short_path, Turns({one.name: one for one in (switch(3), board)}))
    node.claims.give("board", "board")
    node.claims.put("switch", allocated(SWITCH, driver=FABRIC_DRIVER))
    return node


@asynccontextmanager
async def running(
    node: Node, patience: Patience = PATIENCE
) -> AsyncIterator[tuple[dict[str, DraDriver], DraManager]]:
    """Run both drivers of one agent, and kubelet."""
    settings = replace(node.settings(), patience=patience)
    drivers = {
        name: DraDriver(replace(settings, driver=name), node.agent)
        for name in (GPU_DRIVER, FABRIC_DRIVER)
    }
    gpu, fabric = drivers.values()
    async with gpu.serve(), fabric.serve(), node.kubelet().run() as kubelet:
        await registered(kubelet, 2)
        yield drivers, kubelet


@pytest.mark.parametrize("first", ["board", "switch"])
def test_a_unit_that_a_claim_of_one_driver_has_is_refused_by_the_other(
    node: Node, first: str
) -> None:
    second = "switch" if first == "board" else "board"
    uid = node.claims.objects[first]["metadata"]["uid"]

    async def main() -> None:
        async with running(node) as (drivers, kubelet):
            await kubelet.start_pod("first", first)
            with pytest.raises(PrepareError, match=f"cannot prepare {SWITCH_UNIT}: .*{uid}"):
                await kubelet.start_pod("second", second)
            assert sum(len(driver.claims()) for driver in drivers.values()) == 1

    asyncio.run(main())


def test_who_waits_for_a_unit_of_the_other_driver_gets_it_when_it_is_free(node: Node) -> None:
    async def main() -> None:
        async with running(node, Patience(call_s=20, settle_s=20)) as (_, kubelet):
            await kubelet.start_pod("old", "switch")
            starting = asyncio.create_task(kubelet.start_pod("new", "board"))
            await until(lambda: node.claims.reads == 2, "the second claim waits")
            await kubelet.stop_pod("old")
            assert await starting == [
                "nvidia.com/pgpu=0000:01:00.0",
                f"nvidia.com/pgpu={SWITCH_UNIT}",
            ]

    asyncio.run(main())


def test_a_claim_may_have_a_unit_through_both_of_its_drivers(node: Node) -> None:
    node.claims.put("both", allocated("board"), allocated(SWITCH, driver=FABRIC_DRIVER))

    async def main() -> None:
        async with running(node) as (drivers, kubelet):
            await kubelet.start_pod("pod", "both")
            assert all(len(driver.claims()) == 1 for driver in drivers.values())

    asyncio.run(main())


# The checkpoints of two drivers


def prepared(uid: str) -> PreparedClaim:
    return PreparedClaim(
        claim=ClaimName(namespace="tenants", name=f"claim-{uid}", uid=uid),
        progress=Progress.STARTED,
        owner="agent-a",
        is_brought=False,
        devices=(
            PreparedDevice(
                requests=("one",), pool=POOL, device=SWITCH, units=(SWITCH_UNIT,), cdi_names=()
            ),
        ),
    )


def two(root: Path) -> tuple[Checkpoint, Checkpoint]:
    """Return the checkpoint of each driver, as an agent has them."""
    gpu, fabric = (root / name / "checkpoint.json" for name in ("gpu", "fabric"))
    for path in (gpu, fabric):
        path.parent.mkdir(exist_ok=True)
    return (
        Checkpoint(gpu, boot_id=BOOT, others=[Checkpoint(fabric, boot_id=BOOT)]),
        Checkpoint(fabric, boot_id=BOOT, others=[Checkpoint(gpu, boot_id=BOOT)]),
    )


def slowly(change: Callable[[Claims], Claims]) -> Callable[[Claims], Claims]:
    """Return a change that is long between what it looks at and what it writes."""

    def changed(claims: Claims) -> Claims:
        found = change(claims)
        time.sleep(0.05)
        return found

    return changed


def test_of_two_drivers_that_prepare_a_unit_at_once_one_does(tmp_path: Path) -> None:
    both = two(tmp_path)

    async def main() -> None:
        adding = [
            checkpoint.update(slowly(claim_changes.adding(prepared(uid), checkpoint.elsewhere)))
            for checkpoint, uid in zip(both, ("u-1", "u-2"), strict=True)
        ]
        found = await asyncio.gather(*adding, return_exceptions=True)
        assert [type(one) for one in found if isinstance(one, Exception)] == [HeldError]
        assert sum(len(checkpoint.claims()) for checkpoint in both) == 1
        for checkpoint in both:
            await checkpoint.close()

    asyncio.run(main())


def test_nothing_is_prepared_while_nobody_can_say_what_the_other_driver_has(tmp_path: Path) -> None:
    gpu, fabric = two(tmp_path)
    fabric.path.write_text("{")

    async def main() -> None:
        with pytest.raises(CheckpointError, match=str(fabric.path)):
            await gpu.update(claim_changes.adding(prepared("u-1"), gpu.elsewhere))
        assert gpu.claims() == {}
        await gpu.close()

    asyncio.run(main())


def test_a_driver_that_was_never_served_here_gets_no_folder(tmp_path: Path) -> None:
    gpu, fabric = two(tmp_path)
    fabric.path.parent.rmdir()

    async def main() -> None:
        await gpu.update(claim_changes.adding(prepared("u-1"), gpu.elsewhere))
        await gpu.close()

    asyncio.run(main())
    assert not fabric.path.parent.exists()
