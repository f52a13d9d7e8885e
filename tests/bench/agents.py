"""The agents of a thousand nodes that start at once, and one API server.

Each has its own client, connections and watch, as on a node of its own, with eight GPUs and the
default pace. The server is that of the tests, which is Python and in the same process.
"""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Final

from kata_gpu.model.kubernetes import GPU_DRIVER
from kata_gpu.plan.kubernetes import slices, taints
from kata_gpu.publish.kubernetes import client
from kata_gpu.publish.kubernetes.pacing import Pacing
from kata_gpu.publish.kubernetes.resource_slices import SlicePublisher, SliceRules
from tests.api_server import ApiServer, api_server
from tests.kubernetes_devices import gpu

_NODES: Final = 1000
_GPUS: Final = tuple(gpu(bus) for bus in range(1, 9))
_RULES: Final = SliceRules(settle=taints.settle, plan=slices.plan, differences=slices.differences)
_SPREAD_S: Final = 30
_STEADY_S: Final = 30
_PATIENCE_S: Final = 300.0


def main() -> None:
    """Print how the requests are spread, and what is written once all is said."""
    with api_server() as api, tempfile.TemporaryDirectory(prefix="kata-gpu-bench-") as folder:
        for number in range(_NODES):
            api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": _name(number)}})
        asyncio.run(_measure(api, api.kubeconfig(Path(folder) / "kubeconfig")))


async def _measure(api: ApiServer, kubeconfig: Path) -> None:
    async with AsyncExitStack() as stack:
        publishers = [await _publisher(stack, number, kubeconfig) for number in range(_NODES)]
        started_s = time.perf_counter()
        tasks = [asyncio.create_task(publisher.run()) for publisher in publishers]
        for publisher in publishers:
            publisher.update(_GPUS)
        per_second = await _until_all_is_said(api, started_s)
        took_s = time.perf_counter() - started_s
        print(f"{_NODES} agents, all slices there after {took_s:.1f} s (spread: {_SPREAD_S} s)")
        print(f"requests {sum(per_second)}, of them {len(api.writes)} writes")
        print(f"most requests in a second: {max(per_second)}; by seconds: {per_second}")
        before = len(api.requests), len(api.writes)
        await asyncio.sleep(_STEADY_S)
        asked, written = len(api.requests) - before[0], len(api.writes) - before[1]
        print(f"then, in {_STEADY_S} s: {asked} requests, of them {written} writes")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _publisher(stack: AsyncExitStack, number: int, kubeconfig: Path) -> SlicePublisher:
    connecting = client.connected(str(kubeconfig), agent="kata-gpu/bench")
    connected = await stack.enter_async_context(connecting)
    return SlicePublisher(connected, GPU_DRIVER, _name(number), _RULES, Pacing())


async def _until_all_is_said(api: ApiServer, started_s: float) -> list[int]:
    counts = [0]
    while len(api.objects("ResourceSlice")) < _NODES:
        await asyncio.sleep(1.0)
        counts.append(len(api.requests))
        if time.perf_counter() - started_s > _PATIENCE_S:
            raise TimeoutError(f"{len(api.objects('ResourceSlice'))} of {_NODES} slices")
    return [after - before for before, after in pairwise(counts)]


def _name(number: int) -> str:
    return f"node-{number}"


if __name__ == "__main__":
    main()
