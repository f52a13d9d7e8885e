"""The status socket: HTTP/1.1 over a Unix socket, reading only.

A client is not trusted: a request has a size, a connection has a deadline, and there are
only so many of them at once. The answer is the latest state; nothing is computed for it
but its text.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import h11

from kata_gpu.errors import HeldError, HostError

log = logging.getLogger(__name__)

_REQUEST_MAX_BYTES: Final = 16384
_CONNECTION_DEADLINE_S: Final = 10.0
_CONNECTIONS_MAX: Final = 32
_CHUNK_BYTES: Final = 65536

Routes = dict[str, Callable[[], Any]]
"""Path → the JSON-able document it answers with."""


@asynccontextmanager
async def serve(
    path: Path, routes: Routes, *, mode: int = 0o660, deadline_s: float = _CONNECTION_DEADLINE_S
) -> AsyncIterator[None]:
    """Answer GET requests on the socket at *path* until the block ends, then remove it.

    A connection ends within *deadline_s* of its turn, whatever its client does.

    Raises:
        HeldError: a live daemon serves this path.
        HostError: the socket cannot be made there.
    """
    listener = _listen(path, mode)
    slots = asyncio.Semaphore(_CONNECTIONS_MAX)
    talks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.create_task(_talk(reader, writer, routes, slots, deadline_s))
        talks.add(talk)
        talk.add_done_callback(talks.discard)

    server = await asyncio.start_unix_server(connected, sock=listener)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    routes: Routes,
    slots: asyncio.Semaphore,
    deadline_s: float,
) -> None:
    try:
        async with slots:
            with contextlib.suppress(OSError, TimeoutError):  # the client's trouble, not ours
                async with asyncio.timeout(deadline_s):
                    await _converse(reader, writer, routes)
                    writer.close()
                    await writer.wait_closed()
    finally:
        writer.transport.abort()  # what is not sent by now is not waited for


def _listen(path: Path, mode: int) -> socket.socket:
    _make_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        listener.bind(str(path))
        path.chmod(mode)  # before listen: nobody can connect in between
        listener.listen()
    except OSError as error:
        listener.close()
        raise HostError(f"cannot serve the status socket {path}: {error}") from error
    listener.setblocking(False)
    return listener


def _make_way(path: Path) -> None:
    """Remove the socket that a killed daemon left; never anything else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot serve the status socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise HostError(f"cannot serve the status socket {path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):  # nobody listens
            path.unlink(missing_ok=True)
            return
        except OSError as error:  # somebody may: a socket of another kind, or one not for us
            raise HostError(f"cannot serve the status socket {path}: {error.strerror}") from error
    raise HeldError(
        f"cannot serve the status socket {path}: another daemon answers there; "
        f"stop it, or set another socket in agent.toml"
    )


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, routes: Routes
) -> None:
    """Answer one request; the connection closes after it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_MAX_BYTES)
    is_head = False
    try:
        request = await _next_event(reader, connection)
        is_head = isinstance(request, h11.Request) and request.method == b"HEAD"
        while not isinstance(event := await _next_event(reader, connection), h11.EndOfMessage):
            if isinstance(event, h11.ConnectionClosed):
                return
    except h11.RemoteProtocolError as error:
        status, body = error.error_status_hint, {"error": f"cannot read the request: {error}"}
    else:
        if not isinstance(request, h11.Request):
            return
        status, body = _answer(request, routes)
    data = json.dumps(body, indent=2).encode() + b"\n"
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(data))),
        ("connection", "close"),
    ]
    response = h11.Response(status_code=status, headers=headers)
    content = () if is_head else (h11.Data(data=data),)
    for part in (response, *content, h11.EndOfMessage()):
        writer.write(connection.send(part) or b"")
    await writer.drain()


async def _next_event(reader: asyncio.StreamReader, connection: h11.Connection) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_CHUNK_BYTES))
    return event


def _answer(request: h11.Request, routes: Routes) -> tuple[int, Any]:
    target = request.target.decode("ascii", "replace").partition("?")[0]
    if target not in routes:
        return 404, {"error": f"cannot find {target[:200]}; there is {', '.join(routes)}"}
    if request.method != b"GET":
        return 405, {"error": "cannot change anything here: only GET is served"}
    return 200, routes[target]()
