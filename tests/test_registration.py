"""A plugin stays registered, whatever becomes of kubelet, its directory and other agents."""

import asyncio
import random
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kata_gpu.publish.kubelet.registration import Pace, new_suffix
from tests import memory
from tests.bench.kubelet import KUBELET, build
from tests.kubelet.device_manager import DeviceManager, kubelet
from tests.kubelet.plugin_agent import RESOURCE, PluginAgent, agent, gpu, gpus

OURS = "kata-gpu-nvidia.com_pgpu-1.sock"


@pytest.fixture
def root() -> Iterator[Path]:
    """Make a folder with a short path, as a socket's must be."""
    with TemporaryDirectory(prefix="k-", dir=memory.folder()) as folder:
        yield Path(folder)


async def offered(manager: DeviceManager, count: int = 2) -> None:
    await manager.until(
        lambda: manager.is_running(RESOURCE) and manager.allocatable(RESOURCE) == count,
        f"{count} devices of {RESOURCE}",
    )


async def lost(manager: DeviceManager) -> None:
    await manager.until(lambda: manager.allocatable(RESOURCE) == 0, "the loss")


async def settled(manager: DeviceManager) -> int:
    """Return how many registrations there were, when there were no more for a while."""
    count = -1
    while count != len(manager.registrations):
        count = len(manager.registrations)
        await asyncio.sleep(1.5)
    return count


def with_kubelet(
    root: Path,
    story: Callable[[DeviceManager, PluginAgent], Awaitable[None]],
    *,
    by_socket: bool = False,
) -> None:
    """Let *story* begin with an agent that is registered, and two devices of it."""

    async def main() -> None:
        async with kubelet(root, by_socket=by_socket) as manager, agent(root, *gpus(2)) as ours:
            await offered(manager)
            await story(manager, ours)

    asyncio.run(main())


# One agent


def test_a_plugin_registers_and_is_listed(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        assert manager.registrations == [OURS]
        assert manager.capacity(RESOURCE) == 2
        await manager.until(ours.is_registered)
        (state,) = ours.plugins.states
        assert (state.resource, state.count, state.problem) == (RESOURCE, 1, None)

    with_kubelet(root, story)


def test_a_plugin_that_is_there_first_waits_for_kubelet(root: Path) -> None:
    async def main() -> None:
        (root / "device-plugins").mkdir()
        async with agent(root, *gpus(2)) as ours:
            manager = DeviceManager(root)
            await manager.until(lambda: "kubelet does not serve" in ours.problem)
            async with kubelet(root) as manager:
                await offered(manager)

    asyncio.run(main())


def test_a_plugin_waits_for_kubelets_directory(root: Path) -> None:
    async def main() -> None:
        async with agent(root, *gpus(2)) as ours:
            manager = DeviceManager(root)
            await manager.until(lambda: "there is no such folder" in ours.problem)
            assert "kubernetes.kubelet_directory" in ours.problem
            assert not (root / "device-plugins").exists()
            async with kubelet(root) as manager:
                await offered(manager)

    asyncio.run(main())


def test_a_hint_is_enough_where_the_poll_is_slow(root: Path) -> None:
    async def main() -> None:
        (root / "device-plugins").mkdir()
        async with agent(root, *gpus(2), pace=Pace(poll_s=3600)) as ours:
            manager = DeviceManager(root)
            await manager.until(lambda: "kubelet does not serve" in ours.problem)
            async with kubelet(root) as manager:
                ours.plugins.hear()
                await offered(manager)

    asyncio.run(main())


def test_a_kubelet_that_starts_again_is_registered_with_again(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        for number in range(2, 5):
            await manager.restart()
            assert manager.allocatable(RESOURCE) == 0
            await offered(manager)
            assert len(manager.registrations) == number
        await manager.until(ours.is_registered)

    with_kubelet(root, story)


def test_a_killed_kubelet_leaves_a_socket_that_nobody_answers_on(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        await manager.stop(leaving_socket=True)
        await manager.until(lambda: "cannot register nvidia.com/pgpu at" in ours.problem)
        await manager.start()
        await offered(manager)

    with_kubelet(root, story)


def test_a_new_socket_of_kubelets_is_reason_enough_to_register(root: Path) -> None:
    async def story(_first: DeviceManager, _ours: PluginAgent) -> None:
        second = DeviceManager(root)  # while the first one hangs, and keeps its connections
        await second.start(wipes=False)
        await offered(second)
        await second.stop()

    with_kubelet(root, story)


def test_a_kubelet_that_is_gone_for_long_is_waited_for(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        await manager.stop()
        await manager.until(lambda: "kubelet does not serve" in ours.problem)
        assert not ours.is_registered()
        await manager.start()
        await offered(manager)

    with_kubelet(root, story)


def test_a_socket_that_somebody_removed_is_served_anew(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        (manager.directory / OURS).unlink()
        await lost(manager)
        await offered(manager)
        assert (manager.directory / OURS).is_socket()

    with_kubelet(root, story)


def test_a_directory_that_was_replaced_is_moved_into(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        manager.directory.rename(root / "old")
        await manager.stop()
        shutil.rmtree(root / "old")
        await manager.start()
        await offered(manager)
        assert (manager.directory / OURS).is_socket()

    with_kubelet(root, story)


def test_a_stream_that_ends_has_it_register_again(root: Path) -> None:
    async def story(manager: DeviceManager, _ours: PluginAgent) -> None:
        await manager.forget(RESOURCE)
        await lost(manager)
        await offered(manager)
        assert manager.registrations == [OURS, OURS]

    with_kubelet(root, story)


def test_a_kubelet_that_never_asks_for_the_list_is_registered_with_again(root: Path) -> None:
    async def story(manager: DeviceManager, ours: PluginAgent) -> None:
        manager.drops_next = True
        await manager.forget(RESOURCE)
        await manager.until(lambda: len(manager.registrations) == 2)
        await offered(manager)
        assert manager.registrations == [OURS, OURS, OURS]

    with_kubelet(root, story)


@pytest.mark.parametrize("resource", ["gpu", "kubernetes.io/gpu", "requests.nvidia.com/gpu"])
def test_a_name_that_kubelet_refuses_is_told_and_tried_on(root: Path, resource: str) -> None:
    async def main() -> None:
        async with (
            kubelet(root) as manager,
            agent(root, gpu(0, resource=resource), gpu(1)) as ours,
        ):
            await offered(manager, 1)
            await manager.until(lambda: "is invalid" in ours.problem)
            assert resource in ours.problem

    asyncio.run(main())


def test_a_path_that_is_too_long_is_told(root: Path) -> None:
    long = root / ("x" * 100)
    (long / "device-plugins").mkdir(parents=True)

    async def main() -> None:
        async with agent(long, *gpus(1)) as ours:
            await DeviceManager(root).until(lambda: "choose a shorter" in ours.problem)

    asyncio.run(main())


def test_the_socket_is_gone_with_the_agent(root: Path) -> None:
    async def main() -> None:
        async with kubelet(root) as manager:
            async with agent(root, *gpus(2)):
                await offered(manager)
            assert not (manager.directory / OURS).exists()
            await lost(manager)
            assert manager.capacity(RESOURCE) == 2

    asyncio.run(main())


def test_an_agent_ends_though_a_folder_has_taken_the_place_of_its_socket(root: Path) -> None:
    async def main() -> None:
        async with kubelet(root) as manager, agent(root, *gpus(2)) as ours:
            await offered(manager)
            socket_path = manager.directory / OURS
            socket_path.unlink()
            socket_path.mkdir()
            async with asyncio.timeout(5):
                await ours.plugins.end()
            socket_path.rmdir()

    asyncio.run(main())


# Agents that were killed


def test_what_a_killed_agent_left_is_removed_and_nothing_else(root: Path) -> None:
    async def main() -> None:
        async with kubelet(root) as manager:
            for name in ("kata-gpu-nvidia.com_pgpu-0.sock", "nvidia.com_pgpu-0.sock"):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                    dead.bind(str(manager.directory / name))
            async with agent(root, *gpus(2), suffix="1"):
                await offered(manager)
                assert not (manager.directory / "kata-gpu-nvidia.com_pgpu-0.sock").exists()
                assert (manager.directory / "nvidia.com_pgpu-0.sock").is_socket()

    asyncio.run(main())


@pytest.mark.parametrize("by_socket", [False, True], ids=["by-name", "by-socket"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_in_whatever_order_the_devices_are_there_in_the_end(
    root: Path, seed: int, *, by_socket: bool
) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same at each run

    async def main() -> None:
        async with (
            kubelet(root, by_socket=by_socket) as manager,
            agent(root, *gpus(2), suffix="1") as ours,
        ):
            for _ in range(8):
                match chance.randrange(5):
                    case 0:
                        await manager.restart()
                    case 1:
                        await manager.stop(leaving_socket=True)
                        await manager.start()
                    case 2:
                        (manager.directory / OURS).unlink(missing_ok=True)
                    case 3 if manager.is_running(RESOURCE):
                        await manager.forget(RESOURCE)
                    case _:
                        ours.has(gpu(0))
                        ours.has(*gpus(2))
                await asyncio.sleep(chance.uniform(0, 0.3))
            await manager.until(lambda: manager.endpoint(RESOURCE) == OURS, "our registration")
            await settled(manager)
            await offered(manager)
            assert manager.endpoint(RESOURCE) == OURS
            await manager.admit("pod", "main", RESOURCE, 2)

    asyncio.run(main())


def test_an_agent_takes_the_place_of_one_that_was_killed(root: Path) -> None:
    build(root, 20)
    argv = (sys.executable, "-m", "kata_gpu", "run", "--root", str(root))

    async def main() -> None:
        async with kubelet(root / KUBELET) as manager:
            for _ in range(2):
                process = await asyncio.create_subprocess_exec(
                    *argv, stderr=asyncio.subprocess.DEVNULL
                )
                await offered(manager, 8)
                process.kill()
                await process.wait()
                await lost(manager)
            sockets_left = list(manager.directory.glob("kata-gpu-*"))
            assert len(sockets_left) == 1  # of the second one, which removed the first one's
            assert manager.capacity(RESOURCE) == 8

    asyncio.run(main())


def test_suffixes_sort_by_the_time_at_which_they_were_made() -> None:
    made = []
    for _ in range(20):
        made.append(new_suffix())
        time.sleep(0.0001)
    assert made == sorted(set(made))
    assert {len(suffix) for suffix in made} == {12}
