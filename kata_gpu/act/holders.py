"""Refuse to move a device that somebody uses.

An unbind does not ask: it takes a DRM device from under its users, and waits for those of
VFIO and NVIDIA for ever. So whoever has a function of the unit keeps it.
"""

from collections.abc import Collection, Mapping

from kata_gpu.errors import HeldError
from kata_gpu.host import Host, holders, nvml
from kata_gpu.model.holder import Holder
from kata_gpu.model.pci import PciAddress


def refuse_if_held(host: Host, addresses: Collection[PciAddress]) -> None:
    """Raise HeldError with every holder if a function of the unit is in use.

    Raises:
        HostError: nobody can say whether one is.
    """
    _refuse(holders.find(host, addresses))


def refuse_if_at_work(host: Host, gpus: Mapping[PciAddress, nvml.Gpu]) -> None:
    """Raise HeldError if NVIDIA's driver runs somebody's work on a GPU, as NVML says."""
    _refuse(holders.at_work(host, gpus))


def _refuse(found: Mapping[PciAddress, tuple[Holder, ...]]) -> None:
    held = tuple(dict.fromkeys(holder for of_one in found.values() for holder in of_one))
    if held:
        who = "; ".join(map(str, held))
        raise HeldError(f"cannot move it: {who}; it is tried again when they are gone", held)
