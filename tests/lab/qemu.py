"""QEMU's command line, as a pure function of the topology; and what QEMU there is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import process
from tests.lab.errors import LabError
from tests.lab.topology import Place, Topology, places

_KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 loglevel=4 panic=-1 intel_iommu=on iommu=pt mitigations=off nokaslr "
    "tsc=reliable no_timer_check lpj=4000000 audit=0 apparmor=0 selinux=0"
)
# 5-level page tables cost time under emulation; with the default address width SeaBIOS pads
# the windows of empty ports until nothing fits, and hangs
_CPU: Final = {"tcg": "max,-la57,phys-bits=36", "kvm": "host,phys-bits=36"}
_ACCELERATOR: Final = {"tcg": "tcg,thread=multi", "kvm": "kvm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a guest boots, and the two folders of the host that it sees."""

    vmlinux: Path
    initramfs: Path
    modules: Path
    init: Path
    root: Path
    out: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Connected sockets, as file descriptors that QEMU inherits."""

    control: int
    """The guest's second serial port."""

    monitor: int
    """The host's monitor."""

    inner_monitor: int
    """A second monitor …"""

    inner_serial: int
    """… and the guest's third serial port, which is connected to it."""


def has(device: str) -> bool:
    """Tell whether the QEMU that is installed has a device; without QEMU there is none."""
    try:
        known = process.output(("qemu-system-x86_64", "-device", "help"), timeout_s=30)
    except LabError:
        return False
    return f'name "{device}"' in known


def arguments(
    topology: Topology, boot: Boot, lines: Lines, accelerator: str, cpus: int
) -> tuple[str, ...]:
    """Return the arguments for a guest that is stopped before its first instruction."""
    return (
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"),
        *("-machine", "q35,kernel-irqchip=split"),
        *("-accel", _ACCELERATOR[accelerator], "-cpu", _CPU[accelerator]),
        *("-smp", str(cpus), "-m", f"{topology.memory_mib}M"),
        *_numa(topology, cpus),
        *(("-device", "intel-iommu,intremap=on,caching-mode=on") if topology.iommu else ()),
        *("-serial", f"file:{boot.out}/console"),
        *_line("control", lines.control, "-serial", "chardev:control"),
        *_line("monitor", lines.monitor, "-mon", "chardev=monitor,mode=control"),
        *_line("inner", lines.inner_monitor, "-mon", "chardev=inner,mode=control"),
        *_line("inner-serial", lines.inner_serial, "-serial", "chardev:inner-serial"),
        *_share("root", boot.root, "0x1d", ",readonly=on"),
        *_share("out", boot.out, "0x1e", ""),
        *_devices(topology, boot.out),
        *("-kernel", str(boot.vmlinux), "-initrd", str(boot.initramfs)),
        *("-append", f"{_KERNEL_ARGUMENTS} lab.init={boot.init} lab.modules={boot.modules}"),
    )


def _numa(topology: Topology, cpus: int) -> Iterator[str]:
    if not topology.far_parts:
        return
    half = topology.memory_mib // 2
    for node in (0, 1):
        cpu = f",cpus={node}" if node < cpus else ""
        yield from ("-object", f"memory-backend-ram,id=node{node},size={half}M")
        yield from ("-numa", f"node,nodeid={node}{cpu},memdev=node{node}")


def _line(name: str, descriptor: int, *use: str) -> tuple[str, ...]:
    return ("-chardev", f"socket,id={name},fd={descriptor}", *use)


def _share(tag: str, path: Path, slot: str, options: str) -> tuple[str, ...]:
    share = f"local,id={tag},path={path},security_model=none,multidevs=remap{options}"
    device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag},disable-legacy=on"
    return ("-fsdev", share, "-device", f"{device},bus=pcie.0,addr={slot}")


def _devices(topology: Topology, out: Path) -> Iterator[str]:
    if topology.far_parts:
        yield from ("-device", "pxb-pcie,id=far,bus_nr=64,numa_node=1,bus=pcie.0,addr=0x1c")
    for place in places(topology):
        function = place.function
        if function is None:
            yield from ("-device", device_argument(place))
        elif function.shown:
            for backend in function.model.backends:
                yield backend.format(role=place.role, disk=out / "disk")
            yield from ("-device", device_argument(place).format(role=place.role))


def device_argument(place: Place) -> str:
    """Return the value of ``-device`` for a place."""
    model, *options = place.qemu_device.split(",")
    where = f"id={place.role},bus={place.parent},addr={place.devfns[-1]}"
    return ",".join((model, where, *options))
