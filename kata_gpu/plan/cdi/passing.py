"""What Kata makes of the device nodes: those under /dev/vfio are what it gives to a VM.

Source: Kata 4.1.0: RT/pkg/device/manager/utils.go, RT/virtcontainers/container.go;
RS/crates/virt_container/src/sandbox.rs, vfio_device/core.rs, pod-resources-rs.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kata_gpu.model.cdi import NodeKind

Breach = tuple[str, str, str]
Node = tuple[str, Mapping[str, Any]]
"""Its place in the document, and itself."""

_VFIO: Final = "/dev/vfio/"
_CONTROL: Final = "/dev/vfio/vfio"
_DEVICES: Final = "/dev/vfio/devices/"
_HOST: Final = re.compile(r"/dev/vfio/(\d+|devices/vfio\d+)", re.ASCII)


def breaches(tree: Mapping[str, Any], found: Mapping[str, NodeKind]) -> Iterator[Breach]:
    """Yield what keeps a device from a VM, as rule, place and finding."""
    shared = list(nodes(tree, ""))
    for place, node in shared:
        yield from _there(node, place, found)
        if host_path(node).startswith(_VFIO):
            yield "shared-edits", place, "it is for all devices, which runtime-rs does not look at"
    for at, device in _devices(tree):
        for place, node in nodes(device, at):
            yield from _there(node, place, found)
            yield from _vfio(node, place)


def nodes(table: Mapping[str, Any], at: str) -> Iterator[Node]:
    """Yield the device nodes of the edits of a spec or of a device."""
    edits = table.get("containerEdits")
    listed = edits.get("deviceNodes") if isinstance(edits, Mapping) else None
    for number, node in enumerate(listed if isinstance(listed, tuple) else ()):
        if isinstance(node, Mapping):
            yield f"{at}containerEdits.deviceNodes[{number}]", node


def host_path(node: Mapping[str, Any]) -> str:
    """Return where a node is on the host; empty when it does not say."""
    path = node.get("hostPath") or node.get("path")
    return path if isinstance(path, str) else ""


def _devices(tree: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    devices = tree.get("devices")
    for number, device in enumerate(devices if isinstance(devices, tuple) else ()):
        if isinstance(device, Mapping):
            yield f"devices[{number}].", device


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
