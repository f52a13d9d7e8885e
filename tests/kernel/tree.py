"""The folders, files and links that a node's kernel shows, and nothing of how it behaves.

Layout and modes as in Linux 6.1 to 7.3: real folders below ``devices``, everything else by
relative links, attributes that cannot be written without a write bit.
"""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.kernel.specs import VGA, DeviceSpec, DriverSpec

READ_ONLY: Final = 0o444
READ_WRITE: Final = 0o644
WRITE_ONLY: Final = 0o200

OVERRIDE_UNSET: Final = "(null)"

_BIG_BAR: Final = 256 << 20
_FIRST_WINDOW: Final = 0x38_0000_0000
_MEMORY: Final = 0x40200
_MEMORY_64_BIT_PREFETCHABLE: Final = 0x14220C
_RESOURCES: Final = 13
_BRIDGE_RESOURCES: Final = 17

_NO_RESOURCE: Final = " ".join(["0x0000000000000000"] * 3)

_BOOT_STATE: Final = bytes.fromhex("a1000018")  # an H100's NV_PMC_BOOT_0, little-endian
_STARTED: Final = (0x200BC, bytes.fromhex("ff000000"))  # NV_THERM_I2CS_SCRATCH
_REGISTERS_BYTES: Final = 2 << 20  # less than such a BAR has, and all of it a hole
_RESERVED: Final = "0x00000000fee00000 0x00000000feefffff msi\n"
_RESERVED_DIRECT: Final = "0x0000000079a00000 0x0000000079afffff direct\n"

# where /dev/vfio's nodes lead: a process that has one open is found by its device number
_CHARACTER_DEVICES: Final = ("zero", "full", "random", "urandom", "null")


class Tree:
    """One host's files below a folder, with ``sys``, ``dev``, ``proc`` and ``lib`` in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys = root / "sys"
        self._homes: dict[str, Path] = {}
        self._nodes: dict[Path, str] = {}
        self._lists_nvidia_gpus = False
        for folder in (
            "bus/pci/devices",
            "bus/pci/drivers",
            "class/iommu",
            "kernel/iommu_groups",
            "module",
        ):
            (self.sys / folder).mkdir(parents=True)
        for name in ("drivers_probe", "rescan"):
            self._put(self.sys / "bus/pci" / name, "", WRITE_ONLY)
        self._put(self.sys / "bus/pci/drivers_autoprobe", "1\n", READ_WRITE)
        (root / "dev/vfio").mkdir(parents=True)
        (root / "proc").mkdir()

    def text(self, path: str, content: str) -> None:
        """Make a file of the host that is not sysfs's, as ``proc/interrupts``."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="ascii")

    def add_iommu(self, name: str) -> None:
        """Show an IOMMU."""
        unit = self.sys / "devices/virtual/iommu" / name
        unit.mkdir(parents=True)
        _link(self.sys / "class/iommu" / name, unit)

    def add_module(self, name: str, parameters: dict[str, str]) -> None:
        """Show a loaded module; nothing happens when it is there."""
        folder = self.sys / "module" / name / "parameters"
        folder.mkdir(parents=True, exist_ok=True)
        for parameter, value in parameters.items():
            self._put(folder / parameter, f"{value}\n", READ_WRITE)

    def add_driver(self, driver: DriverSpec) -> None:
        """Show a registered driver."""
        folder = self.sys / "bus/pci/drivers" / driver.name
        folder.mkdir()
        for name in ("bind", "unbind", "new_id", "remove_id", "uevent"):
            self._put(folder / name, "", WRITE_ONLY)
        module = self.sys / "module" / driver.module
        (module / "drivers").mkdir(parents=True, exist_ok=True)
        _link(folder / "module", module)
        _link(module / "drivers" / f"pci:{driver.name}", folder)

    def remove_driver(self, driver: DriverSpec) -> None:
        """Take away a driver that holds nothing, and its module."""
        shutil.rmtree(self.sys / "bus/pci/drivers" / driver.name)
        shutil.rmtree(self.sys / "module" / driver.module, ignore_errors=True)

    def add_device(self, spec: DeviceSpec) -> None:
        """Show a function that no driver holds."""
        above = self._homes[spec.parent] if spec.parent else self._root_bus(spec)
        home = above / spec.address
        home.mkdir(parents=True)
        self._homes[spec.address] = home
        for name, content in _attributes(spec).items():
            self._put(home / name, f"{content}\n", READ_ONLY)
        self._put(home / "numa_node", f"{spec.numa_node}\n", READ_WRITE)
        self._put(home / "driver_override", f"{OVERRIDE_UNSET}\n", READ_WRITE)
        for name in ("remove", "rescan"):
            self._put(home / name, "", WRITE_ONLY)
        if spec.reset_methods:
            self._put(home / "reset", "", WRITE_ONLY)
            self._put(home / "reset_method", f"{' '.join(spec.reset_methods)}\n", READ_WRITE)
        if spec.total_vfs:
            self._put(home / "sriov_totalvfs", f"{spec.total_vfs}\n", READ_ONLY)
            self._put(home / "sriov_numvfs", "0\n", READ_WRITE)
            self._put(home / "sriov_drivers_autoprobe", "1\n", READ_WRITE)
        (home / "power").mkdir()
        self._put(home / "power/control", "on\n", READ_WRITE)
        (home / "config").write_bytes(_config(spec))
        if spec.bars and spec.physfn is None:
            self._put_memory(home, _BOOT_STATE)
        _link(home / "subsystem", self.sys / "bus/pci")
        _link(self.sys / "bus/pci/devices" / spec.address, home)
        self.show_driver(spec, None)
        if spec.group is not None:
            self._join_group(spec.address, home, spec.group)
        if spec.physfn is not None:
            _link(home / "physfn", self._homes[spec.physfn])

    def remove_device(self, spec: DeviceSpec) -> None:
        """Take away a function that no driver holds; its group goes with the last member."""
        home = self._homes.pop(spec.address)
        (self.sys / "bus/pci/devices" / spec.address).unlink()
        if spec.group is not None:
            group = self.sys / "kernel/iommu_groups" / str(spec.group)
            (group / "devices" / spec.address).unlink()
            if not any((group / "devices").iterdir()):
                shutil.rmtree(group)
        shutil.rmtree(home)

    def show(self, address: str, attribute: str, content: str) -> None:
        """Change what an attribute of a function reads as."""
        file = self._homes[address] / attribute
        self._put(file, f"{content}\n", file.stat().st_mode & 0o777)

    def show_config(self, address: str, header: bytes) -> None:
        """Change the first bytes of a function's config space."""
        file = self._homes[address] / "config"
        file.write_bytes(header + file.read_bytes()[len(header) :])

    def show_memory(self, address: str, start: bytes) -> None:
        """Change the first bytes that a function's first BAR reads as."""
        self._put_memory(self._homes[address], start)

    def show_register(self, address: str, offset: int, value: int) -> None:
        """Change what a register in a function's first BAR reads as."""
        _put_at(self._homes[address] / "resource0", offset, value.to_bytes(4, "little"))

    def _put_memory(self, home: Path, start: bytes) -> None:
        memory = home / "resource0"
        if not memory.exists():
            memory.touch()
            os.truncate(memory, _REGISTERS_BYTES)
            _put_at(memory, *_STARTED)
        _put_at(memory, 0, start)

    def show_bus(self, attribute: str, content: str) -> None:
        """Change what an attribute of the bus reads as."""
        self._put(self.sys / "bus/pci" / attribute, f"{content}\n", READ_WRITE)

    def make_unreadable(self, address: str, attribute: str) -> None:
        """Let reads of an attribute fail with EIO, as /proc/self/mem does at offset 0."""
        file = self._homes[address] / attribute
        file.unlink(missing_ok=True)
        file.symlink_to("/proc/self/mem")

    def show_driver(self, spec: DeviceSpec, driver: str | None) -> None:
        """Show who holds a function."""
        home = self._homes[spec.address]
        link = home / "driver"
        if link.is_symlink():
            (link.resolve() / spec.address).unlink()
            link.unlink()
        if driver is not None:
            folder = self.sys / "bus/pci/drivers" / driver
            _link(link, folder)
            _link(folder / spec.address, home)
        self._put(home / "uevent", _uevent(spec, driver), READ_WRITE)
        if self._lists_nvidia_gpus:
            self._list_nvidia_gpu(spec.address, driver)

    def list_nvidia_gpus(self) -> None:
        """Show in procfs what NVIDIA's driver has, as it does once it is installed whole."""
        self._lists_nvidia_gpus = True
        for address, home in self._homes.items():
            driver = home / "driver"
            self._list_nvidia_gpu(address, driver.readlink().name if driver.exists() else None)

    def _list_nvidia_gpu(self, address: str, driver: str | None) -> None:
        folder = self.root / "proc/driver/nvidia/gpus" / address
        if driver == "nvidia":
            self.text(f"proc/driver/nvidia/gpus/{address}/information", "Device Minor: \t 0\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def show_virtual(self, physical: str, index: int, virtual: str) -> None:
        """Show the link from a physical function to one of its virtual ones."""
        _link(self._homes[physical] / f"virtfn{index}", self._homes[virtual])

    def hide_virtual(self, physical: str, index: int) -> None:
        """Take that link away."""
        (self._homes[physical] / f"virtfn{index}").unlink()

    def show_vfio(self, address: str, group: int, number: int, *, cdev: bool) -> None:
        """Show a function's VFIO device and its group's node."""
        device = self._homes[address] / "vfio-dev" / f"vfio{number}"
        device.mkdir(parents=True)
        if cdev:
            node = self._node(self.root / "dev/vfio/devices" / f"vfio{number}")
            self._put(device / "dev", node, READ_ONLY)
            self._put(device / "uevent", f"DEVNAME=vfio/devices/vfio{number}\n", READ_WRITE)
        shown = self.sys / "devices/virtual/vfio" / str(group)
        if not shown.exists():
            shown.mkdir(parents=True)
            (self.sys / "class/vfio").mkdir(exist_ok=True)
            _link(self.sys / "class/vfio" / str(group), shown)
            self._put(shown / "dev", self._node(self.node(group)), READ_ONLY)

    def hide_vfio(self, address: str, group: int, number: int, *, last: bool) -> None:
        """Take them away; the group's node goes with the last."""
        shutil.rmtree(self._homes[address] / "vfio-dev")
        (self.root / "dev/vfio/devices" / f"vfio{number}").unlink(missing_ok=True)
        if last:
            (self.sys / "class/vfio" / str(group)).unlink()
            shutil.rmtree(self.sys / "devices/virtual/vfio" / str(group))
            self.node(group).unlink()

    def node(self, group: int) -> Path:
        """Return where a group's node is, or would be."""
        return self.root / "dev/vfio" / str(group)

    def show_device(self, address: str, path: str, node: str, like: str) -> Path:
        """Show a device below a function's, as ``drm/card0``, and its node.

        The node has the number of *like*, a device of the machine that runs the test.
        """
        home = self._homes[address] / path
        home.mkdir(parents=True)
        at = self.root / "dev" / node
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(like)
        self._nodes[at] = like.removeprefix("/dev/")
        number = _number(at)
        major, minor = number.strip().split(":")
        self._put(home / "dev", number, READ_ONLY)
        self._put(home / "uevent", f"MAJOR={major}\nMINOR={minor}\nDEVNAME={node}\n", READ_WRITE)
        return at

    def add_process(
        self, pid: int, command: str, nodes: Iterable[Path], *, uid: int = 0, cgroup: str = "/"
    ) -> None:
        """Show a process with these nodes open."""
        home = self.root / "proc" / str(pid)
        (home / "fd").mkdir(parents=True)
        shown = {
            "comm": f"{command[:15]}\n",
            "status": f"Name:\t{command[:15]}\nPPid:\t1\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n",
            "cgroup": f"0::{cgroup}\n",
            "maps": "",
            "stat": f"{pid} ({command[:15]}) S {'1 ' * 18}{time.monotonic_ns()} 0\n",
        }
        for name, content in shown.items():
            (home / name).write_text(content, encoding="ascii")
        for number, node in enumerate(nodes, start=3):
            (home / "fd" / str(number)).symlink_to(node.resolve())

    def add_child(self, pid: int, attribute: str, value: str) -> None:
        """Show a child of the agent that stores a value and does not come back."""
        self.add_process(pid, "kata-gpu-store", ())
        folder = self.root / "proc" / str(pid)
        (folder / "fd/3").symlink_to(f"/memfd:kata-gpu:{attribute}={value} (deleted)")
        (folder / "wchan").write_text("vfio_unregister_group_dev")

    def remove_process(self, pid: int) -> None:
        """Let a process end."""
        shutil.rmtree(self.root / "proc" / str(pid))

    def _node(self, path: Path) -> str:
        """Make a node and return its number as sysfs shows it."""
        path.parent.mkdir(exist_ok=True)
        self._nodes = {node: device for node, device in self._nodes.items() if node.is_symlink()}
        used = list(self._nodes.values())
        self._nodes[path] = min(_CHARACTER_DEVICES, key=used.count)
        path.symlink_to(f"/dev/{self._nodes[path]}")
        return _number(path)

    def _root_bus(self, spec: DeviceSpec) -> Path:
        return self.sys / "devices" / f"pci{spec.domain_and_bus}"

    def _join_group(self, address: str, home: Path, number: int) -> None:
        group = self.sys / "kernel/iommu_groups" / str(number)
        if not group.exists():
            (group / "devices").mkdir(parents=True)
            self._put(group / "type", "DMA-FQ\n", READ_WRITE)
            self._put(group / "reserved_regions", _RESERVED, READ_ONLY)
        _link(group / "devices" / address, home)
        _link(home / "iommu_group", group)

    def reserve_direct(self, number: int) -> None:
        """Show a region that the firmware wants mapped one to one for a group."""
        regions = self.sys / "kernel/iommu_groups" / str(number) / "reserved_regions"
        self._put(regions, _RESERVED_DIRECT + _RESERVED, READ_ONLY)

    def _put(self, file: Path, content: str, mode: int) -> None:
        """Make or replace a file, so that a reader sees the old content or the new."""
        new = self.root / ".new" if file.exists() else file
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            os.write(handle, content.encode("ascii"))
        finally:
            os.close(handle)
        if new != file:
            new.replace(file)


def _put_at(file: Path, offset: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(content)


def _number(node: Path) -> str:
    number = node.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}\n"


def _link(link: Path, target: Path) -> None:
    link.symlink_to(os.path.relpath(target, link.parent))


def _attributes(spec: DeviceSpec) -> dict[str, str]:
    found = {
        "vendor": f"{spec.vendor:#06x}",
        "device": f"{spec.device:#06x}",
        "class": f"{spec.class_code:#08x}",
        "subsystem_vendor": f"{spec.subsystem[0]:#06x}",
        "subsystem_device": f"{spec.subsystem[1]:#06x}",
        "revision": f"{spec.revision:#04x}",
        "power_state": "D0",
        "modalias": _modalias(spec),
        "resource": _resource(spec),
    }
    if spec.pcie:
        speed, width = spec.link
        found |= {"current_link_speed": speed, "max_link_speed": speed}
        found |= {"current_link_width": f"{width}", "max_link_width": f"{width}"}
    if spec.class_code >> 8 == VGA:
        found["boot_vga"] = "1" if spec.boot_vga else "0"
    return found


def _resource(spec: DeviceSpec) -> str:
    lines = []
    start = _FIRST_WINDOW
    for size in spec.bars:
        start = -(-start // size) * size
        big = size >= _BIG_BAR
        flags = _MEMORY_64_BIT_PREFETCHABLE if big else _MEMORY
        lines.append(f"{start:#018x} {start + size - 1:#018x} {flags:#018x}")
        lines += [_NO_RESOURCE] if big else []
        start += size
    total = _BRIDGE_RESOURCES if spec.header_type else _RESOURCES
    return "\n".join(lines + [_NO_RESOURCE] * (total - len(lines)))


def _modalias(spec: DeviceSpec) -> str:
    base, sub, interface = spec.class_code.to_bytes(3, "big")
    return (
        f"pci:v{spec.vendor:08X}d{spec.device:08X}"
        f"sv{spec.subsystem[0]:08X}sd{spec.subsystem[1]:08X}"
        f"bc{base:02X}sc{sub:02X}i{interface:02X}"
    )


def _uevent(spec: DeviceSpec, driver: str | None) -> str:
    held = f"DRIVER={driver}\n" if driver else ""
    return (
        f"{held}PCI_CLASS={spec.class_code:04X}\n"
        f"PCI_ID={spec.vendor:04X}:{spec.device:04X}\n"
        f"PCI_SUBSYS_ID={spec.subsystem[0]:04X}:{spec.subsystem[1]:04X}\n"
        f"PCI_SLOT_NAME={spec.address}\nMODALIAS={_modalias(spec)}\n"
    )


def _config(spec: DeviceSpec) -> bytes:
    """Return configuration space: the header, and a PCI Express capability at 0x40."""
    space = bytearray(4096 if spec.pcie else 256)
    vendor, device = (spec.vendor, spec.device) if spec.physfn is None else (0xFFFF, 0xFFFF)
    space[0x00:0x02] = vendor.to_bytes(2, "little")
    space[0x02:0x04] = device.to_bytes(2, "little")
    space[0x04:0x08] = b"\x06\x00\x10\x00"  # memory and bus mastering on; has capabilities
    space[0x08] = spec.revision
    space[0x09:0x0C] = spec.class_code.to_bytes(3, "little")
    space[0x0E] = spec.header_type | (0x80 if spec.multifunction else 0)
    if spec.header_type == 0:
        space[0x2C:0x2E] = spec.subsystem[0].to_bytes(2, "little")
        space[0x2E:0x30] = spec.subsystem[1].to_bytes(2, "little")
    if spec.pcie:
        space[0x34] = 0x40
        space[0x40] = 0x10
        space[0x47] = 0x10 if "flr" in spec.reset_methods else 0
    return bytes(space)
