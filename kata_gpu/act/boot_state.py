"""Ask an NVIDIA GPU after its reset which chip it is: one whose start failed does not say.

The first register of its memory names the chip. A GPU that fell off the bus reads as ones there,
and one whose inner bus does not answer as an error code, though its configuration space may be
as it should. Zero names no chip and is no error either: so reads what only has a GPU's ids.

The register is read only where that is harmless and means something: the function decodes its
memory and is awake. A GPU that VFIO holds and nobody uses mostly sleeps, so it is woken before:
see `waking`.

Source: NVIDIA open-gpu-kernel-modules, dev_boot.h (NV_PMC_BOOT_0) and nv_ref.h.
"""

import time
from collections.abc import Iterable
from typing import Final

from kata_gpu.act import waking
from kata_gpu.errors import HostError, VerificationError
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import CLASS_DISPLAY, NVIDIA, PciAddress

_HEADER_BYTES: Final = 64
_VENDOR: Final = slice(0x00, 0x02)
_COMMAND: Final = slice(0x04, 0x06)
_MEMORY: Final = 0x02
_BASE_CLASS: Final = slice(0x0B, 0x0C)
_DEAD: Final = 0xFFFFFFFF
_ERROR: Final = 0xBAD
"""The first three digits of what it reads as when the inner bus does not answer."""

_STEP_S: Final = 0.1


def gpus(sysfs: Sysfs, addresses: Iterable[PciAddress]) -> tuple[PciAddress, ...]:
    """Return those that `verify` has something to say of."""
    found = []
    for address in addresses:
        try:
            if _is_gpu(sysfs, address):
                found.append(address)
        except HostError:
            continue  # `verify` says so
    return tuple(found)


def verify(sysfs: Sysfs, address: PciAddress, *, start_s: float) -> str | None:
    """Return the boot state in words, or why it is not read; None for any other device.

    Nobody may have the function. *start_s* is how long it may take to start.

    Raises:
        HostError: the function is gone, or nothing of it can be read.
        VerificationError: it is awake and reads, for that long, as no chip does.
        StuckError: the read does not return.
    """
    if not _is_gpu(sysfs, address):
        return None
    deadline = time.monotonic() + start_s
    state = ""
    while (reason := why_it_means_nothing(sysfs, address)) is None:  # also after a look
        if state and time.monotonic() > deadline:
            raise VerificationError(
                f"cannot clean {address}: after its reset its boot state reads {state}, which "
                f"no GPU says that has started"
            )
        try:
            state = sysfs.peek(f"bus/pci/devices/{address}/resource0")
        except HostError as error:
            return f"boot state not read: {error}"
        if is_sound(int(state, 16)):
            return f"boot state {state}"
        time.sleep(_STEP_S)
    return f"boot state not read: {reason}"


def _is_gpu(sysfs: Sysfs, address: PciAddress) -> bool:
    """Tell by its configuration space; virtual functions have no ids of their own there."""
    header = sysfs.head(f"bus/pci/devices/{address}/config", _HEADER_BYTES)
    vendor = int.from_bytes(header[_VENDOR], "little")
    return vendor == NVIDIA and header[_BASE_CLASS] == bytes([CLASS_DISPLAY])


def why_it_means_nothing(sysfs: Sysfs, address: PciAddress) -> str | None:
    """Return why what its memory reads as now would say nothing; None when it does.

    Raises:
        HostError: the function is gone, or nothing of it can be read.
    """
    state = waking.power_state(sysfs, address)
    if state != waking.AWAKE:
        return f"its power state is {state}"
    header = sysfs.head(f"bus/pci/devices/{address}/config", _HEADER_BYTES)
    if not int.from_bytes(header[_COMMAND], "little") & _MEMORY:
        return "it does not decode its memory"
    return None


def is_sound(state: int) -> bool:
    """Tell whether a register's content is a chip's word, and no sign that nobody answers."""
    return state != _DEAD and state >> 20 != _ERROR
