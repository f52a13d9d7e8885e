"""What needs an API server: claims, which are read there, and what it is told of this node.

Nothing here changes a device: a claim that needs one bound is recorded, and a turn of the agent
does it.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from kata_gpu.agent.chores import Chores
from kata_gpu.agent.offered import Offered, Turned
from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.host import Host, boot
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.kubernetes import DRIVERS, Device
from kata_gpu.model.report import NodeState
from kata_gpu.plan import kubernetes
from kata_gpu.plan.kubernetes import slices, taints
from kata_gpu.publish.kubelet.dra import DraDriver, DriverSettings
from kata_gpu.publish.kubelet.plugin_registration import Registration, Standing
from kata_gpu.publish.kubelet.preparing import Agent
from kata_gpu.publish.kubernetes import client
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import ApiError, NotFoundError
from kata_gpu.publish.kubernetes.events import EventPublisher, happenings
from kata_gpu.publish.kubernetes.library import USER_AGENT
from kata_gpu.publish.kubernetes.node import LabelPublisher, to_node
from kata_gpu.publish.kubernetes.pacing import Pacing
from kata_gpu.publish.kubernetes.resource_slices import SlicePublisher, SliceRules
from kata_gpu.settings.agent import Kubernetes, node_name

_RULES: Final = SliceRules(settle=taints.settle, plan=slices.plan, differences=slices.differences)

_CLAIM_S: Final = 10.0
"""How long a server that does not answer is asked for a claim; kubelet comes again after 60 s."""

_CLAIM_PAUSE_S: Final = 0.5
"""After the first failure; twice as long after each further one."""

Look = Callable[[], Awaitable[object]]
"""Takes a turn that begins after the call, and tells of it by `Publishing.update`."""


class Cluster:
    """DRA's drivers, and who writes slices, labels and Events; :meth:`speak` begins them."""

    def __init__(
        self,
        host: Host,
        settings: Kubernetes,
        offered: Offered,
        chores: Chores,
        look: Look,
        *,
        cdi_directory: str,
    ) -> None:
        self._host = host
        self._kubernetes = settings
        self._offered = offered
        self._chores = chores
        self._look = look
        self._cdi_directory = cdi_directory
        self._pacing = Pacing(start_spread_s=settings.start_spread_s)
        self._node = node_name(settings)
        self._agent = os.environ.get("POD_UID") or secrets.token_hex(8)
        self._drivers = {name: self._driver(name) for name in DRIVERS}
        self._client: KubernetesClient | None = None
        self._labels: LabelPublisher | None = None
        self._events: EventPublisher | None = None
        self._told: NodeState | None = None
        """What the latest Events were about; None before any."""

        self._publishers: dict[str, SlicePublisher] = {}

    def claimed(self) -> frozenset[str]:
        """Return the units that claims have. Any thread may ask.

        Raises:
            KataGpuError: nobody can say.
        """
        found = [driver.claimed_units() for driver in self._drivers.values()]
        return frozenset().union(*found)

    def tell(self, turned: Turned) -> None:
        """Tell everybody what there is now; quick, and never waits."""
        devices = self._offered.devices
        if self._client is not None:
            for name in self._wanted(turned.blueprint, devices):
                self._chores.begin(name, partial(self._drive, self._drivers[name]))
                self._publish(self._client, name)
        for driver in self._drivers.values():
            driver.changed()
        for publisher in self._publishers.values():
            publisher.update(devices)
        if self._labels is not None:
            self._labels.update(turned.labels)
        if self._events is not None:
            self._events.report(happenings(self._told, turned.state))
            self._told = turned.state

    async def speak(self) -> None:
        """Connect, and have all of it done for as long as the chore goes on.

        Raises:
            HostError: nothing says where the server is, and who we are.
        """
        kubeconfig = self._kubernetes.kubeconfig
        async with client.connected(kubeconfig, agent=USER_AGENT) as connected:
            self._client = connected
            if self._labels is None and self._kubernetes.features_directory is None:
                self._labels = LabelPublisher(to_node(connected, self._node), self._pacing)
                self._chores.begin("labels", self._labels.run)
            if self._events is None:
                self._events = EventPublisher(connected, self._node, self._pacing)
                self._chores.begin("events", self._events.run)
            if self._offered.turned is not None:
                self.tell(self._offered.turned)
            try:
                await self._chores.go_on()
            finally:
                self._client = None

    def drivers(self) -> list[dict[str, Any]]:
        """Return how each driver that is served stands, for the status document."""
        return [
            {
                "driver": name,
                "standing": self._drivers[name].registration.standing,
                "problem": self._problem(self._drivers[name].registration),
            }
            for name in DRIVERS
            if name in self._chores
        ]

    def _problem(self, registration: Registration) -> str | None:
        """Return why kubelet does not know a driver; None when it does."""
        if registration.standing is not Standing.UNKNOWN:
            return registration.error or None
        return (
            f"kubelet has not registered it yet; it looks in plugins_registry of its root, which "
            f"is {self._kubernetes.kubelet_directory} by kubernetes.kubelet_directory in agent.toml"
        )

    def troubles(self) -> dict[str, str]:
        """Return what is not written, and why."""
        found: dict[str, str] = {}
        for name, publisher in self._publishers.items():
            if publisher.trouble is not None:
                found[f"slices of {name}"] = publisher.trouble
        for what, part in (("labels", self._labels), ("events", self._events)):
            if part is not None and part.trouble is not None:
                found[what] = part.trouble
        return found

    def _wanted(self, blueprint: Blueprint, devices: Iterable[Device]) -> Iterable[str]:
        """Return the drivers that have, or may come to have, something to do."""
        found = kubernetes.drivers(blueprint, devices)
        for name, driver in self._drivers.items():
            if name not in found and _has_claims(driver):
                found.add(name)
        return sorted(found)

    def _driver(self, name: str) -> DraDriver:
        settings = DriverSettings(
            driver=name,
            pool=self._node,
            agent=self._agent,
            kubelet=self._host.path(self._kubernetes.kubelet_directory),
            boot_id=boot.identity(self._host),
            cdi_directory=self._host.path(self._cdi_directory),
            device_metadata=self._kubernetes.device_metadata,
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
            self._chores.begin(f"slices of {name}", publisher.run)

    async def _drive(self, driver: DraDriver) -> None:
        async with driver.serve():
            await self._chores.go_on()

    # What a driver asks of the agent

    async def _claim(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        if self._client is None:
            raise HostError(f"cannot read claim {name}: the API server is not reached yet")
        self._offered.on_change()
        client, ends_at = self._client, time.monotonic() + _CLAIM_S
        pause_s = _CLAIM_PAUSE_S
        while True:
            try:
                return await client.get_claim(namespace, name)
            except NotFoundError:
                return None
            except ApiError as error:
                pause_s = max(pause_s, error.retry_after_s or 0.0)
                if not error.is_passing or time.monotonic() + pause_s > ends_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _bring(self, units: frozenset[str]) -> Mapping[str, Device]:
        await self._look()
        devices = self._offered.by_name
        for device in devices.values():
            if not device.is_ready and not device.is_bundle and units.intersection(device.units):
                raise HostError(f"cannot bind {device.id} for a pod: {device.reason}")
        return devices

    async def _let_go(self, _units: frozenset[str]) -> None:
        self._offered.on_change()
        await self._look()


def _has_claims(driver: DraDriver) -> bool:
    try:
        return bool(driver.claims())
    except KataGpuError:
        return True  # and says so when it is asked for one
