"""Talk to a status socket that is really served, and read its answer as a client would."""

import asyncio
import json
import socket
from collections.abc import Iterable
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Final

from kata_gpu.observe import server

_ROUTES: Final[server.Routes] = {"/v1/status": lambda: {"ready": True}}
_DEADLINE_S: Final = 5.0


def replies(data: bytes, path: Path) -> Iterable[bytes]:
    """Send *data* whole, and once in two parts; return what came back each time.

    Raises:
        AssertionError: the server did not end the connection in time, or a task of it ended
            with an exception that nobody took.
    """
    troubles: list[dict[str, Any]] = []

    async def main() -> list[bytes]:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: troubles.append(what))
        async with server.serve(path, _ROUTES, deadline_s=_DEADLINE_S):
            half = len(data) // 2
            return [await _ask(path, (data,)), await _ask(path, (data[:half], data[half:]))]

    found = asyncio.run(main())
    assert not troubles, troubles
    return found


async def _ask(path: Path, parts: tuple[bytes, ...]) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(_DEADLINE_S / 2):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            writer.write_eof()
            return await reader.read()
    except ConnectionError:
        return b""  # it has heard enough
    finally:
        writer.transport.abort()


def check(data: bytes, reply: bytes) -> None:
    """Check that *reply* is one whole answer with a document, which a HEAD does not get."""
    has_no_body = b"HEAD " in data and reply.endswith(b"\r\n\r\n")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(reply)
        theirs.shutdown(socket.SHUT_WR)
        response = HTTPResponse(ours, method="HEAD" if has_no_body else "GET")
        response.begin()
        body = response.read()
        response.close()
    assert response.status in {200, 400, 404, 405, 413, 414, 431, 501, 505}, response.status
    assert not body or json.loads(body)
