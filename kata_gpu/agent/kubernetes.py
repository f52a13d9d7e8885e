"""What this node has, offered to Kubernetes: at kubelet's sockets, and to the API server.

Each part stands by itself: without an API server kubelet is served all the same, but for
claims, which are read there; what fails is said in status and tried again. Nothing here
changes a device: a claim that needs one bound is recorded, and a turn of the agent does it.
"""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from kata_gpu import __version__
from kata_gpu.agent import asking
from kata_gpu.agent.offered import Offered, Turned
from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.host import Host, boot
from kata_gpu.host.detour import Guardian
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.kubernetes import DRIVERS, GPU_DRIVER, Device, Door
from kata_gpu.model.report import NodeState
from kata_gpu.plan.kubernetes import preference, slices, taints
from kata_gpu.publish.kubelet import device_plugins
from kata_gpu.publish.kubelet.device_plugin import DevicePlugin
from kata_gpu.publish.kubelet.device_plugins import DevicePlugins
from kata_gpu.publish.kubelet.dra import DraDriver, DriverSettings
from kata_gpu.publish.kubelet.kata_devices import Ours
from kata_gpu.publish.kubelet.pod_resources import Proxy
from kata_gpu.publish.kubelet.preparing import Agent
from kata_gpu.publish.kubelet.registration import Pace, new_suffix
from kata_gpu.publish.kubernetes import client
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import NotFoundError
from kata_gpu.publish.kubernetes.events import EventPublisher, happenings
from kata_gpu.publish.kubernetes.node import LabelPublisher, Write, to_feature_file, to_node
from kata_gpu.publish.kubernetes.pacing import Pacing
from kata_gpu.publish.kubernetes.resource_slices import SlicePublisher, SliceRules
from kata_gpu.settings.agent import Kubernetes, Settings, node_name

log = logging.getLogger(__name__)

_RETRY_S: Final = 10.0
_POLL_S: Final = 10.0
"""How often kubelet's sockets are looked at where nothing tells of them."""

_RULES: Final = SliceRules(settle=taints.settle, plan=slices.plan, differences=slices.differences)

Look = Callable[[], Awaitable[object]]
"""Takes a turn that begins after the call, and tells of it by `Publishing.update`."""


class Publishing:
    """All that Kubernetes hears of this node; :meth:`serve` it after the first turn."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        kubernetes: Kubernetes,
        look: Look,
        wake: Callable[[], None],
        *,
        guardian: Guardian | None = None,
    ) -> None:
        self._host = host
        self._cdi_directory = settings.cdi_directory
        self._kubernetes = kubernetes
        self._look = look
        self._wake = wake
        self._guardian = guardian
        self._pacing = Pacing(start_spread_s=kubernetes.start_spread_s)
        self._node = node_name(kubernetes)
        self._suffix = new_suffix()
        self._agent = os.environ.get("POD_UID") or secrets.token_hex(8)
        self._drivers = {name: self._driver(name) for name in DRIVERS}
        self._offered = Offered(host, self._hands_change)
        self._plugins: DevicePlugins | None = None
        self._proxy: Proxy | None = None
        self._kata_was_led = asyncio.Event()
        self._client: KubernetesClient | None = None
        self._labels: LabelPublisher | None = None
        self._events: EventPublisher | None = None
        self._told: NodeState | None = None
        """What the latest Events were about; None before any."""

        self._publishers: dict[str, SlicePublisher] = {}
        self._chores: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, str] = {}

    def claimed(self) -> frozenset[str] | None:
        """Return the units that claims have; None when nobody can say. Any thread may ask."""
        try:
            found = [driver.claimed_units() for driver in self._drivers.values()]
        except KataGpuError as error:
            self._troubles["claims"] = str(error)
            return None
        self._troubles.pop("claims", None)
        return frozenset().union(*found)

    def update(self, turned: Turned) -> None:
        """Tell everybody what a turn left; quick, and never waits."""
        self._offered.update(turned)
        if self._plugins is not None:
            self._tell(self._plugins)

    def hear(self) -> None:
        """Something was heard: tell of what does not stand any more before a turn finds out why.

        A device is taken from nobody by it, and is back when it stands again.
        """
        if self._plugins is not None:
            if self._offered.look_again():
                self._tell(self._plugins)
            self._plugins.hear()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve kubelet and Kata, and write to the API server, until the block ends."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            if self._guardian is not None:  # before kubelet can give a pod what Kata asks for
                self._begin("pod resources", partial(self._answer_kata, self._guardian))
                await self._kata_was_led.wait()
            plugins = device_plugins.running(self._plugin, Pace(poll_s=_POLL_S))
            self._plugins = await stack.enter_async_context(plugins)
            directory = self._kubernetes.features_directory
            if directory is not None:
                self._label(to_feature_file(self._host.path(directory)), Pacing(start_spread_s=0))
            self._tell(self._plugins)
            if self._kubernetes.api:
                self._begin("API server", self._speak_to_server)
            yield

    @property
    def answered(self) -> Mapping[str, int]:
        """How often Kata was answered, by where the answer came from."""
        return {} if self._proxy is None else self._proxy.answered

    def status(self) -> dict[str, Any]:
        """Return how each part is, for the status document."""
        plugins = () if self._plugins is None else self._plugins.states
        return {
            "node": self._node,
            "device_plugins": [
                {"resource": s.resource, "registered_at": s.registered_at, "problem": s.problem}
                for s in plugins
            ],
            "dra_drivers": [
                {
                    "driver": name,
                    "standing": self._drivers[name].registration.standing,
                    "problem": self._drivers[name].registration.error or None,
                }
                for name in DRIVERS
                if name in self._chores
            ],
            "troubles": self._all_troubles(),
        }

    def _all_troubles(self) -> dict[str, str]:
        found = dict(self._troubles)
        for name, publisher in self._publishers.items():
            if publisher.trouble is not None:
                found[f"slices of {name}"] = publisher.trouble
        for what, part in (("labels", self._labels), ("events", self._events)):
            if part is not None and part.trouble is not None:
                found[what] = part.trouble
        return found

    def _tell(self, plugins: DevicePlugins) -> None:
        turned, devices = self._offered.turned, self._offered.devices
        if turned is None:
            return
        plugins.update(devices)
        if self._client is not None:
            for name in self._wanted(turned.blueprint, devices):
                self._begin(name, partial(self._drive, self._drivers[name]))
                self._publish(self._client, name)
        for driver in self._drivers.values():
            driver.changed()
        for publisher in self._publishers.values():
            publisher.update(devices)
        self._tell_of_the_node(turned)
        if self._proxy is not None and self._guardian is not None:
            asking.hold(self._guardian)

    def _tell_of_the_node(self, turned: Turned) -> None:
        if self._labels is not None:
            self._labels.update(turned.labels)
        if self._events is not None:
            self._events.report(happenings(self._told, turned.state))
            self._told = turned.state

    def _wanted(self, blueprint: Blueprint, devices: Iterable[Device]) -> Iterable[str]:
        """Return the drivers that have, or may come to have, something to do."""
        found = {device.driver for device in devices if device.door is Door.DRA}
        if any(pool.door is Door.DRA for pool in blueprint.pools):
            found.add(GPU_DRIVER)
        for name, driver in self._drivers.items():
            if name not in found and self._has_claims(driver):
                found.add(name)
        return sorted(found)

    def _has_claims(self, driver: DraDriver) -> bool:
        try:
            return bool(driver.claims())
        except KataGpuError:
            return True  # and says so when it is asked for one

    # The parts

    def _plugin(self, resource: str) -> DevicePlugin:
        return DevicePlugin(
            resource,
            self._host.path(self._kubernetes.kubelet_directory),
            self._suffix,
            verify=self._verify,
            prefer=preference.prefer,
        )

    def _driver(self, name: str) -> DraDriver:
        settings = DriverSettings(
            driver=name,
            pool=self._node,
            agent=self._agent,
            kubelet=self._host.path(self._kubernetes.kubelet_directory),
            boot_id=boot.identity(self._host),
            metadata=(
                self._host.path(self._cdi_directory) if self._kubernetes.device_metadata else None
            ),
        )
        agent = Agent(
            get_claim=self._claim,
            devices=lambda: self._offered.by_name,
            bring=self._bring,
            let_go=self._let_go,
        )
        return DraDriver(settings, agent)

    def _publish(self, api: KubernetesClient, name: str) -> None:
        if name not in self._publishers:
            publisher = SlicePublisher(api, name, self._node, _RULES, self._pacing)
            self._publishers[name] = publisher
            self._begin(f"slices of {name}", publisher.run)

    def _label(self, write: Write, pacing: Pacing) -> None:
        self._labels = LabelPublisher(write, pacing)
        self._begin("labels", self._labels.run)

    async def _drive(self, driver: DraDriver) -> None:
        async with driver.serve():
            await self._for_ever()

    async def _answer_kata(self, guardian: Guardian) -> None:
        try:
            async with asking.answering(guardian, self._ours) as proxy:
                self._proxy = proxy
                self._kata_was_led.set()
                await self._for_ever()
        finally:
            self._proxy = None
            self._kata_was_led.set()

    async def _speak_to_server(self) -> None:
        agent = f"kata-gpu/{__version__}"
        async with client.connected(self._kubernetes.kubeconfig, agent=agent) as connected:
            self._client = connected
            if self._labels is None:
                self._label(to_node(connected, self._node), self._pacing)
            if self._events is None:
                self._events = EventPublisher(connected, self._node, self._pacing)
                self._begin("events", self._events.run)
            if self._plugins is not None:
                self._tell(self._plugins)
            try:
                await self._for_ever()
            finally:
                self._client = None

    def _begin(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have *work* done until the end, again after each failure; once for each name."""
        if what not in self._chores:
            self._chores[what] = asyncio.create_task(self._keep(what, work), name=what)

    async def _keep(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except KataGpuError as error:
                if self._troubles.get(what) != str(error):
                    log.warning("%s: %s", what, error)
                self._troubles[what] = str(error)
            except Exception as error:
                log.exception("%s failed; it is begun again", what)
                self._troubles[what] = repr(error)
            await asyncio.sleep(_RETRY_S)

    async def _for_ever(self) -> None:
        """Wait until the chore that calls this is ended: it works."""
        task = asyncio.current_task()
        if task is not None:
            self._troubles.pop(task.get_name(), None)
        await asyncio.Event().wait()

    async def _end(self) -> None:
        """End every chore; those that came last, which need the others, first."""
        for chore in reversed(self._chores.values()):
            chore.cancel()
            await asyncio.gather(chore, return_exceptions=True)

    # What they ask of the agent

    async def _verify(self, ids: Sequence[str]) -> Mapping[str, Device]:
        try:
            return self._offered.verified(ids)
        except HostError:
            self._wake()
            raise

    async def _claim(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        if self._client is None:
            raise HostError(f"cannot read claim {name}: the API server is not reached yet")
        self._hands_change()
        try:
            return await self._client.get_claim(namespace, name)
        except NotFoundError:
            return None

    async def _bring(self, units: frozenset[str]) -> Mapping[str, Device]:
        await self._look()
        devices = self._offered.by_name
        for device in devices.values():
            if not device.is_ready and not device.is_bundle and units.intersection(device.units):
                raise HostError(f"cannot bind {device.id} for a pod: {device.reason}")
        return devices

    async def _let_go(self, _units: frozenset[str]) -> None:
        self._hands_change()
        await self._look()

    def _hands_change(self) -> None:
        """Have Kata told nothing of before: a device goes to a pod, or leaves one."""
        if self._proxy is not None:
            self._proxy.forget()

    def _ours(self) -> Ours | None:
        return Ours.of(self._offered.devices, self._node)
