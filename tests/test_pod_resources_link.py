"""The path that Kata has leads to somebody who answers, whatever becomes of the agent."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import detour, listeners
from kata_gpu.host.detour import LOCK, Detour, Guardian
from kata_gpu.publish.kubelet.protos import pod_resources_v1_pb2 as api
from kata_gpu.publish.kubelet.sockets import Client
from tests.kubelet.pod_resources import PodResources, container, device
from tests.pods import PGPU, cdi_names, gpu_claim

PATIENCE_S: Final = 20.0
ROOT: Final = Path(__file__).parent.parent


@pytest.fixture
def way(short_path: Path) -> Detour:
    return Detour(
        root=Path("/"),
        link=str(short_path / "state/pod-resources.sock"),
        through=str(short_path / "pod-resources-00000001.sock"),
        around=str(short_path / "kubelet.sock"),
    )


@dataclass
class Agent:
    """A process of its own that leads the link through itself."""

    process: subprocess.Popen[str]
    guardian: int

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.communicate(timeout=PATIENCE_S)


@contextmanager
def agent(way: Detour, *flags: str) -> Iterator[Agent]:
    """Let an agent run until it is killed or stopped, at the latest to the end of the block."""
    argv = [sys.executable, "-m", "tests.detoured", way.link, way.through, way.around, *flags]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Agent(process, int(process.stdout.readline()))
        finally:
            process.kill()


@contextmanager
def listening(path: str) -> Iterator[None]:
    """Be somebody behind a path; whoever connects has reached one who lives."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4096)
        yield
    Path(path).unlink()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it does not come to hold"
        time.sleep(0.01)


def leads_to(way: Detour) -> str:
    return str(Path(way.link).readlink())


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, be it that nobody has waited for it yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


# Where it leads


def test_a_link_is_made_that_leads_to_kubelet(way: Detour) -> None:
    way.settle()
    assert leads_to(way) == way.around
    assert not way.is_open()


def test_it_leads_through_us_and_around_again(way: Detour) -> None:
    way.settle()
    way.open()
    way.open()
    assert (leads_to(way), way.is_open()) == (way.through, True)
    way.close()
    way.close()
    assert leads_to(way) == way.around
    assert set(Path(way.link).parent.iterdir()) == {Path(way.link), Path(f"{way.link}{LOCK}")}


def test_what_a_reboot_left_leads_to_kubelet_as_soon_as_an_agent_looks(way: Detour) -> None:
    way.settle()
    replace(way, through="/run/kata-gpu/pod-resources-of-before.sock").open()
    way.settle()
    assert leads_to(way) == way.around


def test_a_socket_that_nobody_serves_is_left(way: Detour) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(way.through)
    way.settle()
    way.open()
    replace(way, through="/another").settle()
    assert leads_to(way) == way.around


def test_another_agent_that_serves_stays(way: Detour) -> None:
    newer = replace(way, through=f"{way.through}.newer")
    way.settle()
    with listening(newer.through):
        newer.open()
        way.settle()
        way.close()
        assert leads_to(way) == newer.through


def test_kubelet_may_move(way: Detour) -> None:
    way.settle()
    moved = replace(way, around="/var/lib/k0s/kubelet/pod-resources/kubelet.sock")
    moved.settle()
    assert leads_to(way) == moved.around


def test_something_else_in_its_place_is_not_touched(way: Detour) -> None:
    Path(way.link).parent.mkdir()
    Path(way.link).write_text("mine")
    for change in (way.settle, way.open, way.close):
        with pytest.raises(HostError, match="it is no symbolic link; remove it"):
            change()
    assert Path(way.link).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(way: Detour) -> None:
    Path(way.link).parent.write_text("a file")
    with pytest.raises(HostError, match=r"cannot lead .*/pod-resources.sock to "):
        way.settle()


def test_a_lock_that_is_not_given_back_is_not_waited_for(way: Detour) -> None:
    way.settle()
    lock = os.open(f"{way.link}{LOCK}", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="Resource temporarily unavailable"):
            way.open()
    finally:
        os.close(lock)
    way.open()


def test_who_may_only_read_the_folder_locks_nothing(way: Detour) -> None:
    way.settle()
    folder = os.open(Path(way.link).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        way.open()
    finally:
        os.close(folder)
    assert way.is_open()
    assert Path(f"{way.link}{LOCK}").stat().st_mode & 0o777 == 0o600


def test_whoever_connects_while_it_changes_reaches_somebody(way: Detour) -> None:
    way.settle()
    stop = threading.Event()
    failures: list[OSError] = []
    reached = 0

    def connect() -> None:
        nonlocal reached
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as channel:
                try:
                    channel.connect(way.link)
                    reached += 1
                except OSError as error:
                    failures.append(error)

    with ExitStack() as stack:
        for path in (way.through, way.around):
            stack.enter_context(listening(path))
        thread = threading.Thread(target=connect)
        thread.start()
        for _ in range(100):
            way.open()
            way.close()
        stop.set()
        thread.join()
    assert [e for e in failures if not isinstance(e, BlockingIOError)] == []
    assert reached > 0


# How the agent ends


def test_after_a_kill_the_link_leads_to_kubelet(way: Detour) -> None:
    with listening(way.around), agent(way) as killed:
        assert leads_to(way) == way.through
        killed.kill()
        until(lambda: leads_to(way) == way.around)
        assert listeners.is_served(Path(way.link))
        until(lambda: is_gone(killed.guardian))
        assert not Path(way.through).exists()


def test_after_an_orderly_end_the_link_leads_to_kubelet(way: Detour) -> None:
    with agent(way) as ended:
        ended.stop()
        assert leads_to(way) == way.around
        assert is_gone(ended.guardian)


def test_the_guardian_goes_by_no_signal_that_is_meant_for_the_agent(way: Detour) -> None:
    with agent(way) as killed:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(killed.guardian, number)
        assert os.getpgid(killed.guardian) != os.getpgid(killed.process.pid)
        killed.kill()
        until(lambda: leads_to(way) == way.around)


def test_a_guardian_that_comes_late_takes_nothing_from_a_newer_agent(way: Detour) -> None:
    newer = replace(way, through=f"{way.through}.newer")
    with agent(way) as killed, agent(newer) as living:
        assert leads_to(way) == newer.through
        killed.kill()
        until(lambda: is_gone(killed.guardian))
        assert leads_to(way) == newer.through
        living.kill()
        until(lambda: leads_to(way) == way.around)


def test_a_guardian_that_was_held_up_finishes_later(way: Detour) -> None:
    with agent(way) as killed:
        os.kill(killed.guardian, signal.SIGSTOP)
        killed.kill()
        assert leads_to(way) == way.through
        os.kill(killed.guardian, signal.SIGCONT)
        until(lambda: leads_to(way) == way.around)


def test_where_both_are_killed_the_next_agent_mends_it(way: Detour) -> None:
    with agent(way) as killed:
        os.kill(killed.guardian, signal.SIGKILL)
        killed.kill()
        assert leads_to(way) == way.through
        replace(way, through="/next").settle()
        assert leads_to(way) == way.around


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_guardian_that_cannot_close_the_detour_is_not_waited_for(way: Detour) -> None:
    Path(way.link).mkdir(parents=True)
    guardian = Guardian(way)
    pid = guardian.start()
    try:
        guardian.stop()
        assert not is_gone(pid)
        Path(way.link).rmdir()
        until(lambda: not guardian.is_there())
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_agent_sees_that_its_guardian_is_gone(way: Detour) -> None:
    guardian = Guardian(way)
    pid = guardian.start()
    try:
        assert guardian.is_there()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not guardian.is_there())
    finally:
        guardian.stop()
    guardian.stop()


def test_the_guardian_is_known_by_its_name(way: Detour) -> None:
    with agent(way) as running:
        comm = Path(f"/proc/{running.guardian}/comm")
        until(lambda: comm.read_text() == "kata-gpu-guard\n")
        files = Path(f"/proc/{running.guardian}/fd")
        until(lambda: len(list(files.iterdir())) == 4)  # standard ones, and the pipe
        assert Path(f"/proc/{running.guardian}/cwd").readlink() == Path("/")


# Sockets of agents that were killed


def test_a_name_is_one_agents_own() -> None:
    assert len({detour.own_socket("/run/kata-gpu") for _ in range(100)}) == 100


def test_dead_sockets_are_swept_and_nothing_else(short_path: Path) -> None:
    live, dead = (detour.own_socket(str(short_path)) for _ in range(2))
    others = [short_path / "pod-resources-00000000.sock", short_path / "status.sock"]
    for path in others:
        path.write_text("no socket")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(dead)
    with listening(live):
        assert detour.sweep(short_path) == [Path(dead)]
        assert Path(live).exists()
    assert all(path.exists() for path in others)
    assert detour.sweep(short_path / "missing") == []


# Kata asks


def test_kata_is_answered_by_kubelet_as_soon_as_the_agent_is_killed(way: Detour) -> None:
    async def ask() -> list[str]:
        client = Client(Path(way.link))
        try:
            request = api.GetPodResourcesRequest(pod_name="pod", pod_namespace="default")
            method = "PodResourcesLister.Get"
            raw = await client.forward(api, method, request, timeout_s=PATIENCE_S)
        finally:
            await client.close()
        return cdi_names(api.GetPodResourcesResponse.FromString(raw).pod_resources)

    async def main() -> None:
        kubelet = PodResources()
        part = container(
            "main", devices=device(PGPU, "0000:01:00.0"), claims=[gpu_claim("0000-41-00-0")]
        )
        kubelet.has("default", "pod", part)
        async with kubelet.serve(Path(way.around)):
            with agent(way, "--grpc") as killed:
                assert await ask() == [f"{PGPU}=0000:01:00.0", f"{PGPU}=0000:41:00.0"]
                await asyncio.to_thread(killed.kill)
                await asyncio.to_thread(until, lambda: leads_to(way) == way.around)
                assert await ask() == [f"{PGPU}=0000:01:00.0"]

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE_S))
