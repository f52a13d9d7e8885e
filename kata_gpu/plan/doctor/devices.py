"""Device nodes: does each lead to the device that the kernel shows?"""

from collections.abc import Iterable

from kata_gpu.model.doctor import Answer
from kata_gpu.model.node_facts import DeviceNode, NodeFacts, Unknown
from kata_gpu.plan.doctor.answers import error, info, ok, unknown


def iommufd(facts: NodeFacts) -> Iterable[Answer]:
    """/dev/iommu is what the kernel shows, where it has iommufd."""
    node = facts.devices.iommufd
    if isinstance(node, Unknown):
        yield unknown(node)
    elif node.number is None and not node.exists:
        yield info("this kernel has none loaded; VMs get the nodes of IOMMU groups")
    else:
        yield _judged(node) or ok(f"{node.path} is {node.node}")


def groups(facts: NodeFacts) -> Iterable[Answer]:
    """Each group that VFIO holds has its node, and so has VFIO itself."""
    yield from _all(facts.devices.groups, "VFIO is not loaded yet")


def cdevs(facts: NodeFacts) -> Iterable[Answer]:
    """With iommufd, each function on VFIO has a node of its own."""
    nodes, bound, iommu = facts.devices.cdevs, facts.devices.bound, facts.devices.iommufd
    if isinstance(bound, Unknown):
        yield unknown(bound)
    elif nodes == () and bound and not isinstance(iommu, Unknown) and iommu.exists:
        yield info(
            f"/dev/iommu exists and none of {bound} functions on VFIO has a device of its own "
            f"(no CONFIG_VFIO_DEVICE_CDEV): VMs get the nodes of IOMMU groups"
        )
    else:
        yield from _all(nodes, "no function on VFIO has a device of its own")


def _all(nodes: tuple[DeviceNode, ...] | Unknown, none: str) -> Iterable[Answer]:
    if isinstance(nodes, Unknown):
        yield unknown(nodes)
        return
    faults = [fault for fault in map(_judged, nodes) if fault is not None]
    yield from faults
    if not faults:
        yield ok(", ".join(node.path for node in nodes) or none)


def _judged(node: DeviceNode) -> Answer | None:
    """Return what is wrong with a node; None when it is sound."""
    if not node.exists:
        found = f"{node.path} does not exist"
    elif node.node is None:
        found = f"{node.path} is no character device"
    elif node.number not in {None, node.node}:
        found = f"{node.path} is {node.node}, and the device is {node.number}"
    else:
        return None
    return error(
        found,
        "a VM that opens it gets nothing, or another device than it should",
        "in a container mount the host's /dev or /dev/vfio as a folder; on the host remove what "
        "is there and run udevadm trigger",
    )
