"""Read PCI functions from sysfs: all of them a little, those that matter in full.

Everything that sysfs says may come from a device and is untrusted: numbers are parsed,
names must look like names, and what does not is a problem of that one function.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci; ioport.h for resource flags.
"""

import re
from dataclasses import dataclass
from typing import Final

from kata_gpu.errors import HostError, KataGpuError, StuckError
from kata_gpu.host import sriov
from kata_gpu.host.children import Answer
from kata_gpu.host.pci_ids import PciIds
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import (
    OVERRIDE_UNSET,
    Bar,
    Binding,
    Identity,
    Link,
    PciAddress,
    PciFunction,
    PhysicalFunction,
    SriovRole,
    VirtualFunction,
)

DEVICES: Final = "bus/pci/devices"
_SLOTS: Final = "bus/pci/slots"

_IDENTITY: Final = ("vendor", "device", "class")
_LINK: Final = frozenset(
    {"current_link_speed", "current_link_width", "max_link_speed", "max_link_width"}
)  # EINVAL where a link is down
_OPTIONAL: Final = _LINK | {"serial_number"}  # which only CAP_SYS_ADMIN may read
_DETAILS: Final = (
    "subsystem_vendor",
    "subsystem_device",
    "revision",
    "numa_node",
    "resource",
    *sorted(_LINK),
    "reset_method",
    "power_state",
    "boot_vga",
    "sriov_totalvfs",
    "serial_number",
)
_MEMORY: Final = {"amdgpu": "mem_info_vram_total"}
"""By driver: what it adds to a function, with the bytes of memory that it found."""

_MEMORY_MAX_BYTES: Final = 1 << 50
_PROBES_VFS: Final = "sriov_drivers_autoprobe"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_HEX: Final = re.compile(r"0x[0-9a-f]{1,16}")
_SERIAL: Final = re.compile(r"[0-9a-f]{2}(-[0-9a-f]{2}){7}")
_SPEED: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9])?) GT/s")
_ROOT: Final = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")

_BARS: Final = 6
_NO_BAR: Final = " ".join(3 * ["0x0000000000000000"])
_FLAG_IO: Final = 0x100
_FLAG_MEMORY: Final = 0x200
_FLAG_PREFETCH: Final = 0x2000
_FLAG_64_BIT: Final = 0x100000
_CONFIG_HEADER_BYTES: Final = 64  # more costs a bus cycle for each 4 bytes
_HEADER_TYPE_OFFSET: Final = 0x0E
_HEADER_TYPE_MASK: Final = 0x7F
_CONFIG_DEAD: Final = 0x7F
_LINK_WIDTH_UNKNOWN: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a function is and where it hangs: the little that is read of every one."""

    identity: Identity
    root: str
    bridges: tuple[PciAddress, ...]
    group: int | None


class UnreadableFunctionError(HostError):
    """One function cannot be read, or says what no function says; the others can."""


def place(sysfs: Sysfs, name: str) -> Place:
    """Read what the function called *name* is and where it hangs.

    Raises:
        UnreadableFunctionError: it vanished, or its attributes are not what they must be.
    """
    try:
        address = PciAddress.parse(name)
        directory = f"{DEVICES}/{address}"
        found = sysfs.attributes(directory, _IDENTITY)
        root, bridges = _position(sysfs.target(directory) or "")
        return Place(
            identity=Identity(
                address=address,
                vendor=_hex(found, "vendor"),
                device=_hex(found, "device"),
                class_code=_hex(found, "class"),
            ),
            root=root,
            bridges=bridges,
            group=_group(sysfs.link(f"{directory}/iommu_group")),
        )
    except (HostError, ValueError) as error:
        raise UnreadableFunctionError(f"cannot read PCI function {name!r}: {error}") from error


def override_path(address: PciAddress) -> str:
    """Return the attribute to ask `Sysfs.locked` for before `details`."""
    return f"{DEVICES}/{address}/driver_override"


def slots(sysfs: Sysfs) -> dict[tuple[int, int, int], str]:
    """Return the name of each physical slot, by what its functions share of the address."""
    found = {}
    for name in sysfs.names(_SLOTS):
        try:
            text = sysfs.read(f"{_SLOTS}/{name}/address")
            address = PciAddress.parse(f"{text}.0")
        except (HostError, ValueError):  # a slot without a card has no device part
            continue
        if _NAME.fullmatch(name):
            found[address.slot] = name
    return found


def details(
    sysfs: Sysfs, where: Place, names: PciIds, override: Answer, *, slot: str | None = None
) -> PciFunction:
    """Read everything about the function at *where* that needs no lock.

    *override* is what its driver_override answered; where it hangs, it counts as unset, and
    the inventory's operations say that the binding is not to be relied on.

    Raises:
        UnreadableFunctionError: it vanished, or its attributes are not what they must be.
    """
    identity = where.identity
    directory = f"{DEVICES}/{identity.address}"
    try:
        found = sysfs.attributes(directory, _DETAILS, optional=_OPTIONAL)
        devices = sysfs.names(f"{directory}/vfio-dev")
        vendor_name, product_name = names.names(identity.vendor, identity.device)
        driver = _name(sysfs.link(f"{directory}/driver"))
        return PciFunction(
            identity=identity,
            subsystem_vendor=_hex(found, "subsystem_vendor"),
            subsystem_device=_hex(found, "subsystem_device"),
            revision=_hex(found, "revision", absent="0x0"),
            binding=Binding(
                driver=driver,
                override=_override(override),
            ),
            numa_node=_known(found.get("numa_node")),
            iommu_group=where.group,
            root=where.root,
            bridges=where.bridges,
            header_type=_header_type(sysfs.head(f"{directory}/config", _CONFIG_HEADER_BYTES)),
            bars=_bars(found.get("resource", "")),
            link=_link(found),
            reset_methods=tuple(
                m for m in found.get("reset_method", "").split() if _NAME.fullmatch(m)
            ),
            sriov=_sriov(sysfs, identity.address, found),
            power_state=_name(found.get("power_state")),
            is_boot_display=found.get("boot_vga") == "1",
            slot=slot,
            serial=_serial(found.get("serial_number")),
            is_on_vfio=bool(devices),
            vfio_cdev=_cdev(sysfs, directory, devices),
            vendor_name=vendor_name,
            product_name=product_name,
            memory_bytes=_memory_bytes(sysfs, directory, driver),
        )
    except (HostError, ValueError) as error:
        raise UnreadableFunctionError(
            f"cannot read PCI function {identity.address}: {error}"
        ) from error


def _position(target: str) -> tuple[str, tuple[PciAddress, ...]]:
    """Split ``../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0`` at its bridges."""
    root = ""
    bridges: list[PciAddress] = []
    for part in target.split("/")[:-1]:
        if _ROOT.fullmatch(part):
            root, bridges = part, []
        elif root:
            bridges.append(PciAddress.parse(part))
    if not root:
        raise ValueError(f"no PCI root in its path {target[:256]!r}")
    return root, tuple(bridges)


def _hex(found: dict[str, str], attribute: str, *, absent: str = "") -> int:
    return _number(attribute, found.get(attribute, absent))


def _number(attribute: str, text: str) -> int:
    if not _HEX.fullmatch(text):
        raise ValueError(f"{attribute} is {text[:64]!r}, not a hexadecimal number")
    return int(text, 16)


def _known(text: str | None) -> int | None:
    """Return a count; None where the kernel writes a negative number for "unknown"."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _memory_bytes(sysfs: Sysfs, directory: str, driver: str | None) -> int | None:
    """Return what its driver says of a GPU's memory; None where it says nothing."""
    attribute = _MEMORY.get(driver or "")
    if attribute is None:
        return None
    told = sysfs.attributes(directory, (attribute,), optional=frozenset({attribute}))
    found = _known(told.get(attribute)) or 0
    return found if 0 < found <= _MEMORY_MAX_BYTES else None


def _name(text: str | None) -> str | None:
    return text if text is not None and _NAME.fullmatch(text) else None


def _serial(text: str | None) -> str | None:
    """Return a device serial number; None where there is none, or all its bytes are equal."""
    if text is None or not _SERIAL.fullmatch(text) or len(set(text.split("-"))) == 1:
        return None
    return text


def _override(answer: Answer) -> str | None:
    if isinstance(answer, StuckError):
        return None
    if isinstance(answer, KataGpuError):
        raise answer
    if answer in OVERRIDE_UNSET:
        return None
    if not _NAME.fullmatch(answer):
        raise ValueError(f"driver_override is {answer[:64]!r}, not a driver's name")
    return answer


def _group(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"iommu_group is {text!r}, not a number")
    return int(text)


def _header_type(config: bytes) -> int | None:
    """Return the header type from config space, which reads as ff when nobody answers."""
    if len(config) < _CONFIG_HEADER_BYTES:
        return None
    kind = config[_HEADER_TYPE_OFFSET] & _HEADER_TYPE_MASK  # without the multi-function bit
    return None if kind == _CONFIG_DEAD else kind


def _bars(resource: str) -> tuple[Bar, ...]:
    bars = []
    for index, line in enumerate(resource.split("\n", _BARS)[:_BARS]):
        if line == _NO_BAR:
            continue
        start, end, flags = (_number("resource", part) for part in line.split())
        if flags & (_FLAG_IO | _FLAG_MEMORY) and end >= start:
            bars.append(
                Bar(
                    index=index,
                    size_bytes=end - start + 1,
                    is_prefetchable=bool(flags & _FLAG_PREFETCH),
                    is_64_bit=bool(flags & _FLAG_64_BIT),
                )
            )
    return tuple(bars)


def _link(found: dict[str, str]) -> Link | None:
    if "max_link_speed" not in found and "current_link_speed" not in found:
        return None
    return Link(
        speed_gt_s=_speed(found.get("current_link_speed", "")),
        width=_width(found.get("current_link_width")),
        max_speed_gt_s=_speed(found.get("max_link_speed", "")),
        max_width=_width(found.get("max_link_width")),
    )


def _speed(text: str) -> float | None:
    match = _SPEED.match(text)
    return float(match.group(1)) if match else None


def _width(text: str | None) -> int | None:
    lanes = _known(text)
    return None if lanes in {0, _LINK_WIDTH_UNKNOWN} else lanes


def _sriov(sysfs: Sysfs, address: PciAddress, found: dict[str, str]) -> SriovRole | None:
    directory = f"{DEVICES}/{address}"
    parent = sysfs.link(f"{directory}/physfn")
    if parent is not None:
        return VirtualFunction(parent=PciAddress.parse(parent))
    total = _known(found.get("sriov_totalvfs"))
    if not total:
        return None
    probes = sysfs.attributes(directory, (_PROBES_VFS,)).get(_PROBES_VFS)
    return PhysicalFunction(
        total_vfs=total,
        active_vfs=len(sriov.virtuals(sysfs, address)),
        probes_vfs=probes != "0",
    )


def _cdev(sysfs: Sysfs, directory: str, devices: list[str]) -> str | None:
    """Return the VFIO device that has a character device number of its own."""
    for name in devices:
        if _NAME.fullmatch(name) and sysfs.exists(f"{directory}/vfio-dev/{name}/dev"):
            return name
    return None
