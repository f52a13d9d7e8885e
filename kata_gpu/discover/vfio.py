"""Find the VFIO driver that suits each function best: a variant, or vfio-pci.

It costs a megabyte of ``modules.alias``, so it is looked for only by who plans with it or
shows it.
"""

from dataclasses import replace

from kata_gpu.errors import HostError
from kata_gpu.host import Host, modules
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model import vfio
from kata_gpu.model.inventory import Inventory, Problem
from kata_gpu.model.vfio import VFIO_PCI, VfioAlias, VfioDriver


def suited(host: Host, found: Inventory) -> Inventory:
    """Return the inventory with the VFIO driver that suits each of its endpoints best.

    Where ``modules.alias`` cannot be read that is a problem in it, and vfio-pci.
    """
    endpoints = [function for function in found.functions if not function.is_bridge]
    if not endpoints:
        return found
    problems: list[Problem] = []
    aliases = _aliases(host, found.platform.kernel_release, problems)
    names = {f.address: vfio.best_module(aliases, vfio.ids(f)) for f in endpoints}
    loaded = {name: _driver(host.sysfs, name, problems) for name in sorted(set(names.values()))}
    return replace(
        found,
        vfio_drivers=tuple(
            VfioDriver(
                address=address,
                module=name,
                driver=loaded[name] or (VFIO_PCI if name == VFIO_PCI else None),
                is_loaded=loaded[name] is not None,
            )
            for address, name in names.items()
        ),
        problems=(*found.problems, *problems),
    )


def _aliases(host: Host, release: str, problems: list[Problem]) -> tuple[VfioAlias, ...]:
    try:
        return modules.vfio_aliases(host.root, release)
    except HostError as error:
        problems.append(Problem(subject="modules.alias", reason=str(error)))
        return ()


def _driver(sysfs: Sysfs, module: str, problems: list[Problem]) -> str | None:
    try:
        return next(iter(modules.pci_drivers(sysfs, module)), None)
    except HostError as error:
        problems.append(Problem(subject=f"module {module}", reason=str(error)))
        return None
