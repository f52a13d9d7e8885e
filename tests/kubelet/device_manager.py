"""Kubelet's device manager, over real sockets.

It removes every socket of its directory when it starts, dials a plugin before Register returns,
and drops the wrong client when the stream of a replaced one ends, as kubelet does. What it would
take badly, up to a crash of its own, is in `complaints`; a test ends with none.

Source: kubernetes 1.36 pkg/kubelet/cm/devicemanager; what differs between releases is chosen by
the arguments of `DeviceManager`.
"""

import asyncio
import json
import re
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.protos import device_plugin_v1beta1_pb2 as pb

_DIAL_TIMEOUT_S: Final = 10.0
_GRACE_S: Final = 300.0
_DEADLINE_S: Final = 30.0
_CHECKPOINT: Final = "kubelet_internal_checkpoint"
_EXTENDED: Final = re.compile(r"(?!requests\.)[a-z0-9.-]+/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")

Key = tuple[str, str, str]
"""Pod, container and resource."""


class AdmissionError(Exception):
    """The pod fails with UnexpectedAdmissionError, and nobody tries it again."""


class RegistrationError(Exception):
    """Register fails, as UNKNOWN with this text."""


@dataclass(slots=True, eq=False)
class _Client:
    """One connection to a plugin, and what follows its list."""

    resource: str
    path: Path
    connection: sockets.Client
    options: pb.DevicePluginOptions = field(default_factory=pb.DevicePluginOptions)
    run: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Endpoint:
    client: _Client | None
    """None for one that is known from the checkpoint alone."""

    stopped_at: float | None = None


class DeviceManager:
    """The kubelet of a node, its directory *root*; it can be started and stopped any times.

    *by_socket* is how newer kubelets look up the client whose stream has ended: by its socket
    too, so that they keep the other one and only mark the resource's devices unhealthy.
    """

    def __init__(self, root: Path, *, by_socket: bool = False) -> None:
        self.directory = root / "device-plugins"
        self.complaints: list[str] = []
        self.registrations: list[str] = []
        """Endpoints, in the order in which they were registered."""

        self.lists: dict[str, list[dict[str, str]]] = {}
        """Every list that was received for a resource: health by id."""

        self.topology: dict[str, dict[str, tuple[int, ...]]] = {}
        self.slow_allocate: Callable[[], Any] | None = None
        """Awaited between the choice of devices and the call of Allocate."""

        self.drops_next = False
        """Whether the next client is lost before its list is asked for, as in a race."""

        self._by_socket = by_socket
        self._stack: AsyncExitStack | None = None
        self._clients: dict[str, list[_Client]] = {}
        self._all_clients: list[_Client] = []
        self._endpoints: dict[str, _Endpoint] = {}
        self._healthy: dict[str, set[str]] = {}
        self._unhealthy: dict[str, set[str]] = {}
        self._devices: dict[str, set[str]] = {}
        self._allocated: dict[Key, tuple[tuple[str, ...], bytes]] = {}
        self._admission = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def socket(self) -> Path:
        return self.directory / "kubelet.sock"

    @property
    def is_started(self) -> bool:
        return self._stack is not None

    # Its life

    async def start(self, *, wipes: bool = True) -> None:
        """Begin; one that does not wipe its directory shows what its new socket alone does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.iterdir() if wipes else ():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        self._read_checkpoint()
        self._stack = AsyncExitStack()
        service = sockets.Service(
            module=pb, name="Registration", methods={"Register": self._register}
        )
        await self._stack.enter_async_context(sockets.serve(self.socket, service))

    async def stop(self, *, leaving_socket: bool = False) -> None:
        """End, as by SIGTERM, or as by SIGKILL, which leaves a dead socket."""
        assert self._stack is not None
        stack, self._stack = self._stack, None
        await stack.aclose()
        clients, self._all_clients, self._clients = self._all_clients, [], {}
        for client in clients:
            if client.run is not None:
                client.run.cancel()
        await asyncio.gather(*(c.run for c in clients if c.run), return_exceptions=True)
        for client in clients:
            await client.connection.close()
        for known in (self._endpoints, self._healthy, self._unhealthy, self._devices):
            known.clear()
        if leaving_socket:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                dead.bind(str(self.socket))
        self._announce()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    # What a node reports

    def capacity(self, resource: str) -> int:
        endpoint = self._endpoints.get(resource)
        stopped_at = None if endpoint is None else endpoint.stopped_at
        if endpoint is None or (
            stopped_at is not None and time.monotonic() - stopped_at > _GRACE_S
        ):
            return 0
        return len(self._healthy.get(resource, ())) + len(self._unhealthy.get(resource, ()))

    def allocatable(self, resource: str) -> int:
        return len(self._healthy.get(resource, ()))

    def is_running(self, resource: str) -> bool:
        """Tell whether an endpoint is there that is not stopped."""
        endpoint = self._endpoints.get(resource)
        return endpoint is not None and endpoint.client is not None and endpoint.stopped_at is None

    def endpoint(self, resource: str) -> str | None:
        """Return the socket that Allocate would go to."""
        endpoint = self._endpoints.get(resource)
        running = (
            endpoint is not None and endpoint.client is not None and endpoint.stopped_at is None
        )
        return endpoint.client.path.name if running and endpoint and endpoint.client else None

    async def until(self, condition: Callable[[], bool], what: str = "the condition") -> None:
        """Wait until *condition* holds; it is looked at after each change here, and often else."""
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true in {_DEADLINE_S:g} s"
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 0.02)
            except TimeoutError:
                continue

    # Pods

    async def admit(
        self, pod: str, container: str, resource: str, count: int
    ) -> pb.ContainerAllocateResponse:
        """Allocate for a container; what it has already is not allocated again."""
        async with self._admission:
            key = (pod, container, resource)
            if key not in self._allocated:
                await self._allocate(key, count)
            return self.replay(*key)

    def replay(self, pod: str, container: str, resource: str) -> pb.ContainerAllocateResponse:
        """Return what the container is started with, each time."""
        return pb.ContainerAllocateResponse.FromString(self._allocated[pod, container, resource][1])

    def devices_of(self, pod: str) -> tuple[str, ...]:
        return tuple(i for key, (ids, _) in self._allocated.items() if key[0] == pod for i in ids)

    def remove(self, pod: str) -> None:
        """The pod has ended; the plugin is not told."""
        self._allocated = {key: value for key, value in self._allocated.items() if key[0] != pod}
        self._write_checkpoint()

    async def _allocate(self, key: Key, count: int) -> None:
        resource = key[2]
        chosen = await self._choose(resource, count)
        if self.slow_allocate is not None:
            await self.slow_allocate()
        client = self._running_client(resource)
        request = pb.AllocateRequest(
            container_requests=[pb.ContainerAllocateRequest(devices_ids=sorted(chosen))]
        )
        try:
            answer = await client.connection.ask(
                pb, "DevicePlugin.Allocate", request, timeout_s=_DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            raise AdmissionError(
                f"rpc error: code = {error.code().name}: {error.details()}"
            ) from error
        if not answer.container_responses:
            raise AdmissionError(f"no containers return in allocation response {answer}")
        if gone := chosen - self._devices.get(resource, set()):
            self._complain(f"kubelet crashes: {sorted(gone)} left the list during Allocate")
        self._judge_answer(answer.container_responses[0])
        ids = tuple(sorted(chosen))
        self._allocated[key] = ids, answer.container_responses[0].SerializeToString()
        self._write_checkpoint()

    async def _choose(self, resource: str, count: int) -> set[str]:
        if resource not in self._healthy:
            raise AdmissionError(f"cannot allocate unregistered device {resource}")
        if not self._healthy[resource]:
            raise AdmissionError(f"no healthy devices present; cannot allocate {resource}")
        used = {i for key, (ids, _) in self._allocated.items() if key[2] == resource for i in ids}
        available = self._healthy[resource] - used
        if len(available) < count:
            raise AdmissionError(
                f"requested number of devices unavailable for {resource}. "
                f"Requested: {count}, Available: {len(available)}"
            )
        preferred = await self._preferred(resource, available, count)
        picked = set(sorted(preferred & available)[:count])
        rest = sorted(available - picked, reverse=True)  # an order that no plugin wishes for
        return picked | set(rest[: count - len(picked)])

    async def _preferred(self, resource: str, available: Iterable[str], count: int) -> set[str]:
        client = self._running_client(resource)
        if not client.options.get_preferred_allocation_available:
            return set()
        wish = pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=sorted(available), allocation_size=count
        )
        try:
            answer = await client.connection.ask(
                pb,
                "DevicePlugin.GetPreferredAllocation",
                pb.PreferredAllocationRequest(container_requests=[wish]),
                timeout_s=_DEADLINE_S,
            )
        except grpc.aio.AioRpcError as error:
            raise AdmissionError(
                f"device plugin GetPreferredAllocation rpc failed: {error.details()}"
            ) from error
        return set(answer.container_responses[0].deviceIDs) if answer.container_responses else set()

    def _running_client(self, resource: str) -> _Client:
        endpoint = self._endpoints[resource]
        if endpoint.client is None or endpoint.stopped_at is not None:
            raise AdmissionError(f"endpoint {resource} has been stopped")
        return endpoint.client

    # Plugins

    async def _register(self, request: pb.RegisterRequest, context: sockets.Context) -> pb.Empty:
        try:
            await self._connect(request)
        except RegistrationError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return pb.Empty()

    async def _connect(self, request: pb.RegisterRequest) -> None:
        name = request.resource_name
        if request.version != "v1beta1":
            raise RegistrationError(
                f"requested API version {request.version!r} is not supported by kubelet"
            )
        if _EXTENDED.fullmatch(name) is None or "kubernetes.io/" in name:
            raise RegistrationError(f"the ResourceName {name!r} is invalid")
        path = self.directory / request.endpoint
        client = _Client(resource=name, path=path, connection=sockets.Client(path))
        self._all_clients.append(client)
        self._clients.setdefault(name, []).append(client)
        if not self._by_socket:
            self._clients[name] = [client]  # the one before it runs on, and is forgotten
        try:
            client.options = await client.connection.ask(
                pb, "DevicePlugin.GetDevicePluginOptions", pb.Empty(), timeout_s=_DIAL_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            self._drop(client)
            raise RegistrationError(f"failed to dial device plugin: {error.details()}") from error
        if client.options.pre_start_required:
            self._complain(f"{name} wants PreStartContainer, when its VM runs already")
        self._endpoints[name] = _Endpoint(client)
        self.registrations.append(request.endpoint)
        if self.drops_next:
            self.drops_next = False
            await self._disconnect(client)
        else:
            client.run = asyncio.create_task(self._run(client))
        self._announce()

    async def _run(self, client: _Client) -> None:
        """Follow the list; when it ends, disconnect whoever is found under the name by then."""
        try:
            async for answer in client.connection.stream(
                pb, "DevicePlugin.ListAndWatch", pb.Empty()
            ):
                self._receive(client.resource, answer)
        except grpc.aio.AioRpcError:
            pass
        found = self._found(client)
        if found is not None:
            await self._disconnect(found)

    async def forget(self, resource: str) -> None:
        """Lose the connection to the plugin of a resource, for no reason that it could know."""
        client = self._endpoints[resource].client
        assert client is not None
        assert client.run is not None
        client.run.cancel()
        await self._disconnect(client)

    async def _disconnect(self, client: _Client) -> None:
        self._drop(client)
        await client.connection.close()
        self._disconnected(client.resource)

    def _found(self, client: _Client) -> _Client | None:
        for other in self._clients.get(client.resource, []):
            if not self._by_socket or other.path == client.path:
                return other
        return None

    def _drop(self, client: _Client) -> None:
        known = self._clients.get(client.resource, [])
        if client in known:
            known.remove(client)

    def _disconnected(self, resource: str) -> None:
        if (endpoint := self._endpoints.get(resource)) is not None:
            self._unhealthy.setdefault(resource, set()).update(self._healthy.get(resource, ()))
            self._healthy[resource] = set()
            endpoint.stopped_at = time.monotonic()
        self._announce()

    def _receive(self, resource: str, answer: pb.ListAndWatchResponse) -> None:
        self._judge_list(resource, answer)
        health = {device.ID: device.health for device in answer.devices}
        self._devices[resource] = set(health)
        self._healthy[resource] = {name for name, what in health.items() if what == "Healthy"}
        self._unhealthy[resource] = set(health) - self._healthy[resource]
        self.lists.setdefault(resource, []).append(health)
        self.topology[resource] = {
            device.ID: tuple(node.ID for node in device.topology.nodes) for device in answer.devices
        }
        self._write_checkpoint()
        self._announce()

    def _judge_list(self, resource: str, answer: pb.ListAndWatchResponse) -> None:
        ids = [device.ID for device in answer.devices]
        if len(set(ids)) < len(ids):
            self._complain(f"{resource}: an id is twice in {ids}")
        if dropped := self._devices.get(resource, set()) - set(ids):
            self._complain(f"{resource}: {sorted(dropped)} left the list")
        for device in answer.devices:
            nodes = [node.ID for node in device.topology.nodes]
            if device.health not in {"Healthy", "Unhealthy"}:
                self._complain(f"{device.ID} has health {device.health!r}")
            if len(nodes) > 1 or any(node < 0 for node in nodes):
                self._complain(f"{device.ID} has NUMA nodes {nodes}")
            if not device.ID or len(device.ID) > 63:
                self._complain(f"an id is {device.ID!r}")

    def _judge_answer(self, answer: pb.ContainerAllocateResponse) -> None:
        paths = [device.container_path for device in answer.devices]
        if len(set(paths)) < len(paths):
            self._complain(f"a device node is twice in {paths}")
        for device in answer.devices:
            if device.host_path != device.container_path or set(device.permissions) != set("mrw"):
                self._complain(f"Kata does not find the device of {device}")

    def _complain(self, what: str) -> None:
        self.complaints.append(what)

    def _announce(self) -> None:
        self._changed.set()

    # The checkpoint

    def _write_checkpoint(self) -> None:
        document = {
            "PodDeviceEntries": [
                {"Key": key, "DeviceIDs": ids, "AllocResp": answer.hex()}
                for key, (ids, answer) in self._allocated.items()
            ],
            "RegisteredDevices": {name: sorted(ids) for name, ids in self._healthy.items()},
        }
        (self.directory / _CHECKPOINT).write_text(json.dumps(document))

    def _read_checkpoint(self) -> None:
        """Know resources from before, with no device until their plugins register again."""
        try:
            document = json.loads((self.directory / _CHECKPOINT).read_text())
        except FileNotFoundError:
            return
        self._allocated = {
            (entry["Key"][0], entry["Key"][1], entry["Key"][2]): (
                tuple(entry["DeviceIDs"]),
                bytes.fromhex(entry["AllocResp"]),
            )
            for entry in document["PodDeviceEntries"]
        }
        for name in document["RegisteredDevices"]:
            self._healthy[name], self._unhealthy[name] = set(), set()
            self._endpoints[name] = _Endpoint(None, stopped_at=time.monotonic())


@asynccontextmanager
async def kubelet(root: Path, *, by_socket: bool = False) -> AsyncIterator[DeviceManager]:
    """Run one until the block ends, and then hear what it has to complain of."""
    manager = DeviceManager(root, by_socket=by_socket)
    await manager.start()
    try:
        yield manager
    finally:
        if manager.is_started:
            await manager.stop()
    assert manager.complaints == []
