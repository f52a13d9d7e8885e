"""The device-plugin side of an agent, on devices that a test takes away and gives back."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import VerificationError
from kata_gpu.model.kubernetes import GPU_DRIVER, Device, Door
from kata_gpu.plan.kubernetes.preference import prefer
from kata_gpu.publish.kubelet.device_plugin import DevicePlugin, Grant
from kata_gpu.publish.kubelet.device_plugins import DevicePlugins, running
from kata_gpu.publish.kubelet.registration import Pace

RESOURCE: Final = "nvidia.com/pgpu"
PACE: Final = Pace(poll_s=0.1, watch_s=2.0)
"""Faster than an agent's, for tests in which nobody gives hints."""


def gpu(number: int, **changes: Any) -> Device:
    """Return a GPU that is ready: four to a switch, and two switches to a NUMA node."""
    ident = f"0000:{number + 0x41:02x}:00.0"
    made = Device(
        id=ident,
        name=ident.replace(":", "-").replace(".", "-"),
        door=Door.DEVICE_PLUGIN,
        driver=GPU_DRIVER,
        resource=RESOURCE,
        units=(ident,),
        is_healthy=True,
        is_ready=True,
        reason="on VFIO and in the CDI spec",
        nodes=(f"/dev/vfio/devices/vfio{number}",),
        numa_node=number // 8,
        root=f"pci0000:{number // 8 * 0x40 + 0x40:02x}",
        path=(f"0000:{number // 8 * 0x40 + 0x40:02x}:01.0", f"0000:{number // 4:02x}:00.0"),
    )
    return replace(made, **changes)


def gpus(count: int) -> tuple[Device, ...]:
    return tuple(gpu(number) for number in range(count))


class PluginAgent:
    """What a node has, and the plugins that tell kubelet of it."""

    plugins: DevicePlugins

    def __init__(self) -> None:
        self.looks = 0
        """How often Allocate had the node looked at."""

        self.look = asyncio.Event()
        """Clear it to have such a look hang."""

        self.look.set()
        self._truth: dict[str, Device] = {}

    def has(self, *devices: Device) -> None:
        """The node has these from now on, and kubelet is told."""
        self.becomes(*devices)
        self.plugins.update(devices)

    def becomes(self, *devices: Device) -> None:
        """The node has these from now on, and nobody has noticed."""
        self._truth.clear()
        self._truth.update({device.id: device for device in devices})

    async def verify(self, ids: Sequence[str]) -> Mapping[str, Device]:
        """Look at the node, as it is and not as kubelet was told."""
        self.looks += 1
        await self.look.wait()
        if lost := [name for name in ids if name not in self._truth]:
            raise VerificationError(f"cannot find {', '.join(lost)} on the node")
        return {name: self._truth[name] for name in ids}

    def is_registered(self) -> bool:
        return all(state.registered_at is not None for state in self.plugins.states)

    @property
    def problem(self) -> str:
        return "; ".join(state.problem or "" for state in self.plugins.states)


@asynccontextmanager
async def agent(
    root: Path,
    *devices: Device,
    suffix: str = "1",
    pace: Pace = PACE,
    grant: Grant = Grant(),  # noqa: B008 - frozen
) -> AsyncIterator[PluginAgent]:
    """Run an agent's plugins, with *root* as kubelet's directory, until the block ends."""
    ours = PluginAgent()

    def make(resource: str) -> DevicePlugin:
        return DevicePlugin(resource, root, suffix, verify=ours.verify, prefer=prefer, grant=grant)

    async with running(make, pace) as ours.plugins:
        if devices:
            ours.has(*devices)
        yield ours
