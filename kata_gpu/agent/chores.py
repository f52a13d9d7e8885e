"""Work that goes on until the agent ends, and is begun again after each failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from kata_gpu.errors import KataGpuError

log = logging.getLogger(__name__)

_RETRY_S: Final = 10.0


class Chores:
    """One task for each name; for the event loop's thread."""

    def __init__(self) -> None:
        self.troubles: dict[str, str] = {}
        """Why what is to be done is not, by its name."""

        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_ending = False

    def __contains__(self, what: str) -> bool:
        return what in self._tasks

    def begin(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have *work* done from now on; once for each name, and not while they end."""
        if what not in self._tasks and not self._is_ending:
            self._tasks[what] = asyncio.create_task(self._keep(what, work), name=what)

    async def go_on(self) -> None:
        """Wait until the chore that calls this is ended: it works."""
        task = asyncio.current_task()
        if task is not None:
            self.troubles.pop(task.get_name(), None)
        await asyncio.Event().wait()

    async def end(self) -> None:
        """End every chore; those that came last, which need the others, first."""
        self._is_ending = True
        for chore in reversed(self._tasks.values()):
            chore.cancel()
            await asyncio.gather(chore, return_exceptions=True)

    async def _keep(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except KataGpuError as error:
                if self.troubles.get(what) != str(error):
                    log.warning("%s: %s", what, error)
                self.troubles[what] = str(error)
            except Exception as error:
                log.exception("%s failed; it is begun again", what)
                self.troubles[what] = repr(error)
            if _is_cancelled():  # and failed on its way out
                return
            await asyncio.sleep(_RETRY_S)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
