"""Claims of devices that are on VFIO already, prepared and unprepared by the DRA driver.

As kubelet calls it, over its socket, and without gRPC; the API server answers at once. Each is
timed on a file system in memory and on one on a disk, which has to have written a claim before
it is answered. Kubelet's part of a call is Python here, and in the figures.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from kata_gpu.model.kubernetes import GPU_DRIVER
from kata_gpu.publish.kubelet.protos import dra_v1_pb2 as wire
from tests import memory
from tests.dra_node import Node, Turns, device
from tests.kubelet.claims import NAMESPACE

_GPUS: Final = 8
_CLAIMS: Final = 300
_TARGET_MS: Final = 1
_TIMES: Final = ("prepare", "prepare again", "unprepare")

Ask = Callable[[str], Awaitable[Any]]
"""Asks for the claim of a name."""


def main() -> None:
    """Print the median and the 99th percentile of each call."""
    print(f"{_CLAIMS} claims, one after the other; target: prepare and unprepare ≤ {_TARGET_MS} ms")
    for place, folder in (("in memory", memory.folder()), ("on disk", None)):
        with tempfile.TemporaryDirectory(prefix="kata-gpu-bench-", dir=folder) as root:
            asyncio.run(_over_grpc(Path(root) / "a", f"{place}, over gRPC"))
            asyncio.run(_without_grpc(Path(root) / "b", f"{place}, without"))


async def _over_grpc(root: Path, title: str) -> None:
    node = _node(root)
    async with node.running() as (_, kubelet):
        client = kubelet.newest(GPU_DRIVER).client

        def asking(verb: str) -> Ask:
            request = getattr(wire, f"Node{verb}ResourcesRequest")

            async def ask(name: str) -> None:
                uid = node.named(name).uid
                claims = [wire.Claim(namespace=NAMESPACE, name=name, uid=uid)]
                method = f"DRAPlugin.Node{verb}Resources"
                answer = await client.ask(wire, method, request(claims=claims), timeout_s=30)
                if answer.claims[uid].error:
                    raise RuntimeError(answer.claims[uid].error)

            return ask

        _tell(title, await _timed(asking("Prepare"), asking("Unprepare")))


async def _without_grpc(root: Path, title: str) -> None:
    node = _node(root)
    async with node.preparer() as (preparer, _):
        times = await _timed(
            lambda name: preparer.prepare(node.named(name)),
            lambda name: preparer.unprepare(node.named(name)),
        )
        _tell(title, times)


def _node(root: Path) -> Node:
    devices = [device(number) for number in range(1, _GPUS + 1)]
    node = Node(root, Turns({one.name: one for one in devices}))
    for number in range(_CLAIMS):
        node.claims.give(f"claim-{number}", devices[number % _GPUS].name)
    return node


async def _timed(prepare: Ask, unprepare: Ask) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in _TIMES}
    for number in range(_CLAIMS):
        for name, ask in zip(_TIMES, (prepare, prepare, unprepare), strict=True):
            started = time.perf_counter()
            await ask(f"claim-{number}")
            times[name].append(time.perf_counter() - started)
    return times


def _tell(title: str, times: dict[str, list[float]]) -> None:
    print(title)
    for name, times_s in times.items():
        p99_s = statistics.quantiles(times_s, n=100)[-1]
        median_s = statistics.median(times_s)
        print(f"  {name:14} {median_s * 1000:6.2f} ms median {p99_s * 1000:7.2f} ms p99")
