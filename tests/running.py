"""A daemon that runs in the test's process, on a kernel and at hints that the test gives."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from kata_gpu.agent import daemon
from kata_gpu.agent.hints import Sources, Watches
from kata_gpu.errors import HostError
from kata_gpu.host.detour import Guardian
from kata_gpu.host.hint import Hint
from kata_gpu.observe import client
from kata_gpu.settings import blueprint
from kata_gpu.settings.agent import Settings
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import SETTINGS

QUICK: Final = replace(SETTINGS, settle_s=0.0, rescan_interval_s=30.0)
PATIENCE_S: Final = 10.0


class Events:
    """Hints that a test gives."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def fileno(self) -> int:
        return self._reading

    def drain(self) -> tuple[Hint, ...]:
        return (Hint(text=os.read(self._reading, 100).decode()),)

    def tell(self) -> None:
        os.write(self._writing, b"change")

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


@dataclass(frozen=True)
class Agent:
    """A running daemon, as the world around it sees it."""

    kernel: FakeKernel
    events: Events
    task: asyncio.Task[None]

    async def status(self) -> dict[str, Any]:
        socket_path = self.kernel.host.path(QUICK.socket)
        answer: dict[str, Any] = await asyncio.to_thread(client.get, socket_path, daemon.STATUS)
        return answer

    async def ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call what blocks while it is answered."""
        return await asyncio.to_thread(call, *arguments)

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a status that *holds*, and return it."""
        async with asyncio.timeout(PATIENCE_S):
            async for status in self.statuses():
                if holds(status):
                    return status
        raise AssertionError

    async def statuses(self, *, every_s: float = 0.01) -> AsyncIterator[dict[str, Any]]:
        """Ask again and again from the first turn on; the daemon's end is an error."""
        while not self.task.done():
            try:
                status = await self.status()
            except HostError:
                status = {"ready": False}
            if status["ready"]:
                yield status
            await asyncio.sleep(every_s)
        self.task.result()
        raise AssertionError("the daemon ended by itself")

    async def turn(self, number: int) -> dict[str, Any]:
        """Wait for the end of a turn."""
        return await self.until(lambda status: status["pass_number"] >= number)


Script = Callable[[Agent], Awaitable[None]]


def run(
    kernel: FakeKernel,
    events: Events,
    script: Script | None,
    settings: Settings = QUICK,
    *,
    watches: Watches | None = None,
    guardian: Guardian | None = None,
) -> None:
    """Let the daemon run, follow the script, and end it with SIGTERM; without a script, wait.

    Without *watches* it hears nothing but *events* and signals.
    """
    load = partial(blueprint.load, kernel.host.path(SETTINGS.blueprint))

    async def main() -> None:
        heard = sources(kernel, events, watches)
        daemon_run = daemon.run(kernel.host, settings, load, heard, guardian=guardian)
        task = asyncio.create_task(daemon_run)
        agent = Agent(kernel, events, task)
        if script is not None:
            await agent.turn(1)
            await script(agent)
            assert not task.done()
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, PATIENCE_S)

    asyncio.run(main())


def sources(kernel: FakeKernel, events: Events, watches: Watches | None) -> Sources:
    """Return what the daemon hears: the test's events, and the files of the host."""
    return Sources(
        uevents=events,
        watches=watches,
        configuration=(kernel.host.path(SETTINGS.blueprint),),
    )


def state_of(status: dict[str, Any], unit: str = nodes.GPU) -> str:
    return next((str(u["state"]) for u in status["units"] if u["id"] == unit), "gone")


def write_blueprint(kernel: FakeKernel, text: str) -> None:
    kernel.host.path(SETTINGS.blueprint).write_text(text)
