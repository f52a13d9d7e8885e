"""Let NVIDIA's driver give GPUs to nobody new while they are taken from it.

Whoever comes between the last look for users and the unbind would let the unbind wait for
ever. A GPU that drains lets nobody come; one in persistence mode does not drain, for the
driver itself is its user. So persistence mode goes off first, and comes back with the GPU.

Source: NVIDIA, NVML API Reference Guide, "Drain states".
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from kata_gpu.errors import KataGpuError, RollbackError
from kata_gpu.host import Host, nvml
from kata_gpu.host.nvml import Gpu
from kata_gpu.model.ledger import LedgerEntry
from kata_gpu.model.pci import PciAddress

log = logging.getLogger(__name__)

DRIVER: Final = "nvidia"

Gpus = Mapping[PciAddress, Gpu]
"""What NVML says of each GPU that leaves its driver; empty where there is no NVML."""


def look(host: Host, addresses: Iterable[PciAddress], *, resumed: bool) -> Gpus:
    """Return NVML's word on GPUs that are about to leave.

    One whose move was begun before and is *resumed* may be drained, and then NVML shows it to
    nobody: that is ended first.

    Raises:
        HostError: NVML is there and refuses, or does not answer in time.
    """
    asked = tuple(addresses)
    for address in asked if resumed else ():
        nvml.set_drain(host, address, on=False)
    return nvml.read(host, asked) or {}


def forbid_users(host: Host, gpus: Gpus) -> None:
    """End persistence mode and drain.

    Raises:
        HeldError, HostError: NVML would not; some of it may be done, for `undo`.
    """
    for address in _persistent(gpus):
        nvml.set_persistence(host, address, on=False)
        log.info("switched persistence mode off for %s", address)
    for address in gpus:
        nvml.set_drain(host, address, on=True)


def undo(host: Host, gpus: Gpus, failure: KataGpuError) -> None:
    """Let everybody have the GPUs again, as before; idempotent.

    Raises:
        RollbackError: NVML would not.
    """
    try:
        for address in gpus:
            nvml.set_drain(host, address, on=False)
        for address in _persistent(gpus):
            nvml.set_persistence(host, address, on=True)
    except KataGpuError as error:
        message = f"cannot let its users come back ({error}) after a failure: {failure}"
        raise RollbackError(message, failure) from error


def give_back(host: Host, entry: LedgerEntry) -> None:
    """Let everybody have the GPUs of a unit that is back, in the mode they were in; idempotent.

    Raises:
        HeldError, HostError: NVML is there and refuses, or does not answer in time.
    """
    for function in entry.functions:
        if function.original.driver != DRIVER:
            continue
        address = function.address
        nvml.set_drain(host, address, on=False)
        if entry.had_persistence and not nvml.set_persistence(host, address, on=True):
            log.warning("cannot switch persistence mode on again for %s: no NVML has it", address)


def _persistent(gpus: Gpus) -> list[PciAddress]:
    return [address for address, gpu in gpus.items() if gpu.persistence]
