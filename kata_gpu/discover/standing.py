"""Whether a unit still stands as the last turn left it: what an allocation is checked by.

kubelet admits no other pod meanwhile, so it is a few links and one stat for each device node:
nothing that takes a lock in the kernel, and nothing that is read twice.
"""

import stat
from collections.abc import Mapping
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.report import UnitFunction, UnitStatus

_GROUPS: Final = "kernel/iommu_groups"


def fault(host: Host, unit: UnitStatus, groups: Mapping[int, IommuGroup]) -> str | None:
    """Return why a VM would not get *unit* now, though it could after the last turn.

    *groups* are those of that turn. None when nothing has changed.
    """
    try:
        return (
            next(filter(None, (_driver(host, function) for function in unit.functions)), None)
            or next(filter(None, (_members(host, groups.get(n), n) for n in unit.groups)), None)
            or next(filter(None, (_node(host, node) for node in unit.nodes)), None)
        )
    except HostError as error:
        return str(error)


def _driver(host: Host, function: UnitFunction) -> str | None:
    driver = host.sysfs.link(f"bus/pci/devices/{function.address}/driver")
    if driver == function.binding.driver:
        return None
    return f"{function.address} is on {driver or 'no driver'}, not on {function.binding.driver}"


def _members(host: Host, group: IommuGroup | None, number: int) -> str | None:
    now = host.sysfs.names(f"{_GROUPS}/{number}/devices")
    then = [] if group is None else sorted(map(str, group.members))
    if now == then:
        return None
    changed = ", ".join(sorted(set(now) ^ set(then)))
    return f"group {number} is not what it was: {changed} came or went"


def _node(host: Host, node: str) -> str | None:
    try:
        mode = host.path(node).stat().st_mode
    except OSError as error:
        return f"cannot find {node}: {error.strerror}"
    return None if stat.S_ISCHR(mode) else f"{node} is no character device"
