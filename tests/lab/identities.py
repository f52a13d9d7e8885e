"""Give emulated PCI devices other identities, in the memory of a QEMU that has not run yet.

QEMU has no property for the vendor, device and class of the devices it emulates; the bytes
are in PCIDevice.config, which firmware and kernel then read through real configuration
cycles. A device is found by its ``id``: the string is in the heap, DeviceState.id points to
it, and PCIDevice.config is a pointer not far behind, in the same object.

Source: struct DeviceState in QEMU's include/hw/qdev-core.h, struct PCIDevice in
include/hw/pci/pci_device.h. Needs the right to trace QEMU, which its parent has.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab.errors import GuestError
from tests.lab.topology import Identity

_LARGEST_AREA: Final = 16 << 20  # below the smallest video memory; the heap may be any size
_FARTHEST_FIELD: Final = 0x200  # from DeviceState.id to PCIDevice.config: 0x58 to 0xc0 were seen
_HEADER_SIZE: Final = 64
_WORD: Final = 8


@dataclass(frozen=True, slots=True)
class Change:
    """A device that QEMU emulates as one thing and that shall be another."""

    before: Identity
    after: Identity


@dataclass(frozen=True, slots=True)
class _Area:
    start: int
    content: bytes


def give(pid: int, changes: Mapping[str, Change]) -> None:
    """Change the identities of the devices, by their ids; QEMU must be stopped.

    Raises:
        GuestError: a device was not found; none of the others was changed.
    """
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        areas = tuple(_areas(pid, memory.fileno()))
        headers = {name: _find(areas, name, change.before) for name, change in changes.items()}
        for name, change in changes.items():
            _write(memory.fileno(), headers[name], change.after)


def _areas(pid: int, memory: int) -> Iterator[_Area]:
    """Read what is private, writable and no file's: the heap, and what malloc maps apart."""
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        span, mode, _, _, inode, *names = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if mode != "rw-p" or inode != "0" or names not in ([], ["[heap]"]):
            continue
        if names or end - start < _LARGEST_AREA:
            yield _Area(start, os.pread(memory, end - start, start))


def _find(areas: tuple[_Area, ...], name: str, emulated: Identity) -> int:
    """Return where the configuration header of the device is."""
    for text in _occurrences(areas, name.encode() + b"\0"):
        for pointer in _occurrences(areas, struct.pack("<Q", text)):
            for word in _words(areas, pointer, _FARTHEST_FIELD):
                if _is_header(_read(areas, word, _HEADER_SIZE), emulated):
                    return word
    raise GuestError(f"cannot give {name} another identity: not found in QEMU's memory")


def _occurrences(areas: tuple[_Area, ...], pattern: bytes) -> Iterator[int]:
    """Find the pattern at multiples of a word.

    Its final zeros are compared afterwards: a search for a pattern without zeros crosses
    zeroed memory, most of the heap, several times faster.
    """
    significant = pattern.rstrip(b"\0")
    for area in areas:
        index = area.content.find(significant)
        while index >= 0:
            if index % _WORD == 0 and area.content.startswith(pattern, index):
                yield area.start + index
            index = area.content.find(significant, index + 1)


def _words(areas: tuple[_Area, ...], start: int, size: int) -> Iterator[int]:
    content = _read(areas, start, size)
    for (word,) in struct.iter_unpack("<Q", content[: len(content) // _WORD * _WORD]):
        yield word


def _read(areas: tuple[_Area, ...], start: int, size: int) -> bytes:
    for area in areas:
        if area.start <= start < area.start + len(area.content):
            return area.content[start - area.start : start - area.start + size]
    return b""


def _is_header(content: bytes, emulated: Identity) -> bool:
    """Tell a PCI configuration header of type 0 with that identity from other bytes."""
    if len(content) < _HEADER_SIZE:
        return False
    vendor, device = struct.unpack_from("<HH", content)
    header_type = content[0x0E] & 0x7F
    return (vendor, device, header_type) == (emulated.vendor, emulated.device, 0)


def _write(memory: int, header: int, identity: Identity) -> None:
    os.pwrite(memory, struct.pack("<HH", identity.vendor, identity.device), header)
    class_code = identity.class_code.to_bytes(3, "little")
    os.pwrite(memory, bytes([identity.revision]) + class_code, header + 8)
    subsystem = (identity.subsystem_vendor, identity.subsystem_device)
    os.pwrite(memory, struct.pack("<HH", *subsystem), header + 0x2C)
