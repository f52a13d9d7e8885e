"""Refuse to move a device that somebody uses.

An unbind does not ask: it takes a DRM device from under its users, and waits for those of
VFIO and NVIDIA for ever. So whoever has a device node of the unit open keeps it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kata_gpu.errors import HeldError, HostError
from kata_gpu.host import Host, files, procfs
from kata_gpu.model.pci import PciAddress

_DEVICE_MINOR: Final = re.compile(r"^Device Minor:\s+([0-9]{1,3})$", re.MULTILINE)


def refuse_if_held(host: Host, addresses: Iterable[PciAddress]) -> None:
    """Raise HeldError with every holder's pid and command if a node of the unit is open."""
    nodes = [node for address in addresses for node in _nodes(host, address)]
    holders = procfs.openers(host.path("/proc"), nodes)
    if holders:
        who = "; ".join(map(str, holders))
        raise HeldError(f"cannot move it: {who}; it is tried again when they are gone")


def _nodes(host: Host, address: PciAddress) -> list[Path]:
    """Return the device nodes that users of a function open."""
    device = f"bus/pci/devices/{address}"
    sysfs = host.sysfs
    names = [f"dri/{name}" for name in sysfs.names(f"{device}/drm")]
    names += [f"vfio/devices/{name}" for name in sysfs.names(f"{device}/vfio-dev")]
    group = sysfs.link(f"{device}/iommu_group")
    if group is not None:
        names.append(f"vfio/{group}")
    if sysfs.link(f"{device}/driver") == "nvidia":
        names += _nvidia_nodes(host, address)
    return [host.path(f"/dev/{name}") for name in names]


def _nvidia_nodes(host: Host, address: PciAddress) -> list[str]:
    """Return the GPU's own /dev/nvidiaN; every one when its driver does not say which it is."""
    try:
        text = files.read(host.path(f"/proc/driver/nvidia/gpus/{address}/information"))
    except HostError:
        text = None
    minor = _DEVICE_MINOR.search(text or "")
    if minor is not None:
        return [f"nvidia{minor[1]}"]
    return sorted(node.name for node in host.path("/dev").glob("nvidia[0-9]*"))
