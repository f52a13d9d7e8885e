"""gRPC over Unix sockets, as kubelet speaks it: serving, and asking.

A socket of ours has a name of its own for each agent: a server that stops removes the path
of its socket, even if a newer agent serves there by now.

Source: kubelet's plugin watcher and device manager; the length is that of sun_path, unix(7).
"""

import contextlib
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

PATH_MAX_BYTES: Final = 107
MESSAGE_MAX_BYTES: Final = 16 * 1024 * 1024
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.so_reuseport", 0),
)

Context = Any
"""grpc.aio.ServicerContext: grpc has no types."""

Unary = Callable[[Any, Context], Awaitable[Message]]
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
                response_serializer=_message(
                    self.module, method.output_type.name
                ).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(described.full_name, found)


@asynccontextmanager
async def serve(path: Path, *services: Service, mode: int = 0o600) -> AsyncIterator[None]:
    """Answer on the socket at *path* until the block ends; then the path is gone.

    Raises:
        HostError: the path is too long, or the socket cannot be made there.
    """
    address = _address(path)
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(tuple(service.handler() for service in services))
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise HostError(f"cannot serve on {path}: {error}") from error
    await server.start()
    try:
        path.chmod(mode)
        yield
    finally:
        await server.stop(grace=None)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


class Client:
    """One connection to somebody else's socket, made when it is first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._channel = grpc.aio.insecure_channel(
            _address(path), options=(*_OPTIONS, ("grpc.default_authority", "localhost"))
        )

    async def ask(
        self, module: ModuleType, method: str, request: Message, *, timeout_s: float
    ) -> Any:
        """Return the answer of *method*, ``Service.Method`` of *module*.

        Raises:
            grpc.aio.AioRpcError: as the peer, or the connection, said.
        """
        return await self._method(module, method)(request, timeout=timeout_s)

    def stream(self, module: ModuleType, method: str, request: Message) -> Any:
        """Return the call whose messages *method* streams; ``cancel()`` ends it."""
        return self._method(module, method)(request)

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    def _method(self, module: ModuleType, method: str) -> Any:
        service, _, name = method.partition(".")
        described = module.DESCRIPTOR.services_by_name[service].methods_by_name[name]
        kind = "stream" if described.server_streaming else "unary"
        return getattr(self._channel, f"unary_{kind}")(
            f"/{described.containing_service.full_name}/{name}",
            request_serializer=_message(module, described.input_type.name).SerializeToString,
            response_deserializer=_message(module, described.output_type.name).FromString,
        )


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
