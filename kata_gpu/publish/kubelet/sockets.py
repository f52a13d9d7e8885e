"""gRPC over Unix sockets, as kubelet speaks it: serving, and asking.

A socket of ours has a name of its own for each agent: a server that stops removes the path
of its socket, even if a newer agent serves there by now.

Source: kubelet's plugin watcher and device manager; the length is that of sun_path, unix(7).
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from kata_gpu.errors import HostError
from kata_gpu.host import listeners

log = logging.getLogger(__name__)

PATH_MAX_BYTES: Final = 107
MESSAGE_MAX_BYTES: Final = 16 * 1024 * 1024
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.so_reuseport", 0),
)
_ASKING: Final = (
    # What meets a peer that is about to end grpc would ask again, at once and without bounds: until
    # the call's deadline, with hundreds of MiB for each second.
    ("grpc.enable_retries", 0),
    # kubelet is back within seconds; grpc's own patience grows to minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

Context = Any
"""grpc.aio.ServicerContext: grpc has no types."""

Unary = Callable[[Any, Context], Awaitable[Message | bytes]]
Stream = Callable[[Any, Context], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class Service:
    """One service of a .proto file and who answers its methods, by their names."""

    module: ModuleType
    """The generated module that describes it."""

    name: str
    """Without its package: ``DRAPlugin``."""

    methods: Mapping[str, Unary | Stream]

    def handler(self) -> Any:
        """Return it as grpc wants it; a method that nobody answers is UNIMPLEMENTED."""
        described = self.module.DESCRIPTOR.services_by_name[self.name]
        found = {}
        for method in described.methods:
            answer = self.methods.get(method.name)
            if answer is None:
                continue
            kind = "stream" if method.server_streaming else "unary"
            found[method.name] = getattr(grpc, f"unary_{kind}_rpc_method_handler")(
                answer,
                request_deserializer=_message(self.module, method.input_type.name).FromString,
                response_serializer=_wire,
            )
        return grpc.method_handlers_generic_handler(described.full_name, found)


@asynccontextmanager
async def serve(
    path: Path, *services: Service, mode: int = 0o600, grace_s: float | None = None
) -> AsyncIterator[None]:
    """Answer on the socket at *path* until the block ends; then the path is gone.

    Who is being answered then is finished with, for as long as *grace_s*.

    Raises:
        HostError: the path is too long, or the socket cannot be made there.
    """
    address = _address(path)
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(tuple(service.handler() for service in services))
    try:
        path.unlink(missing_ok=True)
        server.add_insecure_port(address)
        listeners.restrict(path, mode)
    except (RuntimeError, OSError, HostError) as error:
        await server.start()  # one that never began keeps its descriptor
        await server.stop(grace=None)
        if isinstance(error, HostError):
            raise
        raise HostError(f"cannot serve on {path}: {error}") from error
    starting = asyncio.ensure_future(server.start())
    try:
        await asyncio.shield(starting)  # grpc takes a start that is cancelled for none, and goes on
        yield
    finally:
        await starting
        await server.stop(grace=grace_s)
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a socket; an error here would take the place of the cancellation that ends it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror)


class Client:
    """One connection to somebody else's socket, made when it is first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._channel = grpc.aio.insecure_channel(
            _address(path),
            options=(*_OPTIONS, *_ASKING, ("grpc.default_authority", "localhost")),
        )

    async def ask(
        self, module: ModuleType, method: str, request: Message, *, timeout_s: float
    ) -> Any:
        """Return the answer of *method*, ``Service.Method`` of *module*.

        Raises:
            grpc.aio.AioRpcError: as the peer, or the connection, said.
        """
        return await self._method(module, method)(request, timeout=timeout_s)

    async def forward(
        self,
        module: ModuleType,
        method: str,
        request: Message,
        *,
        timeout_s: float,
        waits: bool = False,
    ) -> bytes:
        """Return the answer of *method* as it came over the wire.

        A peer that is not there is waited for, until the deadline, if the call *waits*.

        Raises:
            grpc.aio.AioRpcError: as the peer, or the connection, said.
        """
        call = self._channel.unary_unary(_path(module, method), request_serializer=_wire)
        answer: bytes = await call(request, timeout=timeout_s, wait_for_ready=waits)
        return answer

    def stream(self, module: ModuleType, method: str, request: Message) -> Any:
        """Return the call whose messages *method* streams; ``cancel()`` ends it."""
        return self._method(module, method)(request)

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    def _method(self, module: ModuleType, method: str) -> Any:
        described = _described(module, method)
        kind = "stream" if described.server_streaming else "unary"
        return getattr(self._channel, f"unary_{kind}")(
            _path(module, method),
            request_serializer=_wire,
            response_deserializer=_message(module, described.output_type.name).FromString,
        )


def _described(module: ModuleType, method: str) -> Any:
    service, _, name = method.partition(".")
    return module.DESCRIPTOR.services_by_name[service].methods_by_name[name]


def _path(module: ModuleType, method: str) -> str:
    described = _described(module, method)
    return f"/{described.containing_service.full_name}/{described.name}"


def _wire(message: Message | bytes) -> bytes:
    """Return a message as bytes; one that is passed on is bytes already."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def _message(module: ModuleType, name: str) -> Any:
    return getattr(module, name)


def _address(path: Path) -> str:
    length = len(os.fsencode(path))
    if length > PATH_MAX_BYTES:
        raise HostError(
            f"cannot use socket {path}: its path has {length} bytes, and a socket's has at most "
            f"{PATH_MAX_BYTES}; choose a shorter directory"
        )
    return f"unix:{path}"
