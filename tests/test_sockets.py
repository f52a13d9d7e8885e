"""A socket is served from a moment to another, whatever happens between them."""

import asyncio
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import listeners
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


def test_a_socket_whose_place_is_taken_is_told(short_path: Path) -> None:
    path = short_path / "s.sock"
    path.mkdir()

    async def main() -> None:
        with pytest.raises(HostError, match=r"cannot serve on .*: .*Is a directory"):
            async with sockets.serve(path, SERVICE):
                pass

    asyncio.run(main())
    assert path.is_dir()


def test_a_link_in_place_of_a_socket_is_not_followed(short_path: Path) -> None:
    victim, path = short_path / "victim", short_path / "s.sock"
    victim.touch(mode=0o644)
    path.symlink_to(victim)
    with pytest.raises(HostError, match="somebody put something else there"):
        listeners.restrict(path, 0o600)
    assert victim.stat().st_mode & 0o777 == 0o644


SETTINGS: Final = b"\0\0\0\4\0\0\0\0\0"
GOAWAY: Final = b"\0\0\x08\7\0\0\0\0\0" + bytes(8)


def test_a_peer_that_is_about_to_end_is_not_asked_again_and_again(short_path: Path) -> None:
    """It says so and does not hang up: grpc would ask until the deadline, with 400 MiB a second."""
    path = short_path / "s.sock"

    async def main() -> None:
        client = sockets.Client(path)
        request = pods.ListPodResourcesRequest()
        asking = client.ask(pods, "PodResourcesLister.List", request, timeout_s=1)
        asked = asyncio.create_task(asking)
        loop = asyncio.get_running_loop()
        peer, _ = await loop.sock_accept(listening)
        with peer:
            await loop.sock_sendall(peer, SETTINGS + GOAWAY)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await client.close()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        asyncio.run(main())


SWAP: Final = """
import os, stat, sys
victim, link, path = sys.argv[1:]
print(flush=True)
while True:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.symlink(victim, link)
            os.rename(link, path)
    except OSError:
        pass
"""


def test_a_socket_that_is_swapped_as_soon_as_it_is_made_leads_nowhere(short_path: Path) -> None:
    victim, path = short_path / "victim", short_path / "s.sock"
    victim.touch(mode=0o644)

    async def main() -> None:
        for _ in range(60):
            with suppress(HostError):
                async with sockets.serve(path, SERVICE):
                    pass
            assert victim.stat().st_mode & 0o777 == 0o644

    argv = [sys.executable, "-c", SWAP, *map(str, (victim, short_path / "link", path))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        before = len(list(Path("/proc/self/fd").iterdir()))
        try:
            asyncio.run(main())
        finally:
            swapper.kill()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 5  # grpc's own
