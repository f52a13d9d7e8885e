"""What an agent does for its device plugin and nothing else, as a process of its own.

``python -m tests.bench.plugin_process ROOT``: looks at the node below ROOT, offers its GPUs that
are on vfio-pci, and follows their device nodes and kubelet's directory until SIGTERM.
"""

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kata_gpu.discover import standing
from kata_gpu.discover.inventory import collect
from kata_gpu.errors import VerificationError
from kata_gpu.host import Host
from kata_gpu.host.watches import Watches
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.kubernetes import GPU_DRIVER, Device, Door
from kata_gpu.model.pci import PciFunction
from kata_gpu.model.report import UnitFunction, UnitStatus
from kata_gpu.model.unit import UnitState
from kata_gpu.plan.kubernetes.preference import prefer
from kata_gpu.publish.kubelet.device_plugin import DevicePlugin
from kata_gpu.publish.kubelet.device_plugins import DevicePlugins, running
from kata_gpu.publish.kubelet.registration import Pace, new_suffix

RESOURCE: Final = "nvidia.com/pgpu"
KUBELET: Final = "kubelet"  # short: a socket's path is
NODES: Final = "dev/vfio"


class _Node:
    """The GPUs as they were found, and a look at whether they still stand."""

    def __init__(self, host: Host, found: Inventory) -> None:
        self._host = host
        self._groups = found.by_group()
        passed = [
            f for f in found.functions if f.identity.is_gpu and f.binding.driver == "vfio-pci"
        ]
        self._units = {unit.id: unit for unit in map(_unit, passed)}
        self._devices = {str(f.address): _device(f) for f in passed}

    def devices(self) -> tuple[Device, ...]:
        """Return all of them, healthy where the device node is there."""
        return tuple(
            replace(device, is_healthy=all(self._host.path(n).exists() for n in device.nodes))
            for device in self._devices.values()
        )

    async def verify(self, ids: Sequence[str]) -> Mapping[str, Device]:
        """Look at each anew, as an agent does for Allocate."""
        for name in ids:
            if (fault := standing.fault(self._host, self._units[name], self._groups)) is not None:
                raise VerificationError(f"cannot give {name}: {fault}")
        return {name: self._devices[name] for name in ids}


def _unit(function: PciFunction) -> UnitStatus:
    return UnitStatus(
        id=str(function.address),
        state=UnitState.AVAILABLE,
        reason="available",
        pool="gpus",
        resource=RESOURCE,
        groups=(function.iommu_group or 0,),
        numa_node=function.numa_node,
        functions=(UnitFunction(address=function.address, label="GPU", binding=function.binding),),
        nodes=(f"/{NODES}/{function.iommu_group}",),
        holders=(),
        cleaned=None,
    )


def _device(function: PciFunction) -> Device:
    ident = str(function.address)
    return Device(
        id=ident,
        name=ident.replace(":", "-").replace(".", "-"),
        door=Door.DEVICE_PLUGIN,
        driver=GPU_DRIVER,
        resource=RESOURCE,
        units=(ident,),
        is_healthy=True,
        is_ready=True,
        reason="available",
        nodes=(f"/{NODES}/{function.iommu_group}",),
        numa_node=function.numa_node,
        root=function.root,
        path=tuple(map(str, function.bridges)),
    )


async def main(root: Path) -> None:
    """Offer the node's GPUs until SIGTERM."""
    host = Host.at(root)
    node = _Node(host, collect(host))
    suffix = new_suffix()

    def make(resource: str) -> DevicePlugin:
        return DevicePlugin(resource, root / KUBELET, suffix, verify=node.verify, prefer=prefer)

    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    with Watches.open() as watches:
        watches.watch((root / KUBELET / "device-plugins", root / NODES))
        async with running(make, Pace(poll_s=10.0)) as plugins:
            loop.add_reader(watches.fileno(), _hinted, watches, node, plugins)
            plugins.update(node.devices())
            await stopped.wait()
            loop.remove_reader(watches.fileno())


def _hinted(watches: Watches, node: _Node, plugins: DevicePlugins) -> None:
    watches.drain()
    plugins.update(node.devices())
    plugins.hear()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
