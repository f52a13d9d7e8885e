"""One request and its answer, as HTTP/1.1 has them on a connection that ends then."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import h11

_HEAD_MAX_BYTES: Final = 16384
_CHUNK_BYTES: Final = 65536


class UnreadableError(Exception):
    """What came is no request; :attr:`status` says why to who speaks HTTP."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"cannot read the request: {reason}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that was read to its end."""

    method: str
    target: str
    body: bytes
    """At most one byte more than is allowed."""


class Exchange:
    """A connection's one request: read it, then answer."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, body_max_bytes: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._body_max_bytes = body_max_bytes
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_MAX_BYTES)
        self._is_head = False

    async def read(self) -> Asked | None:
        """Return the request; None when the client left before its end.

        Raises:
            UnreadableError: it is none, and to be answered so.
        """
        try:
            return await self._read()
        except h11.RemoteProtocolError as error:
            raise UnreadableError(error.error_status_hint, str(error)) from error

    async def answer(
        self, status: int, content: bytes, headers: tuple[tuple[str, str], ...]
    ) -> None:
        """Write the whole answer; no content to a HEAD."""
        all_headers = [
            *headers,
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=status, headers=all_headers)
        data = () if self._is_head else (h11.Data(data=content),)
        for part in (response, *data, h11.EndOfMessage()):
            self._writer.write(self._connection.send(part) or b"")
        await self._writer.drain()

    async def _read(self) -> Asked | None:
        request = await self._next_event()
        self._is_head = isinstance(request, h11.Request) and request.method == b"HEAD"
        body = b""
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                return None
            body = (body + event.data)[: self._body_max_bytes + 1]
        return Asked(
            method=request.method.decode("ascii"),
            target=request.target.decode("ascii", "replace").partition("?")[0],
            body=body,
        )

    async def _next_event(self) -> Any:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(await self._reader.read(_CHUNK_BYTES))
        return event
