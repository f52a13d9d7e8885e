"""All device plugins of this node: one for each resource that was ever offered."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from kata_gpu.model.kubernetes import Device, Door
from kata_gpu.publish.kubelet.device_plugin import DevicePlugin
from kata_gpu.publish.kubelet.registration import Pace, Registration, RegistrationState

log = logging.getLogger(__name__)

_RETRY_S: Final = 10.0


class DevicePlugins:
    """Made by :func:`running`; a resource's plugin lives until the agent ends."""

    def __init__(self, make: Callable[[str], DevicePlugin], pace: Pace) -> None:
        self._make = make
        self._pace = pace
        self._plugins: dict[str, DevicePlugin] = {}
        self._registrations: dict[str, Registration] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def update(self, devices: Iterable[Device]) -> None:
        """Offer these now, and begin with the resources that are new; quick, and never waits."""
        offered = [device for device in devices if device.door is Door.DEVICE_PLUGIN]
        for resource in sorted({device.resource for device in offered} - self._plugins.keys()):
            plugin = self._plugins[resource] = self._make(resource)
            plugin.update(offered)  # before kubelet can ask
            registration = Registration(plugin, self._pace)
            self._registrations[resource] = registration
            self._tasks.append(asyncio.create_task(_keep(registration), name=f"plugin {resource}"))
        for plugin in self._plugins.values():
            plugin.update(offered)

    def hear(self) -> None:
        """Look at kubelet's socket and our own now: their directory may have changed."""
        for registration in self._registrations.values():
            registration.hear()

    @property
    def states(self) -> tuple[RegistrationState, ...]:
        """Whether kubelet knows each resource, by their names."""
        return tuple(self._registrations[name].state for name in sorted(self._registrations))

    async def end(self) -> None:
        """End all plugins; kubelet takes their devices for unhealthy from now on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def running(
    make: Callable[[str], DevicePlugin],
    pace: Pace = Pace(),  # noqa: B008 - frozen
) -> AsyncIterator[DevicePlugins]:
    """Run plugins, *make*'s for each resource, until the block ends: then their sockets go."""
    plugins = DevicePlugins(make, pace)
    try:
        yield plugins
    finally:
        await plugins.end()


async def _keep(registration: Registration) -> None:
    while True:
        try:
            await registration.keep()
        except Exception:
            log.exception("the plugin of %s failed; it is begun again", registration.state.resource)
            await asyncio.sleep(_RETRY_S)
