"""Who uses the modules of drivers: it explains, and nothing is decided by it."""

from collections.abc import Iterable

from kata_gpu.host import modules
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.explanation import ModuleUse


def read(sysfs: Sysfs, drivers: Iterable[str]) -> tuple[ModuleUse, ...]:
    """Return the use of each PCI driver's module, by driver."""
    return tuple(_use(sysfs, driver) for driver in sorted(set(drivers)))


def _use(sysfs: Sysfs, driver: str) -> ModuleUse:
    module = sysfs.link(f"bus/pci/drivers/{driver}/module")
    count, users = (None, ()) if module is None else modules.users(sysfs, module)
    return ModuleUse(driver=driver, module=module, count=count, users=users)
