"""``kata-gpu inventory`` against the interpreter's start plus a bare pass over the same files.

The synthetic node has GPUs below root ports, each in a group of its own: every function
matters, so every attribute is read, which is the worst case. The bare pass opens, reads and
closes what the inventory read, in the same order, and does nothing with it.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kata_gpu.discover.inventory import collect
from kata_gpu.host import Host
from kata_gpu.host.commands import run
from kata_gpu.host.sysfs import Sysfs
from tests import memory
from tests.bench import timing

_SIZES: Final = (150, 600, 4096)
_ROUNDS: Final = {150: 21, 600: 11, 4096: 5}
_TARGET: Final = 1.5
_BARE: Final = """\
import os, sys
for line in open(sys.argv[1]):
    verb, _, path = line.rstrip("\\n").partition(" ")
    try:
        if verb == "read":
            with open(path, "rb") as file:
                file.read()
        elif verb == "link":
            os.readlink(path)
        else:
            os.listdir(path)
    except OSError:
        pass
"""
_ATTRIBUTES: Final = {
    "vendor": "0x10de",
    "device": "0x2330",
    "class": "0x030200",
    "subsystem_vendor": "0x10de",
    "subsystem_device": "0x16c1",
    "revision": "0xa1",
    "driver_override": "(null)",
    "numa_node": "0",
    "resource": "\n".join(
        [
            "0x00000000f0000000 0x00000000f0ffffff 0x0000000000040200",
            "0x0000020000000000 0x0000021fffffffff 0x000000000014220c",
            "0x0000000000000000 0x0000000000000000 0x0000000000000000",
            "0x0000022000000000 0x0000022001ffffff 0x000000000014220c",
            *(["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 9),
        ]
    ),
    "current_link_speed": "32.0 GT/s PCIe",
    "current_link_width": "16",
    "max_link_speed": "32.0 GT/s PCIe",
    "max_link_width": "16",
    "reset_method": "flr bus",
    "power_state": "D0",
    "boot_vga": "0",
}


class _Recorder(Sysfs):
    """A sysfs that notes what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def read(self, path: str) -> str:
        self.asked.append(f"read {self.root / path}")
        return super().read(path)

    def head(self, path: str, count: int) -> bytes:
        self.asked.append(f"read {self.root / path}")
        return super().head(path, count)

    def attributes(
        self, directory: str, names: Iterable[str], *, optional: frozenset[str] = frozenset()
    ) -> dict[str, str]:
        names = tuple(names)
        self.asked += [f"read {self.root / directory / name}" for name in names]
        return super().attributes(directory, names, optional=optional)

    def target(self, path: str) -> str | None:
        self.asked.append(f"link {self.root / path}")
        return super().target(path)

    def names(self, directory: str) -> list[str]:
        self.asked.append(f"list {self.root / directory}")
        return super().names(directory)


def main() -> None:
    """Print a line for each size: medians, ratio, and growth from size to size."""
    print(
        "functions     files  bare pass  inventory   ratio  per function, against the size before"
    )
    before: tuple[int, float] | None = None
    for size in _SIZES:
        with tempfile.TemporaryDirectory(prefix="kata-gpu-bench-", dir=memory.folder()) as folder:
            root = Path(folder)
            _build(root, size)
            asked = _asked(root, size)
            files = root / "files"
            files.write_text("\n".join(asked))
            bare, ours = _measure(root, files, _ROUNDS[size])
        median_s = statistics.median(ours)
        growth = f"{median_s / before[1] * before[0] / size:.2f}" if before else ""
        before = (size, median_s)
        ratio = statistics.median(o / b for o, b in zip(ours, bare, strict=True))
        print(
            f"{size:9} {len(asked):9} {timing.median_ms(bare):7.1f} ms "
            f"{timing.median_ms(ours):7.1f} ms {ratio:7.2f}  {growth}"
        )
    print(f"target: ratio at most {_TARGET} at {_SIZES[0]}; 1.00 per function is linear growth")


def _asked(root: Path, size: int) -> list[str]:
    """Return what the inventory asks of sysfs, in order."""
    recorder = _Recorder(root / "sys")
    found = collect(Host(root=root, sysfs=recorder, run=run), interest=lambda _: True)
    if len(found.functions) != size or found.problems:
        sys.exit(f"read {len(found.functions)} of {size} functions: {found.problems[:3]}")
    return recorder.asked


def _measure(root: Path, files: Path, rounds: int) -> tuple[list[float], list[float]]:
    times = timing.in_turn(
        {
            "bare": [sys.executable, "-c", _BARE, str(files)],
            "ours": [
                *(sys.executable, "-c", "from kata_gpu.cli import main; main()"),
                *("inventory", "--all", "--root", str(root)),
            ],
        },
        rounds=rounds,
    )
    return times["bare"], times["ours"]


def _build(root: Path, size: int) -> None:
    """Make a node of *size* functions: a root port and seven GPUs behind it, and so on."""
    sys_ = root / "sys"
    kernel = root / "proc/sys/kernel"
    kernel.mkdir(parents=True)
    (kernel / "osrelease").write_text("6.12.0\n")
    for folder in ("bus/pci/devices", "bus/pci/drivers/nvidia", "class/iommu/dmar0"):
        (sys_ / folder).mkdir(parents=True)
    port = Path()
    for number in range(size):
        domain, rest = divmod(number, 2048)
        address = f"{domain:04x}:{rest // 8:02x}:00.{rest % 8}"
        if number % 8 == 0:
            port = sys_ / f"devices/pci{domain:04x}:{rest // 8:02x}" / address
            _device(sys_, port, address, number, class_code="0x060400")
        else:
            _device(sys_, port / address, address, number, class_code="0x030200")


def _device(sys_: Path, folder: Path, address: str, group: int, *, class_code: str) -> None:
    folder.mkdir(parents=True)
    for name, text in {**_ATTRIBUTES, "class": class_code}.items():
        (folder / name).write_text(f"{text}\n")
    (folder / "config").write_bytes(bytes(4096))
    (folder / "driver").symlink_to(sys_ / "bus/pci/drivers/nvidia")
    members = sys_ / f"kernel/iommu_groups/{group}/devices"
    members.mkdir(parents=True)
    (members.parent / "type").write_text("DMA\n")
    (members / address).symlink_to(folder)
    (folder / "iommu_group").symlink_to(members.parent)
    link = sys_ / "bus/pci/devices" / address
    link.symlink_to(os.path.relpath(folder, link.parent))
