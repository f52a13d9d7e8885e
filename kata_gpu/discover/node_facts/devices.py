"""The device nodes that a VM opens, against the devices that the kernel shows.

A node in a container's /dev may be missing, a file, or of a number that meant another
device in an earlier boot.
"""

from kata_gpu.discover.node_facts.known import known
from kata_gpu.host import Host, paths
from kata_gpu.model.node_facts import DeviceFacts, DeviceNode

_CONTAINER = "class/misc/vfio"


def read(host: Host) -> DeviceFacts:
    """Return all of VFIO's and iommufd's."""
    return DeviceFacts(
        iommufd=known(lambda: _node(host, "class/misc/iommu", "/dev/iommu")),
        groups=known(lambda: _groups(host)),
        cdevs=known(lambda: _cdevs(host)),
        bound=known(lambda: len(host.sysfs.names("class/vfio-dev"))),
    )


def _groups(host: Host) -> tuple[DeviceNode, ...]:
    container = (_node(host, _CONTAINER, "/dev/vfio/vfio"),)
    return (container if host.sysfs.exists(_CONTAINER) else ()) + tuple(
        _node(host, f"class/vfio/{name}", f"/dev/vfio/{name}")
        for name in host.sysfs.names("class/vfio")
    )


def _cdevs(host: Host) -> tuple[DeviceNode, ...]:
    return tuple(
        _node(host, f"class/vfio-dev/{name}", f"/dev/vfio/devices/{name}")
        for name in host.sysfs.names("class/vfio-dev")
        if host.sysfs.exists(f"class/vfio-dev/{name}/dev")
    )


def _node(host: Host, device: str, path: str) -> DeviceNode:
    shown = f"{device}/dev"
    found = paths.status(host.path(path))
    return DeviceNode(
        path=path,
        number=host.sysfs.read(shown) if host.sysfs.exists(shown) else None,
        node=found.number if found else None,
        exists=found is not None,
    )
