"""What this node has, offered to Kubernetes: at kubelet's sockets, and to the API server.

Each part stands by itself: without an API server kubelet is served all the same, but for
claims, which are read there; what fails is said in status and tried again.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kata_gpu.agent import asking
from kata_gpu.agent.chores import Chores
from kata_gpu.agent.offered import Offered, Turned
from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.host import Host, paths
from kata_gpu.host.detour import Guardian
from kata_gpu.model.kubernetes import DRIVERS, Device
from kata_gpu.plan.kubernetes import preference
from kata_gpu.publish.kubelet import device_plugins
from kata_gpu.publish.kubelet.device_plugin import DevicePlugin
from kata_gpu.publish.kubelet.device_plugins import DevicePlugins
from kata_gpu.publish.kubelet.kata_devices import Ours
from kata_gpu.publish.kubelet.registration import Pace, new_suffix
from kata_gpu.settings.agent import Kubernetes, Settings, node_name

if TYPE_CHECKING:  # claims and the API server are for who has them, and after kubelet's plugins
    from kata_gpu.agent.cluster import Cluster, Look
    from kata_gpu.publish.kubelet.pod_resources import Proxy
    from kata_gpu.publish.kubernetes.node import LabelPublisher

_POLL_S: Final = 10.0
"""How often kubelet's sockets are looked at where nothing tells of them."""


class Publishing:
    """All that Kubernetes hears of this node; :meth:`serve` it after the first turn."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        kubernetes: Kubernetes,
        look: "Look",
        wake: Callable[[], None],
        *,
        guardian: Guardian | None = None,
    ) -> None:
        self._host = host
        self._cdi_directory = settings.cdi_directory
        self._kubernetes = kubernetes
        self._kubelet = host.path(kubernetes.kubelet_directory)
        self._look = look
        self._wake = wake
        self._guardian = guardian
        self._node = node_name(kubernetes)
        self._suffix = new_suffix()
        self._offered = Offered(host, self._hands_change)
        self._chores = Chores()
        self._plugins: DevicePlugins | None = None
        self._proxy: Proxy | None = None
        self._kata_was_led = asyncio.Event()
        self._labels: LabelPublisher | None = None
        """Who writes them to a file; on the Node they are the cluster's part."""

        self._cluster = self._new_cluster() if self._may_have_claims() else None
        """None until there is use for it."""

    def claimed(self) -> frozenset[str] | None:
        """Return the units that claims have; None when nobody can say. Any thread may ask."""
        if self._cluster is None:
            return frozenset()
        try:
            found = self._cluster.claimed()
        except KataGpuError as error:
            self._chores.troubles["claims"] = str(error)
            return None
        self._chores.troubles.pop("claims", None)
        return found

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
            stack.push_async_callback(self._chores.end)
            if self._guardian is not None:  # before kubelet can give a pod what Kata asks for
                self._chores.begin("pod resources", partial(self._answer_kata, self._guardian))
                await self._kata_was_led.wait()
            plugins = device_plugins.running(self._plugin, Pace(poll_s=_POLL_S))
            self._plugins = await stack.enter_async_context(plugins)
            self._label_a_file()
            self._tell(self._plugins)
            if self._kubernetes.api:
                self._chores.begin("API server", self._speak_to_server)
            yield

    @property
    def answered(self) -> Mapping[str, int]:
        """How often Kata was answered, by where the answer came from."""
        return {} if self._proxy is None else self._proxy.answered

    def status(self) -> dict[str, Any]:
        """Return how each part is, for the status document."""
        plugins = () if self._plugins is None else self._plugins.states
        cluster, labels = self._cluster, self._labels
        return {
            "node": self._node,
            "device_plugins": [
                {"resource": s.resource, "registered_at": s.registered_at, "problem": s.problem}
                for s in plugins
            ],
            "dra_drivers": [] if cluster is None else cluster.drivers(),
            "troubles": {
                **self._chores.troubles,
                **({} if cluster is None else cluster.troubles()),
                **({} if labels is None or labels.trouble is None else {"labels": labels.trouble}),
            },
        }

    def _tell(self, plugins: DevicePlugins) -> None:
        turned = self._offered.turned
        if turned is None:
            return
        plugins.update(self._offered.devices)
        if self._cluster is not None:
            self._cluster.tell(turned)
        if self._labels is not None:
            self._labels.update(turned.labels)
        if self._proxy is not None and self._guardian is not None:
            asking.hold(self._guardian)

    # The parts

    def _plugin(self, resource: str) -> DevicePlugin:
        return DevicePlugin(
            resource, self._kubelet, self._suffix, verify=self._verify, prefer=preference.prefer
        )

    def _may_have_claims(self) -> bool:
        """Tell whether a driver of ours was ever served here: claims may have units then."""
        own = map(self._kubernetes.plugin_directory, DRIVERS)
        try:
            return any(paths.is_there(self._host.path(directory)) for directory in own)
        except HostError:  # who reads the claims says so
            return True

    def _new_cluster(self) -> "Cluster":
        from kata_gpu.agent.cluster import Cluster  # noqa: PLC0415 - see above

        return Cluster(
            self._host,
            self._kubernetes,
            self._offered,
            self._chores,
            self._look,
            cdi_directory=self._cdi_directory,
        )

    def _label_a_file(self) -> None:
        directory = self._kubernetes.features_directory
        if directory is None:
            return
        from kata_gpu.publish.kubernetes import node, pacing  # noqa: PLC0415 - see above

        write = node.to_feature_file(self._host.path(directory))
        self._labels = node.LabelPublisher(write, pacing.Pacing(start_spread_s=0))
        self._chores.begin("labels", self._labels.run)

    async def _answer_kata(self, guardian: Guardian) -> None:
        try:
            async with asking.answering(guardian, self._ours) as proxy:
                self._proxy = proxy
                self._kata_was_led.set()
                await self._chores.go_on()
        finally:
            self._proxy = None
            self._kata_was_led.set()

    async def _speak_to_server(self) -> None:
        if self._cluster is None:  # imported meanwhile, so that kubelet does not wait for it
            await asyncio.to_thread(importlib.import_module, "kata_gpu.agent.cluster")
            self._cluster = self._new_cluster()
        await self._cluster.speak()

    # What they ask of the agent

    async def _verify(self, ids: Sequence[str]) -> Mapping[str, Device]:
        try:
            return self._offered.verified(ids)
        except HostError:
            self._wake()
            raise

    def _hands_change(self) -> None:
        """Have Kata told nothing of before: a device goes to a pod, or leaves one."""
        if self._proxy is not None:
            self._proxy.forget()

    def _ours(self) -> Ours | None:
        return Ours.of(self._offered.devices, self._node)
