"""Names of PCI vendors and products, from the pci.ids database of the distribution.

The file has 1.4 MB; a node has a handful of GPUs. So nothing is parsed: a vendor's block
is found by its first line, a product by its line inside the block.

Source: https://pci-ids.ucw.cz, "Structure of pci.ids".
"""

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kata_gpu.model.text import printable

PLACES: Final = ("/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids")

_NEXT_VENDOR: Final = re.compile(rb"\n[0-9a-fC]")


class PciIds:
    """An open database; without one every name is None."""

    def __init__(self, data: bytes | mmap.mmap = b"") -> None:
        self._data = data

    def names(self, vendor: int, device: int) -> tuple[str | None, str | None]:
        """Return the names of a vendor and of its product; None for what is not listed."""
        start = self._data.find(b"\n%04x  " % vendor)
        if start < 0:
            return None, None
        name_end = self._line_end(start + 1)
        block = _NEXT_VENDOR.search(self._data, name_end)
        block_end = block.start() + 1 if block else len(self._data)
        product = self._data.find(b"\n\t%04x  " % device, name_end, block_end)
        return self._line(start + 7, name_end), (
            self._line(product + 8, self._line_end(product + 1)) if product >= 0 else None
        )

    def _line_end(self, start: int) -> int:
        end = self._data.find(b"\n", start)
        return len(self._data) if end < 0 else end

    def _line(self, start: int, end: int) -> str:
        return printable(self._data[start:end].decode("utf-8", "replace").strip())


@contextmanager
def opened(root: Path, places: tuple[str, ...] = PLACES) -> Iterator[PciIds]:
    """Open the first database found under *root*; without one, every name is None."""
    data = _mapped(root, places)
    try:
        yield PciIds(data)
    finally:
        if isinstance(data, mmap.mmap):
            data.close()


def _mapped(root: Path, places: tuple[str, ...]) -> mmap.mmap | bytes:
    for place in places:
        try:
            with (root / place.removeprefix("/")).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # absent, or empty
            continue
    return b""
