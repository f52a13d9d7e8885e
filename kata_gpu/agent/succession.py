"""One agent for each node: the next one begins when the one before it has ended."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from kata_gpu.errors import HeldError
from kata_gpu.host import locks

log = logging.getLogger(__name__)

_LOCK_INTERVAL_S: Final = 0.2
"""How often one that waits for the node asks for it: flock(2) tells nobody else."""


@asynccontextmanager
async def alone(lock: Path, *, waits: bool) -> AsyncIterator[None]:
    """Hold the node's lock; one that *waits* asks for it until its owner has ended.

    Raises:
        HeldError: another agent holds it, and nobody is to wait.
    """
    with ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(locks.exclusive(lock))
                break
            except HeldError:
                if not waits:
                    raise
                if not told:
                    log.info(
                        "waiting until process %s, which has this node, ends", locks.owner(lock)
                    )
                told = True
            await asyncio.sleep(_LOCK_INTERVAL_S)
        yield
