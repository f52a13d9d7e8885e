"""A socket is served from a moment to another, whatever happens between them."""

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.protos import pod_resources_v1_pb2 as pods

SERVICE: Final = sockets.Service(pods, "PodResourcesLister", {})


@pytest.mark.parametrize("steps", range(8))
def test_one_that_ends_while_it_starts_leaves_nothing(short_path: Path, steps: int) -> None:
    path = short_path / "s.sock"
    complaints: list[dict[str, Any]] = []

    async def serve() -> None:
        async with sockets.serve(path, SERVICE):
            await asyncio.sleep(60)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        serving = asyncio.create_task(serve())
        for _ in range(steps):
            await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not path.exists()
        await asyncio.sleep(0.1)  # for what grpc does by itself

    asyncio.run(main())
    assert complaints == []
