"""What kubelet's plugin watcher asks a DRA driver, on a socket in ``plugins_registry``.

Kubelet gives GetInfo one second, so the answer is made beforehand. Of the versions it takes the
first that it knows.

Source: kubelet's pluginmanager/operationexecutor and cm/dra/plugin, PluginType "DRAPlugin".
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from kata_gpu.publish.kubelet.protos import plugin_registration_v1_pb2 as wire
from kata_gpu.publish.kubelet.sockets import Context, Service

log = logging.getLogger(__name__)

VERSIONS: Final = (
    "v1.DRAPlugin",
    "v1beta1.DRAPlugin",
    "v1.DRAResourceHealth",
    "v1alpha1.DRAResourceHealth",
)
"""Labels, not gRPC names; in the order that kubelet chooses by."""


class Standing(StrEnum):
    """What kubelet has said last."""

    UNKNOWN = "unknown"
    """Nothing yet, since the agent began."""

    REGISTERED = "registered"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """How a driver stands with kubelet."""

    standing: Standing = Standing.UNKNOWN
    said_at: datetime | None = None
    """None while the standing is unknown."""

    error: str = ""
    """Why kubelet refuses it."""


class PluginRegistration:
    """Answers for one driver, and remembers what kubelet says of it."""

    def __init__(self, driver: str, endpoint: Path) -> None:
        self.now = Registration()
        self._driver = driver
        self._info = wire.PluginInfo(
            type="DRAPlugin", name=driver, endpoint=str(endpoint), supported_versions=VERSIONS
        )

    def service(self) -> Service:
        """Return what answers."""
        return Service(
            wire,
            "Registration",
            {
                "GetInfo": self._get_info,
                "NotifyRegistrationStatus": self._notify_registration_status,
            },
        )

    async def _get_info(self, _request: Any, _context: Context) -> Any:
        return self._info

    async def _notify_registration_status(self, status: Any, _context: Context) -> Any:
        if status.plugin_registered:
            log.info("kubelet registered DRA driver %s", self._driver)
        else:
            log.error("kubelet refuses DRA driver %s: %s", self._driver, status.error)
        self.now = Registration(
            standing=Standing.REGISTERED if status.plugin_registered else Standing.REFUSED,
            said_at=datetime.now(UTC),
            error=str(status.error),
        )
        return wire.RegistrationStatusResponse()
