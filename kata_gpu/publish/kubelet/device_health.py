"""The stream by which kubelet learns whether a driver's devices are well.

Each message is the whole list: on every change, and every 10 s, since kubelet holds a device
that it has not heard of for a while for unknown. One that is gone is told of as unhealthy: a pod
may have it. A pod's status shows it; nothing is evicted.

Source: kubelet's cm/dra healthinfo.go; messages are cut at 1,024 characters there.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from kata_gpu.model.kubernetes import Device
from kata_gpu.publish.kubelet.news import News
from kata_gpu.publish.kubelet.protos import dra_health_v1_pb2, dra_health_v1alpha1_pb2
from kata_gpu.publish.kubelet.sockets import Context, Service

AGAIN_S: Final = 10.0
TIMEOUT_S: Final = 30
"""After which kubelet shall hold a device for unknown: three messages missed."""

_MESSAGE_MAX: Final = 1000
_GONE: Final = "it is gone from this node"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Health:
    device: str
    is_healthy: bool
    message: str


class HealthStream:
    """Streams the health of one driver's devices to whoever asks."""

    def __init__(
        self,
        pool: str,
        devices: Callable[[], Mapping[str, Device]],
        claimed: Callable[[], frozenset[str]],
        news: News,
        *,
        again_s: float = AGAIN_S,
    ) -> None:
        """*claimed* names the devices that claims have, whether they are there or not."""
        self._pool = pool
        self._devices = devices
        self._claimed = claimed
        self._seen: set[str] = set()
        self._news = news
        self._again_s = again_s

    def services(self) -> tuple[Service, ...]:
        """Return what answers, in both versions."""
        return tuple(map(self._service, (dra_health_v1_pb2, dra_health_v1alpha1_pb2)))

    def _service(self, wire: ModuleType) -> Service:
        async def watch(_request: Any, _context: Context) -> AsyncIterator[Any]:
            async for healths in self._changes():
                yield _message(wire, self._pool, healths)

        return Service(wire, "DRAResourceHealth", {"NodeWatchResources": watch})

    async def _changes(self) -> AsyncIterator[tuple[_Health, ...]]:
        told: tuple[_Health, ...] | None = None
        due_at = 0.0
        while True:
            change = self._news.next()
            now = self._now()
            if now != told or time.monotonic() >= due_at:
                told, due_at = now, time.monotonic() + self._again_s
                yield now
            await change.wait(timeout_s=max(0.0, due_at - time.monotonic()))

    def _now(self) -> tuple[_Health, ...]:
        devices = self._devices()
        self._seen.update(devices, self._claimed())
        return tuple(
            _health(devices[name])
            if name in devices
            else _Health(device=name, is_healthy=False, message=_GONE)
            for name in sorted(self._seen)
        )


def _health(device: Device) -> _Health:
    message = device.reason[:_MESSAGE_MAX]
    return _Health(device=device.name, is_healthy=device.is_healthy, message=message)


def _message(wire: Any, pool: str, healths: Sequence[_Health]) -> Any:
    now = int(time.time())
    return wire.NodeWatchResourcesResponse(
        devices=[
            wire.DeviceHealth(
                device=wire.DeviceIdentifier(pool_name=pool, device_name=health.device),
                health=wire.HEALTHY if health.is_healthy else wire.UNHEALTHY,
                last_updated_time=now,
                health_check_timeout_seconds=TIMEOUT_S,
                message=health.message,
            )
            for health in healths
        ]
    )
