"""Waiting for what another task or thread brings about, and a time that a test makes pass."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

WAIT_S: Final = 20.0


async def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until *condition* holds; the words are for the one who waited in vain."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about in time"
        await asyncio.sleep(0.01)


class Clock:
    """A time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
