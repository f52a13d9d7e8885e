"""Refuse to move a device that somebody uses.

An unbind does not ask: it takes a DRM device from under its users, and waits for those of
VFIO and NVIDIA for ever. So whoever has a function of the unit keeps it.
"""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from kata_gpu.errors import HeldError, KataGpuError
from kata_gpu.host import Host, holders, nvml
from kata_gpu.model.holder import Holder
from kata_gpu.model.pci import PciAddress

Found = dict[PciAddress, tuple[Holder, ...]]


@dataclass(slots=True)
class _Look:
    """One pass over all processes, for all who asked before it began."""

    addresses: set[PciAddress] = field(default_factory=set)
    found: Found | None = None


class Looks:
    """Looks at who has what, which lanes share: a pass over all processes takes long.

    Whoever asks gets the answer of a look that began after that.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._next = _Look()
        self._joining = threading.Lock()
        self._looking = threading.Lock()

    def refuse_if_held(self, addresses: Collection[PciAddress]) -> None:
        """Raise HeldError with every holder if a function of the unit is in use.

        Raises:
            HostError: nobody can say whether one is.
        """
        _refuse(self._find(addresses), addresses)

    def _find(self, addresses: Collection[PciAddress]) -> Found:
        with self._joining:
            look = self._next
            look.addresses.update(addresses)
        with self._looking:
            if look.found is None:
                with self._joining:
                    self._next = _Look()
                try:
                    look.found = holders.find(self._host, look.addresses)
                except KataGpuError:  # which may be about another lane's function
                    return holders.find(self._host, addresses)
        return look.found


def refuse_if_held(host: Host, addresses: Collection[PciAddress]) -> None:
    """Refuse as `Looks.refuse_if_held` does, by a look of one's own."""
    Looks(host).refuse_if_held(addresses)


def refuse_if_at_work(host: Host, gpus: Mapping[PciAddress, nvml.Gpu]) -> None:
    """Raise HeldError if NVIDIA's driver runs somebody's work on a GPU, as NVML says."""
    _refuse(holders.at_work(host, gpus), gpus)


def _refuse(found: Mapping[PciAddress, tuple[Holder, ...]], asked: Iterable[PciAddress]) -> None:
    held = tuple(dict.fromkeys(holder for address in asked for holder in found.get(address, ())))
    if held:
        who = "; ".join(map(str, held))
        raise HeldError(f"cannot move it: {who}; it is tried again when they are gone", held)
