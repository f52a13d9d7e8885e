"""The device nodes of a PCI function, by number: what its users open.

A name proves nothing, since containers have paths of their own; major and minor are the
same everywhere. They come from the function's own directory in sysfs, and from where the
drivers say that keep theirs elsewhere: VFIO's groups, NVIDIA's GPUs, AMD's compute node.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.model.pci import PciAddress

_NUMBER: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")
_NODE_NAME: Final = re.compile(r"^DEVNAME=([\w!:.+-]+(?:/[\w!:.+-]+)*)$", re.MULTILINE | re.ASCII)
_FUNCTION: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

_READ_MAX: Final = 65536

_NVIDIA_MAJOR: Final = re.compile(r"^ *([0-9]+) nvidia(?:-frontend)?$", re.MULTILINE)
_NVIDIA_MAJOR_USUAL: Final = 195  # Linux Documentation/admin-guide/devices.txt
_NVIDIA_MINORS: Final = range(248)  # the rest are control nodes, which belong to no GPU
_DEVICE_MINOR: Final = re.compile(r"^Device Minor:\s+([0-9]{1,3})$", re.MULTILINE)


def of(host: Host, address: PciAddress) -> dict[int, str]:
    """Return the character devices of a function, as numbers with the nodes' usual paths.

    Nothing when the function is gone. Block devices are no part of it: what is mounted has no
    descriptor, and their numbers are others' too.

    Raises:
        HostError: its directory cannot be read, so nobody can say what its users open.
    """
    device = f"bus/pci/devices/{address}"
    found = dict(_below(f"{host.sysfs.root}/{device}"))
    group = host.sysfs.link(f"{device}/iommu_group")
    if group is not None:
        found |= _vfio_group(host, group)
    match host.sysfs.link(f"{device}/driver"):
        case "nvidia":
            found |= _nvidia(host, address)
        case "amdgpu":
            found |= _listed(host, "class/kfd/kfd", "/dev/kfd")
        case _:
            pass
    return found


def _below(directory: str) -> Iterator[tuple[int, str]]:
    """Walk a device's own directories, not those of the functions behind it."""
    try:
        with os.scandir(directory) as entries:
            inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot list {directory}: {error.strerror}") from error
    yield from _device(directory)
    for name in inner:
        if _FUNCTION.fullmatch(name) is None:
            yield from _below(f"{directory}/{name}")


def _device(directory: str) -> Iterator[tuple[int, str]]:
    number = _read(f"{directory}/dev")
    match = _NUMBER.fullmatch(number)
    if match is None or _class(directory) == "block":
        return
    name = _NODE_NAME.search(_read(f"{directory}/uevent"))
    yield (
        os.makedev(int(match[1]), int(match[2])),
        f"/dev/{name[1]}" if name is not None else f"character device {number}",
    )


def _class(directory: str) -> str:
    try:
        return os.readlink(f"{directory}/subsystem").rpartition("/")[2]
    except OSError:
        return ""


def _read(path: str | Path) -> str:
    """Return a small file's text; nothing where there is none, or it has just gone."""
    try:
        with open(path, encoding="latin-1") as file:
            return file.read(_READ_MAX).strip()
    except OSError:
        return ""


def _vfio_group(host: Host, group: str) -> dict[int, str]:
    """Return the group's node, which every function of the group is opened through."""
    found: dict[int, str] = {}
    for name in (group, f"noiommu-{group}"):
        found |= _listed(host, f"class/vfio/{name}", f"/dev/vfio/{name}")
    return found


def _listed(host: Host, directory: str, node: str) -> dict[int, str]:
    match = _NUMBER.fullmatch(_read(f"{host.sysfs.root}/{directory}/dev"))
    return {} if match is None else {os.makedev(int(match[1]), int(match[2])): node}


def _nvidia(host: Host, address: PciAddress) -> dict[int, str]:
    """Return the GPU's own node; every GPU's when its driver does not say which it is."""
    listed = _NVIDIA_MAJOR.search(_read(host.path("/proc/devices")))
    major = _NVIDIA_MAJOR_USUAL if listed is None else int(listed[1])
    said = _read(host.path(f"/proc/driver/nvidia/gpus/{address}/information"))
    minor = _DEVICE_MINOR.search(said)
    minors = _NVIDIA_MINORS if minor is None else (int(minor[1]),)
    return {os.makedev(major, minor): f"/dev/nvidia{minor}" for minor in minors}
