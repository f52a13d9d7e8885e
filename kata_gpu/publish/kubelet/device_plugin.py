"""One extended resource as kubelet's device manager knows it: v1beta1.DevicePlugin.

A device that was once listed stays in the list, unhealthy when it is gone: kubelet keeps
pointers to what it was told of, and one that vanishes between its list and an Allocate in
flight ends the whole kubelet. What Allocate answers is kept by kubelet and replayed at each
restart of the container, without asking again: nothing is in it but device nodes.

The nodes go as device specs and not as CDI names. Kata takes a sandbox's devices from the
PodResources API and resolves them to CDI names itself; the container's own spec must carry the
same nodes, and specs bring them there with every runtime, while CDI names need one that
resolves them, and fail the container where that one reads other directories than Kata does.

Source: k8s.io/kubelet pkg/apis/deviceplugin/v1beta1; kubelet's pkg/kubelet/cm/devicemanager.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc

from kata_gpu.errors import KataGpuError
from kata_gpu.model.kubernetes import Device, Door
from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.protos import device_plugin_v1beta1_pb2 as pb

FOLDER: Final = "device-plugins"
PERMISSIONS: Final = "mrw"
CONTROL_NODE: Final = "/dev/vfio/vfio"

_LEGACY_GROUP: Final = re.compile(r"/dev/vfio/(?:noiommu-)?[0-9]+")
_SUFFIX: Final = re.compile(r"[0-9a-z]{1,32}")
_SLUG_MAX: Final = 40
_IDS_MAX_SHOWN: Final = 8

Verify = Callable[[Sequence[str]], Awaitable[Mapping[str, Device]]]
"""Looks at the devices of these ids anew; raises KataGpuError where one must not be given.

It has to be quick: kubelet admits no pod meanwhile, and has no deadline itself."""

Prefer = Callable[[Sequence[Device], Sequence[str], int], Sequence[str]]
"""Chooses among available devices, given the ids that must be among them and how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What Allocate answers with besides the devices' own nodes."""

    control_node: bool = False
    """Whether legacy groups come with /dev/vfio/vfio. QEMU opens it on the host by itself, and
    Kata strips it from a container whose guest drives the device; earlier releases of its
    runtime-rs fail on it. Only a container that uses VFIO in the guest needs it, as with
    ``vfio_mode = "vfio"``."""

    cdi_names: bool = False
    """Whether to name the CDI devices too, for a runtime that is to resolve them."""


class _RefusedError(KataGpuError):
    """The call ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Streams:
    """How many ListAndWatch calls there were; more than kubelet's are possible."""

    begun: int = 0
    ended: int = 0


class DevicePlugin:
    """Answers for one resource on a socket of this agent's own; `registration` serves it."""

    def __init__(
        self,
        resource: str,
        kubelet_directory: Path,
        suffix: str,
        *,
        verify: Verify,
        prefer: Prefer,
        grant: Grant = Grant(),
    ) -> None:
        self.resource = resource
        self.directory = kubelet_directory / FOLDER
        self.socket = self.directory / socket_name(resource, suffix)
        self.streams = Streams()
        self.on_stream: Callable[[], None] = lambda: None
        """Called after each change of the streams."""

        self._verify = verify
        self._prefer = prefer
        self._grant = grant
        self._devices: dict[str, Device] = {}
        self._list = pb.ListAndWatchResponse()
        self._changed = asyncio.Event()

    def update(self, devices: Iterable[Device]) -> None:
        """List these from now on, and as unhealthy all others that ever were.

        Those of another resource or door are passed over. Kubelet is told when anything that
        it is told of is different.
        """
        ours = {d.id: d for d in devices if d.resource == self.resource and _is_offered(d)}
        gone = {
            name: replace(device, is_healthy=False, reason="it is no longer offered")
            for name, device in self._devices.items()
            if name not in ours
        }
        self._devices = dict(sorted((gone | ours).items()))
        told = pb.ListAndWatchResponse(devices=map(_listed, self._devices.values()))
        if told != self._list:
            self._list = told
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    @property
    def service(self) -> sockets.Service:
        """The service to serve on :attr:`socket`."""
        return sockets.Service(
            module=pb,
            name="DevicePlugin",
            methods={
                "GetDevicePluginOptions": self._options,
                "ListAndWatch": self._list_and_watch,
                "GetPreferredAllocation": self._preferred,
                "Allocate": self._allocate,
                "PreStartContainer": self._pre_start,
            },
        )

    async def _options(
        self, _request: pb.Empty, _context: sockets.Context
    ) -> pb.DevicePluginOptions:
        # The VM has the device before any container of it starts: nothing is to be done then.
        return pb.DevicePluginOptions(
            pre_start_required=False, get_preferred_allocation_available=True
        )

    async def _list_and_watch(
        self, _request: pb.Empty, _context: sockets.Context
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        self.streams.begun += 1
        self.on_stream()
        told = None
        try:
            while True:
                changed = self._changed
                if self._list is not told:
                    told = self._list
                    yield told
                else:
                    await changed.wait()
        finally:
            self.streams.ended += 1
            self.on_stream()

    async def _preferred(
        self, request: pb.PreferredAllocationRequest, _context: sockets.Context
    ) -> pb.PreferredAllocationResponse:
        """Advise; an error would fail the pod, so that nonsense gets no advice instead."""
        answers = []
        for wish in request.container_requests:
            known = dict.fromkeys(wish.available_deviceIDs)
            available = [self._devices[name] for name in known if name in self._devices]
            chosen = self._prefer(
                available, tuple(wish.must_include_deviceIDs), wish.allocation_size
            )
            answers.append(pb.ContainerPreferredAllocationResponse(deviceIDs=chosen))
        return pb.PreferredAllocationResponse(container_responses=answers)

    async def _allocate(
        self, request: pb.AllocateRequest, context: sockets.Context
    ) -> pb.AllocateResponse:
        wishes = [tuple(wish.devices_ids) for wish in request.container_requests]
        try:
            self._check(wishes)
            fresh = await self._look_anew(sorted(name for wish in wishes for name in wish))
        except _RefusedError as refusal:
            await context.abort(refusal.code, str(refusal))
            raise
        return pb.AllocateResponse(
            container_responses=[
                self._answer([fresh[name] for name in sorted(wish)]) for wish in wishes
            ]
        )

    async def _pre_start(
        self, _request: pb.PreStartContainerRequest, _context: sockets.Context
    ) -> pb.PreStartContainerResponse:
        return pb.PreStartContainerResponse()

    def _check(self, wishes: Sequence[Sequence[str]]) -> None:
        """Refuse what needs no look at the host."""
        ids = [name for wish in wishes for name in wish]
        if not all(wishes):
            raise self._wrong("no device is named")
        if len(set(ids)) < len(ids):
            raise self._wrong(f"a device is named twice in {_shown(ids)}")
        if unknown := [name for name in ids if name not in self._devices]:
            raise self._wrong(f"there is no device {_shown(unknown)}")
        for name in ids:
            self._check_device(name, self._devices[name])

    def _check_device(self, name: str, device: Device | None) -> None:
        if device is None or device.resource != self.resource or not _is_offered(device):
            raise self._unfit(name, f"it is no longer offered as {self.resource}")
        if not device.is_healthy:
            raise self._unfit(name, device.reason)
        if not device.is_ready or not device.nodes:
            raise self._unfit(name, f"it has no device nodes yet: {device.reason}")

    async def _look_anew(self, ids: Sequence[str]) -> Mapping[str, Device]:
        try:
            fresh = await self._verify(ids)
        except KataGpuError as error:
            raise self._unfit(_shown(ids), str(error)) from error
        for name in ids:
            self._check_device(name, fresh.get(name))
        return fresh

    def _answer(self, devices: Sequence[Device]) -> pb.ContainerAllocateResponse:
        nodes = dict.fromkeys(node for device in devices for node in device.nodes)
        if self._grant.control_node and any(map(_LEGACY_GROUP.fullmatch, nodes)):
            nodes = {CONTROL_NODE: None} | nodes
        named = devices if self._grant.cdi_names else ()
        return pb.ContainerAllocateResponse(
            devices=[
                pb.DeviceSpec(container_path=node, host_path=node, permissions=PERMISSIONS)
                for node in nodes
            ],
            cdi_devices=[pb.CDIDevice(name=name) for device in named for name in device.cdi_names],
        )

    def _wrong(self, reason: str) -> _RefusedError:
        message = f"cannot allocate {self.resource}: {reason}"
        return _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message)

    def _unfit(self, ids: str, reason: str) -> _RefusedError:
        message = f"cannot allocate {self.resource} {ids}: {reason}; see kata-gpu status"
        return _RefusedError(grpc.StatusCode.FAILED_PRECONDITION, message)


def socket_name(resource: str, suffix: str) -> str:
    """Return the socket's name; of two agents at once each needs a *suffix* of its own.

    Raises:
        ValueError: the suffix has other characters than ``0-9a-z``.
    """
    if _SUFFIX.fullmatch(suffix) is None:
        raise ValueError(f"cannot name a socket with the suffix {suffix!r}: it is not 0-9a-z")
    return f"{socket_prefix(resource)}{suffix}.sock"


def socket_prefix(resource: str) -> str:
    """Return how the sockets of a resource begin, all agents' alike and no other resource's."""
    slug = re.sub(r"[^A-Za-z0-9.-]", "_", resource)  # a domain has no "_", so "/" is seen in it
    if len(slug) > _SLUG_MAX:  # the path of a socket is short
        slug = f"{slug[: _SLUG_MAX - 9]}_{hashlib.sha256(resource.encode()).hexdigest()[:8]}"
    return f"kata-gpu-{slug}-"


def _is_offered(device: Device) -> bool:
    return device.door is Door.DEVICE_PLUGIN


def _listed(device: Device) -> pb.Device:
    """Return it as kubelet is told of it: at most one NUMA node, and none that is not one."""
    node = device.numa_node
    return pb.Device(
        ID=device.id,
        health="Healthy" if device.is_healthy else "Unhealthy",
        topology=None
        if node is None or node < 0
        else pb.TopologyInfo(nodes=[pb.NUMANode(ID=node)]),
    )


def _shown(ids: Sequence[str]) -> str:
    """Return ids for a message; whoever asks may name anything."""
    more = "" if len(ids) <= _IDS_MAX_SHOWN else f" and {len(ids) - _IDS_MAX_SHOWN} more"
    return ", ".join(f"{name[:80]!r}" for name in ids[:_IDS_MAX_SHOWN]) + more
