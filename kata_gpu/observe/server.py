"""The status socket: HTTP/1.1 over a Unix socket.

A client is not trusted: a request has a size, a connection has a deadline, and there are
only so many of them at once. Some are answered, and some wait, of which nothing is read yet;
what comes beyond is closed, for each takes a descriptor that the agent needs for other things.
GET answers with the latest state; nothing is computed for it but its text, and off the loop
where that takes a while. POST asks for something, and only root may, or the user the agent runs
as: the kernel says who the peer is.
"""

import asyncio
import contextlib
import inspect
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.host import listeners

if TYPE_CHECKING:
    from kata_gpu.observe.exchange import Asked

log = logging.getLogger(__name__)

_BODY_MAX_BYTES: Final = 65536
_CONNECTION_DEADLINE_S: Final = 10.0
_CONNECTIONS_MAX: Final = 32
_WAITING_MAX: Final = 96

Route = Callable[[], Any]
"""Returns a JSON-able document, or a Text; or one of these to be awaited, if it takes a while."""

Routes = dict[str, Route]
"""Path → what a GET of it is answered with."""

Command = Callable[[dict[str, Any]], Awaitable[Any]]
"""Takes a request's JSON object; returns a JSON-able document, or raises KataGpuError."""

Commands = Mapping[str, Command]
"""Path → what a POST to it does."""

_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """An answer that is no JSON."""

    content: bytes
    kind: str
    """Its media type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """All that is served."""

    routes: Routes
    commands: Commands


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    document: Any
    headers: tuple[tuple[str, str], ...] = field(default=())


@asynccontextmanager
async def serve(
    path: Path,
    routes: Routes,
    *,
    commands: Commands = MappingProxyType({}),
    mode: int = 0o660,
    deadline_s: float = _CONNECTION_DEADLINE_S,
) -> AsyncIterator[None]:
    """Answer requests on the socket at *path* until the block ends, then remove it.

    GET is for whoever may open the socket, POST for root alone. A connection ends within
    *deadline_s* of its turn, whatever its client does; a command takes the time it takes.

    Raises:
        HeldError: a live daemon serves this path.
        HostError: the socket cannot be made there.
    """
    listener = _listen(path, mode)
    talks = _Talks(_Answers(routes=routes, commands=commands), deadline_s)
    server = await asyncio.start_unix_server(talks.begin, sock=listener)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        await talks.end()


@asynccontextmanager
async def serve_all(
    address: str, port: int, routes: Routes, *, deadline_s: float = _CONNECTION_DEADLINE_S
) -> AsyncIterator[int]:
    """Answer GET requests from anybody who reaches the TCP port; yield its number.

    Raises:
        HostError: the port cannot be had.
    """
    talks = _Talks(_Answers(routes=routes, commands={}), deadline_s)
    try:
        server = await asyncio.start_server(talks.begin, address, port)
    except OSError as error:
        raise HostError(f"cannot serve on {address} port {port}: {error.strerror}") from error
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await talks.end()


class _Talks:
    """The conversations of one listener: so many at once, and each with a deadline."""

    def __init__(self, answers: _Answers, deadline_s: float) -> None:
        self._answers = answers
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(_CONNECTIONS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= _CONNECTIONS_MAX + _WAITING_MAX:
            writer.transport.abort()
            return
        _transport(writer).pause_reading()
        task = asyncio.create_task(
            _talk(reader, writer, self._answers, self._slots, self._deadline_s)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answers: _Answers,
    slots: asyncio.Semaphore,
    deadline_s: float,
) -> None:
    try:
        async with slots:
            _transport(writer).resume_reading()
            with contextlib.suppress(OSError, TimeoutError):  # the client's trouble, not ours
                async with asyncio.timeout(deadline_s) as deadline:
                    await _converse(reader, writer, answers, deadline)
                    writer.close()
                    await writer.wait_closed()
    finally:
        writer.transport.abort()  # what is not sent by now is not waited for


def _transport(writer: asyncio.StreamWriter) -> asyncio.Transport:
    return cast("asyncio.Transport", writer.transport)


def _listen(path: Path, mode: int) -> socket.socket:
    listeners.make_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        listener.bind(str(path))
        listeners.restrict(path, mode)  # before listen: nobody can connect in between
        listener.listen()
    except HostError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise HostError(f"cannot serve on {path}: {error}") from error
    listener.setblocking(False)
    return listener


async def _converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answers: _Answers,
    deadline: asyncio.Timeout,
) -> None:
    """Answer one request; the connection closes after it."""
    from kata_gpu.observe import exchange  # noqa: PLC0415 - h11, when somebody asks

    talk = exchange.Exchange(reader, writer, body_max_bytes=_BODY_MAX_BYTES)
    try:
        asked = await talk.read()
    except exchange.UnreadableError as error:
        answer = _refusal(error.status, str(error))
    else:
        if asked is None:
            return
        answer = await _answer(asked, answers, writer, deadline)
    text = _text(answer.document)
    await talk.answer(answer.status, text.content, (("content-type", text.kind), *answer.headers))


def _text(document: Any) -> Text:
    if isinstance(document, Text):
        return document
    return Text(content=json.dumps(document, indent=2).encode() + b"\n", kind="application/json")


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


def _refusal(status: int, reason: str, *headers: tuple[str, str]) -> _Answer:
    return _Answer(status=status, document={"error": reason}, headers=headers)


async def _answer(
    asked: "Asked", answers: _Answers, writer: asyncio.StreamWriter, deadline: asyncio.Timeout
) -> _Answer:
    command = answers.commands.get(asked.target)
    if command is not None:
        if asked.method != "POST":
            reason = f"cannot {asked.method} {asked.target}: only POST is served"
            return _refusal(405, reason, ("allow", "POST"))
        peer_uid = _peer_uid(writer)
        if peer_uid not in {0, os.geteuid()}:
            return _refusal(403, f"cannot do that for uid {peer_uid}: only root may; try sudo")
        return await _obey(command, asked.body, deadline)
    if asked.target not in answers.routes:
        known = ", ".join((*answers.routes, *answers.commands))
        return _refusal(404, f"cannot find {asked.target[:200]}; there is {known}")
    if asked.method != "GET":
        reason = "cannot change anything here: only GET is served"
        return _refusal(405, reason, ("allow", "GET"))
    document = answers.routes[asked.target]()
    return _Answer(
        status=200, document=await document if inspect.isawaitable(document) else document
    )


async def _obey(command: Command, body: bytes, deadline: asyncio.Timeout) -> _Answer:
    """Let the command do what it is asked for; meanwhile the client owes nothing."""
    if len(body) > _BODY_MAX_BYTES:
        return _refusal(413, f"cannot take a body of more than {_BODY_MAX_BYTES} bytes")
    try:
        wish = json.loads(body)
    except (ValueError, RecursionError) as error:
        return _refusal(400, f"cannot read the body as JSON: {error}")
    if not isinstance(wish, dict):
        return _refusal(400, "cannot take a body that is no JSON object")
    ends_at = deadline.when()
    started_at = asyncio.get_running_loop().time()
    deadline.reschedule(None)
    try:
        document = await command(wish)
    except KataGpuError as error:
        return _refusal(409, str(error))
    finally:
        took_s = asyncio.get_running_loop().time() - started_at
        deadline.reschedule(None if ends_at is None else ends_at + took_s)
    return _Answer(status=200, document=document)
