"""The confidential mode of NVIDIA GPUs: which chips have one, and where it is to be read.

A chip is told by the name that pci.ids has before the product's. Where products of one chip
differ, nobody knows.

Source: NVIDIA gpu-admin-tools (query_cc_mode and query_ppcie_mode in nvidia_gpu_tools.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kata_gpu.model.pci import NVIDIA, PciAddress, PciFunction

ARCHITECTURES: Final = {
    "GM1": "maxwell",
    "GM2": "maxwell",
    "GP1": "pascal",
    "GV1": "volta",
    "TU1": "turing",
    "GA1": "ampere",
    "AD1": "ada",
    "GH1": "hopper",
    "GB1": "blackwell",
    "GB2": "blackwell",
}
"""By the beginning of the chip's name."""

_CHIP: Final = re.compile(r"([A-Z]{2}\d)\d\d")
_CONFIDENTIAL: Final = {"GH1": True, "GB1": True, "GB2": None}
"""Chips with a confidential mode; None where products of one chip differ. The others have none."""

_MODE_MASK: Final = 0x3
_START_S: Final = 1.0
_BLACKWELL_START_S: Final = 15.0
_BLACKWELL_FROM: Final = 0x2900
"""The device ids of Blackwell, which keep their memory closed for a while after a reset."""


class CcMode(StrEnum):
    """A mode, as NVIDIA's tools and the label of its mode manager call it."""

    OFF = "off"
    ON = "on"
    DEVTOOLS = "devtools"
    """As on, but it may be looked into: no secret is safe in it."""

    PPCIE = "ppcie"
    """A board of GPUs and switches for one VM, with what runs on PCIe encrypted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRegister:
    """Where in its first BAR a generation of chips tells its mode."""

    offset: int
    """In bytes, a multiple of four."""

    ppcie: int
    """The bit that says that the mode is ppcie; 0 where the generation has none."""

    start_s: float
    """How long the chip may take to start, after which the register means something."""


_REGISTERS: Final = {
    "GH1": ModeRegister(offset=0x1182CC, ppcie=0x20, start_s=5.0),
    "GB1": ModeRegister(offset=0x590, ppcie=0, start_s=10.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeLook:
    """One GPU whose mode is to be read, and where."""

    address: PciAddress
    register: ModeRegister


def chip(function: PciFunction) -> str | None:
    """Return how the chip's name begins; None where it is no NVIDIA GPU, or pci.ids has none."""
    if function.vendor != NVIDIA or not function.is_gpu:
        return None
    found = _CHIP.match(function.product_name or "")
    return found[1] if found else None


def has_mode(function: PciFunction) -> bool | None:
    """Tell whether a GPU has a confidential mode; None where nobody knows."""
    name = chip(function)
    return None if name not in ARCHITECTURES else _CONFIDENTIAL.get(name, False)


def looks(functions: Sequence[PciFunction]) -> tuple[ModeLook, ...]:
    """Return what is to be read of these; a virtual function has no such register."""
    return tuple(
        ModeLook(address=function.address, register=register)
        for function in functions
        if function.parent is None
        and (register := _REGISTERS.get(chip(function) or "")) is not None
    )


def start_s(function: PciFunction) -> float:
    """Return how long after a reset its memory may read as ones."""
    is_late = function.vendor == NVIDIA and function.identity.device >= _BLACKWELL_FROM
    return _BLACKWELL_START_S if is_late and function.is_gpu else _START_S


def mode(register: ModeRegister, value: int) -> CcMode | None:
    """Return the mode that *value* says; None where it says what no mode is."""
    is_ppcie = bool(value & register.ppcie)
    match value & _MODE_MASK, is_ppcie:
        case 0, False:
            return CcMode.OFF
        case 0, True:
            return CcMode.PPCIE
        case 1, False:
            return CcMode.ON
        case 3, False:
            return CcMode.DEVTOOLS
        case _:
            return None
