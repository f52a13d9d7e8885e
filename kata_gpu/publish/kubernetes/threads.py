"""Calls that block, each in a thread of its own.

Who ends waits for none of them: the threads of an executor are joined when the interpreter ends,
for as long as a server that says nothing is given.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def call(work: Callable[[], T], *, name: str) -> T:
    """Return what *work* returns, or raise what it raises; one that is cancelled goes on unheard.

    Raises:
        RuntimeError: there can be no more threads.
    """
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            tell = partial(_tell, heard, work())
        except Exception as error:  # noqa: BLE001 - the top of this thread; who waits is told
            tell = partial(_fail, heard, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await heard


def _tell(heard: asyncio.Future[T], result: T) -> None:
    if not heard.done():
        heard.set_result(result)


def _fail(heard: asyncio.Future[T], error: Exception) -> None:
    if not heard.done():
        heard.set_exception(error)
