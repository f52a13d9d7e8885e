"""A status socket that is served meanwhile, and clients that send what they like."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from kata_gpu.errors import HeldError
from kata_gpu.observe import server

STATE: Final = {"ready": True, "units": [{"id": "0000:01:00.0", "reason": "Grüße"}]}
ROUTES: Final[server.Routes] = {"/v1/status": lambda: STATE, "/big": lambda: "x" * 4_000_000}

T = TypeVar("T")


async def clear(wish: dict[str, Any]) -> object:
    await asyncio.sleep(0)
    if "unit" not in wish:
        raise HeldError("cannot clear: no unit is named")
    return {"cleared": wish["unit"]}


async def take_long(_wish: dict[str, Any]) -> object:
    await asyncio.sleep(0.5)
    return "done"


COMMANDS: Final[server.Commands] = {"/v1/clear": clear, "/v1/long": take_long}


def served(
    path: Path,
    use: Callable[[], T],
    *,
    mode: int = 0o660,
    deadline_s: float = 5.0,
    routes: server.Routes = ROUTES,
    commands: server.Commands = COMMANDS,
) -> T:
    """Let *use* run in a thread while the socket is served; nothing may go wrong unseen."""
    troubles: list[dict[str, Any]] = []

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: troubles.append(what))
        async with server.serve(path, routes, commands=commands, mode=mode, deadline_s=deadline_s):
            return await asyncio.to_thread(use)

    result = asyncio.run(main())
    assert troubles == []
    return result


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(5)
        channel.connect(str(path))
        yield channel


def rest(channel: socket.socket) -> bytes:
    """Return all that comes until the other side ends the connection."""
    parts = []
    while part := channel.recv(65536):
        parts.append(part)
    return b"".join(parts)


def answer(path: Path, request: bytes) -> tuple[int, Any]:
    """Send a request as it is, and return the answer's status and document."""

    def ask() -> bytes:
        with connected(path) as channel:
            channel.sendall(request)
            return rest(channel)

    head, _, body = served(path, ask).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None
