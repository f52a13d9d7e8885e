"""Word to whoever waits that something has changed; they look themselves what it is."""

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """The next change after the moment it was asked for."""

    event: asyncio.Event

    async def wait(self, *, timeout_s: float) -> None:
        """Return when it has come, or after *timeout_s*."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.event.wait()
        except TimeoutError:
            return


class News:
    """Tells everybody at once; for one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> Change:
        """Return the next change: ask for it before you look, and none is missed."""
        return Change(self._event)

    def tell(self) -> None:
        """Say that something has changed."""
        self._event.set()
        self._event = asyncio.Event()
