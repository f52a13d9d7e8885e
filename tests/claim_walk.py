"""A claim brings a GPU from its host driver to a pod VM and back: kubelet's part, and Kata's.

``python -m tests.claim_walk FOLDER GPU``, in the lab's guest: in a process of its own, since gRPC's
threads must not be in one that forks.

Around the agent, as the process it is, are a kubelet and an API server; Kata's part, to ask the
socket of its drop-in and to look the answer up in the CDI spec, is done by hand.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from kata_gpu.model.kubernetes import GPU_DRIVER
from kata_gpu.publish.kubelet.protos import pod_resources_v1_pb2 as pods
from kata_gpu.publish.kubelet.sockets import Client
from tests.api_server import api_server
from tests.cluster import Claims
from tests.in_guest import Daemon, at, driver, pool, running_daemon, write_files
from tests.kubelet.claims import POOL
from tests.kubelet.dra_manager import DraManager
from tests.kubelet.pod_resources import PodResources, claim, container
from tests.lab import pod_vm

_TIMEOUT_S: Final = 120.0
_KIND: Final = "example.com/gpu"


def main(folder: Path, gpu: str) -> None:
    """Walk; AssertionError where something does not hold."""
    kubelet, home = folder / "k", driver(gpu)
    with api_server() as api:
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": POOL, "labels": {}}})
        write_files(folder, f'{pool(at(gpu))}offer = "dra"\nbind = "on-claim"\n')
        with (folder / "agent.toml").open("a") as settings:
            settings.write(
                f'[kubernetes]\nnode_name = "{POOL}"\nkubelet_directory = "{kubelet}"\n'
                f'kubeconfig = "{api.kubeconfig(folder / "kubeconfig")}"\nstart_spread_s = 0\n'
            )
        walk = _Walk(folder, gpu, Claims(api))
        with running_daemon(folder) as daemon:
            asyncio.run(walk.run(daemon, home))
        assert [slice_["spec"]["driver"] for slice_ in api.objects("ResourceSlice")] == [GPU_DRIVER]
    assert driver(gpu) == home


class _Walk:
    def __init__(self, folder: Path, gpu: str, claims: Claims) -> None:
        self._folder = folder
        self._gpu = gpu
        self._device = gpu.replace(":", "-").replace(".", "-")
        self._claims = claims
        self._dra = DraManager(folder / "k", claims, every_s=0.2)  # type: ignore[arg-type]
        self._pods = PodResources()

    async def run(self, daemon: Daemon, home: str | None) -> None:
        """Start a pod with a claim, be its Kata, and end it."""
        async with AsyncExitStack() as stack:
            at_ = self._folder / "k/pod-resources/kubelet.sock"
            at_.parent.mkdir(parents=True)
            await stack.enter_async_context(self._dra.run())
            await stack.enter_async_context(self._pods.serve(at_))
            await self._until(self._is_published, "the ResourceSlice")
            await self._until(lambda: bool(self._dra.plugins), "the registration")
            assert driver(self._gpu) == home

            self._claims.give("c", self._device)
            (name,) = await self._dra.start_pod("p", "c")
            assert driver(self._gpu) == "vfio-pci"
            assert (await asyncio.to_thread(daemon.unit, self._gpu))["state"] == "available"
            resources = claim("c", GPU_DRIVER, [(self._device, [name])])
            self._pods.has("default", "p", container("main", claims=[resources]))
            nodes = self._resolved(await self._asked_by_kata())
            report = await asyncio.to_thread(pod_vm.boot, nodes)
            assert [(seen.vendor, seen.device) for seen in report.functions] == [self._ids()]

            await self._dra.stop_pod("p")
            assert driver(self._gpu) == home
            assert (await asyncio.to_thread(daemon.unit, self._gpu))["state"] == "unclaimed"

    def _is_published(self) -> bool:
        slices = self._claims.api.objects("ResourceSlice")
        return any(d["name"] == self._device for s in slices for d in s["spec"].get("devices", ()))

    async def _asked_by_kata(self) -> str:
        """Return the one CDI name that the socket of the drop-in leads to."""
        client = Client(self._folder / "state/pod-resources.sock")
        request = pods.GetPodResourcesRequest(pod_name="p", pod_namespace="default")
        try:
            answer = await client.ask(pods, "PodResourcesLister.Get", request, timeout_s=_TIMEOUT_S)
        finally:
            await client.close()
        (found,) = (d for c in answer.pod_resources.containers for d in c.devices)
        return f"{found.resource_name}={found.device_ids[0]}"

    def _resolved(self, name: str) -> tuple[str, ...]:
        """Return the device nodes of a CDI name, by the specs that are there."""
        kind, _, device = name.partition("=")
        specs = [json.loads(path.read_text()) for path in (self._folder / "cdi").glob("*.json")]
        (found,) = (d for s in specs if s["kind"] == kind for d in s["devices"])
        assert (kind, found["name"]) == (_KIND, device)
        return tuple(node["hostPath"] for node in found["containerEdits"]["deviceNodes"])

    def _ids(self) -> tuple[int, int]:
        folder = Path("/sys/bus/pci/devices") / self._gpu
        vendor, device = (int((folder / name).read_text(), 16) for name in ("vendor", "device"))
        return vendor, device

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while not holds():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"waited in vain for {what}") from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
