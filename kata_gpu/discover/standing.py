"""Whether a unit still stands as the last turn left it: what an allocation is checked by.

kubelet admits no other pod meanwhile, so it is a few links and one stat for each device node:
nothing that takes a lock in the kernel, and nothing that is read twice. What is to be found is
put in words once for each turn.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.report import UnitStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is to be found of a unit."""

    drivers: tuple[tuple[str, str | None], ...]
    """Links to the drivers of its functions, below sysfs, and the drivers' names."""

    members: tuple[tuple[str, list[str]], ...]
    """Folders of its groups, below sysfs, and the addresses in them, sorted as text."""

    nodes: tuple[tuple[str, Path], ...]
    """Device nodes, as the host has them and where they are found."""

    @classmethod
    def of(cls, host: Host, unit: UnitStatus, groups: Mapping[int, IommuGroup]) -> Self:
        """Return it for a unit and the groups of the same turn."""
        return cls(
            drivers=tuple(
                (f"bus/pci/devices/{function.address}/driver", function.binding.driver)
                for function in unit.functions
            ),
            members=tuple(
                (
                    f"kernel/iommu_groups/{number}/devices",
                    sorted(map(str, groups[number].members)) if number in groups else [],
                )
                for number in unit.groups
            ),
            nodes=tuple((node, host.path(node)) for node in unit.nodes),
        )

    def fault(self, host: Host) -> str | None:
        """Return why a VM would not get the unit now; None when nothing has changed."""
        try:
            for link, driver in self.drivers:
                if (now := host.sysfs.link(link)) != driver:
                    address = link.split("/")[-2]
                    return f"{address} is on {now or 'no driver'}, not on {driver}"
            for folder, then in self.members:
                if (found := host.sysfs.names(folder)) != then:
                    number = folder.split("/")[-2]
                    changed = ", ".join(sorted(set(found) ^ set(then)))
                    return f"group {number} is not what it was: {changed} came or went"
        except HostError as error:
            return str(error)
        return next(filter(None, (_node(node, path) for node, path in self.nodes)), None)


def _node(node: str, path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"cannot find {node}: {error.strerror}"
    return None if stat.S_ISCHR(mode) else f"{node} is no character device"
