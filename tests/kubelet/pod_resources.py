"""kubelet's PodResources server, with its limit, its words and its oddities.

Source: pkg/kubelet/apis/podresources/server_v1.go, apis/podresources/constants.go and
cm/container_manager_linux.go in Kubernetes 1.36.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.protos import pod_resources_v1_pb2 as api
from kata_gpu.publish.kubelet.sockets import Context, Service

_PER_SECOND: Final = 100.0
_BURST: Final = 10


class PodResources:
    """Answers for the pods that it was told of."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], bytes] = {}
        """By namespace and name: what Get says, as it goes over the wire."""
        self.asked: list[str] = []
        """What was asked for, whether or not it was answered."""
        self.refused = 0
        self.is_open = asyncio.Event()
        """Until it is set, nothing is answered: kubelet hangs."""
        self.is_open.set()
        self._tokens = float(_BURST)
        self._filled_at = time.monotonic()

    def has(self, namespace: str, name: str, *containers: Any) -> bytes:
        """Have a pod, and return what Get says of it."""
        pod = api.PodResources(name=name, namespace=namespace, containers=containers)
        answer = api.GetPodResourcesResponse(pod_resources=pod).SerializeToString()
        self.answers[namespace, name] = answer
        return answer

    @asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        """Answer on the socket at *path* until the block ends."""
        methods = {
            "Get": self._get,
            "List": self._list,
            "GetAllocatableResources": self._allocatable,
        }
        async with sockets.serve(path, Service(api, "PodResourcesLister", methods)):
            yield

    async def _get(self, request: Any, context: Context) -> bytes:
        await self._admit(request.pod_name, context)
        answer = self.answers.get((request.pod_namespace, request.pod_name))
        if answer is None:  # a plain Go error: no status of its own
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                f"pod {request.pod_name} in namespace {request.pod_namespace} not found",
            )
        return answer or b""

    async def _list(self, _request: Any, context: Context) -> bytes:
        await self._admit("List", context)
        parts = (api.GetPodResourcesResponse.FromString(raw) for raw in self.answers.values())
        pods = [part.pod_resources for part in parts]
        return api.ListPodResourcesResponse(pod_resources=pods).SerializeToString()

    async def _allocatable(self, _request: Any, context: Context) -> Any:
        await self._admit("GetAllocatableResources", context)
        return api.AllocatableResourcesResponse(devices=device("nvidia.com/pgpu", "a", (0, 1)))

    async def _admit(self, what: str, context: Context) -> None:
        """Refuse who asks too fast, as one limit for all clients."""
        self.asked.append(what)
        now = time.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._filled_at) * _PER_SECOND)
        self._filled_at = now
        if self._tokens < 1:
            self.refused += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
        self._tokens -= 1
        await self.is_open.wait()


def device(resource: str, id_: str, nodes: Sequence[int] = ()) -> list[Any]:
    """Return a device of a plugin: once for each of its NUMA nodes."""
    return [
        api.ContainerDevices(
            resource_name=resource,
            device_ids=[id_],
            topology=None if node is None else api.TopologyInfo(nodes=[api.NUMANode(ID=node)]),
        )
        for node in nodes or (None,)
    ]


def claim(name: str, driver: str, devices: Iterable[tuple[str, Sequence[str]]]) -> Any:
    """Return a claim with *devices* of one driver, each with its CDI names.

    The list of names is made once and only grows: a device also has those before it.
    """
    names: list[str] = []
    resources = []
    for device_name, own in devices:
        names.extend(own)
        resources.append(
            api.ClaimResource(
                cdi_devices=[api.CDIDevice(name=name) for name in names],
                driver_name=driver,
                pool_name="node-a",
                device_name=device_name,
            )
        )
    return api.DynamicResource(
        claim_name=name, claim_namespace="default", claim_resources=resources
    )


def container(name: str, *, devices: Iterable[Any] = (), claims: Iterable[Any] = ()) -> Any:
    """Return a container with what it has."""
    return api.ContainerResources(name=name, devices=devices, dynamic_resources=claims)
