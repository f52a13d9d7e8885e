"""Ask an NVIDIA GPU after its reset which chip it is: one whose start failed does not say.

The first register of its memory names the chip. A GPU that fell off the bus reads as ones there,
and one whose inner bus does not answer as an error code, though its configuration space may be
as it should. Zero names no chip and is no error either: so reads what only has a GPU's ids.

The register is read only where that is harmless and means something: the function decodes its
memory and is awake. A GPU that VFIO holds and nobody uses mostly sleeps.

Source: NVIDIA open-gpu-kernel-modules, dev_boot.h (NV_PMC_BOOT_0) and nv_ref.h.
"""

import time
from typing import Final

from kata_gpu.errors import HostError, VerificationError
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import CLASS_DISPLAY, NVIDIA, PciAddress

_HEADER_BYTES: Final = 64
_VENDOR: Final = slice(0x00, 0x02)
_COMMAND: Final = slice(0x04, 0x06)
_MEMORY: Final = 0x02
_BASE_CLASS: Final = slice(0x0B, 0x0C)
_AWAKE: Final = "D0"
_DEAD: Final = 0xFFFFFFFF
_ERROR: Final = 0xBAD
"""The first three digits of what it reads as when the inner bus does not answer."""

_TIMEOUT_S: Final = 1.0
_STEP_S: Final = 0.1


def verify(sysfs: Sysfs, address: PciAddress) -> str | None:
    """Return the boot state in words, or why it is not read; None for any other device.

    Nobody may have the function.

    Raises:
        HostError: the function is gone, or nothing of it can be read.
        VerificationError: it is awake and reads, for a second, as no chip does.
        StuckError: the read does not return.
    """
    device = f"bus/pci/devices/{address}"
    if not _is_gpu(sysfs.head(f"{device}/config", _HEADER_BYTES)):
        return None
    deadline = time.monotonic() + _TIMEOUT_S
    state = ""
    while (reason := _why_it_means_nothing(sysfs, device)) is None:  # also after a look
        if state and time.monotonic() > deadline:
            raise VerificationError(
                f"cannot clean {address}: after its reset its boot state reads {state}, which "
                f"no GPU says that has started"
            )
        try:
            state = sysfs.peek(f"{device}/resource0")
        except HostError as error:
            return f"boot state not read: {error}"
        if _is_sound(int(state, 16)):
            return f"boot state {state}"
        time.sleep(_STEP_S)
    return f"boot state not read: {reason}"


def _is_gpu(header: bytes) -> bool:
    """Tell by its configuration space; virtual functions have no ids of their own there."""
    vendor = int.from_bytes(header[_VENDOR], "little")
    return vendor == NVIDIA and header[_BASE_CLASS] == bytes([CLASS_DISPLAY])


def _why_it_means_nothing(sysfs: Sysfs, device: str) -> str | None:
    state = sysfs.attributes(device, ("power_state",)).get("power_state", "unknown")
    if state != _AWAKE:
        return f"its power state is {state}"
    header = sysfs.head(f"{device}/config", _HEADER_BYTES)
    if not int.from_bytes(header[_COMMAND], "little") & _MEMORY:
        return "it does not decode its memory"
    return None


def _is_sound(state: int) -> bool:
    return state != _DEAD and state >> 20 != _ERROR
