"""VFIO's drivers for PCI functions: vfio-pci, and variants made for certain models.

A variant gives a guest what vfio-pci cannot: memory that is in no BAR, live migration. Its
module says which functions it is made for, in lines of ``modules.alias`` that begin with
``vfio_pci:``; the line that leaves least open is the best, as libvirt has it. vfio-pci takes
any function, and so does no better than where nothing was made for it.

Source: do_pci_entry in Linux scripts/mod/file2alias.c; virPCIDeviceFindBestVFIOVariant in
libvirt's virpci.c.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kata_gpu.model.pci import PciAddress, PciFunction

VFIO_PCI: Final = "vfio-pci"
"""The driver that takes any function, and its module as modprobe is told it."""

Ids = tuple[int, int, int, int, int, int, int]
"""Vendor, device, those of the subsystem, base class, sub-class, programming interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VfioAlias:
    """One line of ``modules.alias`` about VFIO: functions that a module is made for."""

    module: str
    ids: tuple[int | None, ...]
    """As in `Ids`; None is a wildcard."""

    @property
    def wildcards(self) -> int:
        """How many ids it leaves open."""
        return self.ids.count(None)

    def matches(self, ids: Ids) -> bool:
        """Tell whether the module is made for a function with these ids."""
        return all(w is None or w == i for w, i in zip(self.ids, ids, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class VfioDriver:
    """The VFIO driver that suits one function best."""

    address: PciAddress
    module: str
    driver: str | None
    """None while it is a variant that is not loaded: only its module knows what it is called."""

    is_loaded: bool


def ids(function: PciFunction) -> Ids:
    """Return what the kernel puts into a function's ``modalias``."""
    base, sub, interface = function.class_code.to_bytes(3, "big")
    return (
        function.vendor,
        function.identity.device,
        function.subsystem_vendor,
        function.subsystem_device,
        base,
        sub,
        interface,
    )


def best_module(aliases: Iterable[VfioAlias], wanted: Ids) -> str:
    """Return the module made most exactly for a function with these ids, else vfio-pci.

    An alias that leaves everything open, as vfio-pci's own, says nothing of this function.
    Of two that leave the same open the first by name is taken.
    """
    made = (a for a in aliases if a.matches(wanted) and a.wildcards < len(wanted))
    found = min(made, key=lambda a: (a.wildcards, a.module), default=None)
    return VFIO_PCI if found is None else found.module
