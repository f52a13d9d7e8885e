"""What Kata makes of the device nodes: those under /dev/vfio are what it gives to a VM.

Source: Kata 4.1.0: RT/pkg/device/manager/utils.go, RT/virtcontainers/container.go;
RS/crates/virt_container/src/sandbox.rs, vfio_device/core.rs, pod-resources-rs.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kata_gpu.model.cdi import NodeKind, device_nodes, host_path, members
from kata_gpu.plan.cdi.rules import Breach

_VFIO: Final = "/dev/vfio/"
_CONTROL: Final = "/dev/vfio/vfio"
_DEVICES: Final = "/dev/vfio/devices/"
_HOST: Final = re.compile(r"/dev/vfio/(\d+|devices/vfio\d+)", re.ASCII)


def breaches(tree: Mapping[str, Any], found: Mapping[str, NodeKind]) -> Iterator[Breach]:
    """Yield what keeps a device from a VM, as rule, place and finding."""
    for number, node in device_nodes(tree):
        place = _place("", number)
        yield from _there(node, place, found)
        if host_path(node).startswith(_VFIO):
            yield "shared-edits", place, "it is for all devices, which runtime-rs does not look at"
    for index, device in members(tree.get("devices")):
        for number, node in device_nodes(device):
            place = _place(f"devices[{index}].", number)
            yield from _there(node, place, found)
            yield from _vfio(node, place)


def _place(at: str, number: int) -> str:
    return f"{at}containerEdits.deviceNodes[{number}]"


def _there(node: Mapping[str, Any], place: str, found: Mapping[str, NodeKind]) -> Iterator[Breach]:
    path = host_path(node)
    key = "hostPath" if node.get("hostPath") else "path"
    match found.get(path):
        case NodeKind.MISSING:
            yield "node-missing", f"{place}.{key}", f"nothing is at {path[:200]}"
        case NodeKind.OTHER:
            yield "node-no-device", f"{place}.{key}", f"what is at {path[:200]} is no device"
        case NodeKind.DEVICE | None:
            return


def _vfio(node: Mapping[str, Any], place: str) -> Iterator[Breach]:
    host, inside = host_path(node), node.get("path")
    if not host.startswith(_VFIO) or not isinstance(inside, str):
        return
    if host == _CONTROL:
        yield "control-node", place, "runtime-rs takes the control node /dev/vfio/vfio for a group"
        return
    if not _HOST.fullmatch(host):
        yield "group-name", place, f"runtime-rs finds no group or device in {host[:200]}"
    if not inside.startswith(_VFIO) or (
        inside.startswith(_CONTROL) and not inside.startswith(_DEVICES)
    ):
        yield (
            "container-path",
            f"{place}.path",
            f"Kata's Go runtime passes over {inside[:200]} in the container",
        )
