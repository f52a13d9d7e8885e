"""Kubelet gets the claims of a pod prepared by a DRA driver, whatever restarts meanwhile."""

import asyncio
from pathlib import Path
from typing import Final

import pytest

from tests.dra_node import Node, Turns, device

FIRST: Final = "0000-01-00-0"
SECOND: Final = "0000-02-00-0"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Two GPUs on VFIO and one bound on claim."""
    devices = (device(1), device(2), device(3, on_claim=True))
    return Node(tmp_path, Turns({one.name: one for one in devices}))


def test_a_pod_gets_the_cdi_name_of_the_device_that_its_claim_has(node: Node) -> None:
    uid = node.claims.give("one", FIRST)

    async def main() -> list[str]:
        async with node.running() as (driver, kubelet):
            found = await kubelet.start_pod("pod", "one")
            assert driver.claimed_units() == {"0000:01:00.0"}
            assert driver.claims()[uid].claim.name == "one"
            return found

    assert asyncio.run(main()) == ["nvidia.com/pgpu=0000:01:00.0"]
    assert node.turns.brought == []
