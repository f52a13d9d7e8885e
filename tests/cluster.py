"""A node of a cluster: its fake kernel, its kubelet, the API server, and the agent between them."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from kata_gpu.agent import asking
from kata_gpu.host.detour import Guardian
from kata_gpu.host.watches import Watches
from kata_gpu.publish.kubelet.protos import pod_resources_v1_pb2 as pods
from kata_gpu.publish.kubelet.sockets import Client
from kata_gpu.settings.agent import Kubernetes
from tests import memory, running
from tests.api_server import ApiServer, api_server
from tests.kernel.fake import FakeKernel
from tests.kubelet.claims import NAMESPACE, POOL, allocated
from tests.kubelet.device_manager import DeviceManager
from tests.kubelet.dra_manager import DraManager
from tests.kubelet.pod_resources import PodResources
from tests.passthrough import SETTINGS, TEXT
from tests.running import Agent, Events
from tests.waiting import WAIT_S

RESOURCE: Final = "example.com/pgpu"
THROUGH_DRA: Final = TEXT.replace("[[pool.select]]", 'offer = "dra"\n[[pool.select]]')
ON_CLAIM: Final = TEXT.replace(
    "[[pool.select]]", 'offer = "dra"\nbind = "on-claim"\n[[pool.select]]'
)
BOOT: Final = "01234567-89ab-4def-8123-456789abcdef"


@dataclass
class Claims:
    """The API server's claims, where kubelet and the agent find them."""

    api: ApiServer
    number: int = 0

    @property
    def objects(self) -> dict[str, dict[str, Any]]:
        return {c["metadata"]["name"]: c for c in self.api.objects("ResourceClaim")}

    def give(self, name: str, *devices: str) -> None:
        """Have a claim that was allocated these devices of this node."""
        self.number += 1
        self.api.put(
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "ResourceClaim",
                "metadata": {"namespace": NAMESPACE, "name": name},
                "spec": {"devices": {"requests": [{"name": "gpu"}]}},
                "status": {"allocation": {"devices": {"results": [allocated(d) for d in devices]}}},
            }
        )


class Cluster:
    """One node; :meth:`run` lets its agent live."""

    def __init__(self, root: Path, kernel: FakeKernel, api: ApiServer) -> None:
        self.kernel = kernel
        self.api = api
        self.claims = Claims(api)
        self.kubelet = root / "k"
        self.plugins = DeviceManager(self.kubelet)
        self.dra = DraManager(self.kubelet, self.claims)  # type: ignore[arg-type]
        self.pods = PodResources()
        self.settings = replace(
            running.QUICK,
            kubernetes=Kubernetes(
                node_name=POOL,
                kubelet_directory="/k",
                kubeconfig=str(api.kubeconfig(root / "kubeconfig")),
                start_spread_s=0.0,
            ),
        )
        boot = kernel.host.path("/proc/sys/kernel/random/boot_id")
        boot.parent.mkdir(parents=True)
        boot.write_text(f"{BOOT}\n")
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": POOL, "labels": {}}})

    def run(self, script: Callable[[Agent], Awaitable[None]]) -> None:
        """Let kubelet and the agent run, follow the script, and end the agent with SIGTERM."""
        events = Events()

        async def with_kubelet(agent: Agent) -> None:
            async with AsyncExitStack() as stack:
                (self.kubelet / "pod-resources").mkdir(parents=True, exist_ok=True)
                await self.plugins.start()
                stack.push_async_callback(self._stop_plugins)
                self.dra = DraManager(self.kubelet, self.claims)  # type: ignore[arg-type]
                await stack.enter_async_context(self.dra.run())
                at = self.kubelet / "pod-resources/kubelet.sock"
                await stack.enter_async_context(self.pods.serve(at))
                await script(agent)

        try:
            with Watches.open() as watches:
                running.run(
                    self.kernel,
                    events,
                    with_kubelet,
                    self.settings,
                    watches=watches,
                    guardian=self._guardian(),
                )
        finally:
            events.close()

    def _guardian(self) -> Guardian | None:
        """Return one without a process: this one has threads, and is not killed."""
        way = asking.detour(self.kernel.host, self.settings)
        return None if way is None else Guardian(way)

    async def _stop_plugins(self) -> None:
        if self.plugins.is_started:
            await self.plugins.stop()

    def slices(self) -> list[dict[str, Any]]:
        return self.api.objects("ResourceSlice")

    def devices(self) -> dict[str, dict[str, Any]]:
        """Return the devices that are published, by name."""
        return {d["name"]: d for s in self.slices() for d in s["spec"].get("devices", ())}

    async def pod_resources(self, name: str) -> list[tuple[str, str]]:
        """Ask as Kata does: at the link of the drop-in; resource and id of each device."""
        link = self.kernel.host.path(self.settings.pod_resources_link)
        client = Client(self.kernel.host.path(str(link.readlink())))
        try:
            answer = await client.ask(
                pods,
                "PodResourcesLister.Get",
                pods.GetPodResourcesRequest(pod_name=name, pod_namespace="default"),
                timeout_s=WAIT_S,
            )
        finally:
            await client.close()
        return [
            (device.resource_name, id_)
            for container in answer.pod_resources.containers
            for device in container.devices
            for id_ in device.device_ids
        ]


@contextmanager
def cluster(build: Callable[[Path], FakeKernel], blueprint: str) -> Iterator[Cluster]:
    """Make a node whose sockets have short paths, and a cluster around it."""
    with TemporaryDirectory(prefix="k", dir=memory.folder()) as folder, api_server() as api:
        kernel = build(Path(folder))
        path = kernel.host.path(SETTINGS.blueprint)
        path.parent.mkdir(parents=True)
        path.write_text(blueprint)
        yield Cluster(Path(folder), kernel, api)
