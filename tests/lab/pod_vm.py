"""A second VM inside the guest, given device nodes as a pod VM is.

What Kata does with a CDI spec is done here by hand: the nodes are looked up (a group's node
stands for all functions of the group but bridges, a device's node for its one function) and
QEMU gets those functions. It runs in a mount namespace whose /dev/vfio has the control node
and the named nodes only, so that a node that the spec forgot makes it fail.

Runs inside the lab's guest, as root, with functions that are bound to vfio-pci already.
"""

import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import process
from tests.lab.errors import LabError
from tests.lab.kernel import Kernel

_TIMEOUT_S: Final = 240.0  # 13 s with KVM in the guest when quiet, 110 s seen without
_HOLD_TIMEOUT_S: Final = 60.0
_KILL_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1
_HOST_BRIDGE: Final = 0x0600
_PCI_BRIDGE: Final = 0x0604
_DEVICES: Final = Path("/sys/bus/pci/devices")
_GROUPS: Final = Path("/sys/kernel/iommu_groups")
_KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 panic=-1 quiet nokaslr mitigations=off no_timer_check tsc=reliable "
    "lpj=4000000 nosmp audit=0 apparmor=0 random.trust_cpu=1"
)
_SEEN: Final = re.compile(r"pod-vm: function (\S+) 0x(\w{4}) 0x(\w{4}) 0x(\w{6})")
_LAST_WORD: Final = "pod-vm: end"
# the name of a folder of /dev cannot hold a space, so the nodes need no quoting
_IN_NAMESPACE: Final = """\
set -e
mkdir -p /run/lab/vfio
mount -t tmpfs tmpfs /run/lab/vfio
mkdir /run/lab/vfio/devices
cd /dev/vfio
cp -a --parents {nodes} /run/lab/vfio/
mount --move /run/lab/vfio /dev/vfio
cd /
exec {command}
"""


@dataclass(frozen=True, slots=True)
class SeenFunction:
    """A PCI function as the pod VM's kernel shows it."""

    address: str
    """In the pod VM, not on the node."""

    vendor: int
    device: int
    class_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a pod VM saw."""

    functions: tuple[SeenFunction, ...]
    """The functions it was given; those of its own chipset are left out."""

    accelerator: str
    elapsed_s: float
    console: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A QEMU that has the functions open and runs nothing."""

    process: "subprocess.Popen[bytes]"
    addresses: tuple[str, ...]

    def kill(self) -> None:
        """Kill it as a crash would; the functions are free when this returns."""
        self.process.kill()
        self.process.wait(_KILL_TIMEOUT_S)


def functions_behind(node: str) -> tuple[str, ...]:
    """Return the addresses that a device node stands for, as Kata finds them.

    Raises:
        LabError: the node is not VFIO's, has no functions, or one is not on vfio-pci.
    """
    path = Path(node)
    if path.parent == Path("/dev/vfio/devices"):
        addresses = [link.parent.parent.name for link in _DEVICES.glob(f"*/vfio-dev/{path.name}")]
    elif path.parent == Path("/dev/vfio") and path.name.isdecimal():
        members = sorted((_GROUPS / path.name / "devices").glob("*"))
        addresses = [member.name for member in members if not _is_bridge(member)]
    else:
        raise LabError(f"cannot give {node} to a pod VM: it is no group's or device's node of VFIO")
    if not addresses:
        raise LabError(f"cannot give {node} to a pod VM: no function is behind it")
    for address in addresses:
        driver = _DEVICES / address / "driver"
        held_by = driver.readlink().name if driver.is_symlink() else "no driver"
        if held_by != "vfio-pci":
            raise LabError(f"cannot give {node} to a pod VM: {address} is held by {held_by}")
    return tuple(addresses)


def boot(nodes: tuple[str, ...], *, timeout_s: float = _TIMEOUT_S) -> Report:
    """Boot a pod VM with these device nodes and return what its kernel shows.

    With KVM inside the guest where that works, else emulated in emulation.

    Raises:
        LabError: it did not come to its end in time; the text has QEMU's output and its console.
    """
    deadline = time.monotonic() + timeout_s
    if accelerator() == "kvm":
        try:
            return _boot(nodes, "kvm", deadline)
        except _EndedError:
            pass  # not every emulated or nested CPU runs guests
    return _boot(nodes, "tcg", deadline)


@contextmanager
def held(nodes: tuple[str, ...]) -> Iterator[Holder]:
    """Hold the functions behind the nodes open, as a running pod VM does; end it after."""
    ours, theirs = socket.socketpair()
    arguments = (
        *(*_machine(accelerator(), memory_mib=64), "-S"),  # less to pin
        *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
    )
    with ours, _started(nodes, arguments, theirs) as running:
        theirs.close()
        if not _answers(ours):
            running.process.kill()
            raise LabError(f"cannot hold {', '.join(nodes)}: {running.log.read_text().strip()}")
        yield Holder(running.process, running.addresses)


def _answers(monitor: socket.socket) -> bool:
    """Tell whether QEMU gets as far as serving its monitor, which is after opening devices."""
    monitor.settimeout(_HOLD_TIMEOUT_S)
    monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
    received = b""
    while b'"return"' not in received:
        try:
            part = monitor.recv(4096)
        except (TimeoutError, ConnectionResetError):
            return False
        if not part:
            return False
        received += part
    return True


def accelerator() -> str:
    """Return "kvm" if this guest's CPU has virtualization and the kernel a module for it."""
    for module in ("kvm_amd", "kvm_intel"):
        if Path("/dev/kvm").exists():
            break
        try:
            process.output(("modprobe", module), timeout_s=60)
        except LabError:
            continue  # the other maker's module
    return "kvm" if Path("/dev/kvm").exists() else "tcg"


class _EndedError(LabError):
    """QEMU ended by itself."""


@dataclass(frozen=True, slots=True)
class _Running:
    process: "subprocess.Popen[bytes]"
    addresses: tuple[str, ...]
    log: Path
    console: Path


def _boot(nodes: tuple[str, ...], accelerated: str, deadline: float) -> Report:
    started = time.monotonic()
    kernel = _kernel()
    arguments = (
        *_machine(accelerated, memory_mib=128),  # every page is pinned, which takes time
        *("-kernel", str(kernel.vmlinux), "-initrd", str(kernel.pod_initramfs)),
        *("-append", _KERNEL_ARGUMENTS),
    )
    with _started(nodes, arguments) as running:
        console = ""
        while _LAST_WORD not in console:
            status = running.process.poll()
            overdue = time.monotonic() >= deadline
            if status is not None or overdue:
                ended = f"QEMU ended with status {status}" if not overdue else "it took too long"
                why = f"cannot boot a pod VM with {', '.join(nodes)}: {ended}"
                text = f"{why}\n{running.log.read_text()}\n{console[-3000:]}"
                raise LabError(text) if overdue else _EndedError(text)
            time.sleep(_POLL_S)
            console = running.console.read_text(errors="replace")
    return Report(
        functions=tuple(_seen(console)),
        accelerator=accelerated,
        elapsed_s=time.monotonic() - started,
        console=console,
    )


def _seen(console: str) -> Iterator[SeenFunction]:
    for address, *identity in _SEEN.findall(console):
        if not address.startswith("0000:00:"):  # bus 0 has the chipset and the ports
            yield SeenFunction(address, *(int(part, 16) for part in identity))


def _kernel() -> Kernel:
    """Return the kernel that the guest itself runs."""
    arguments = Path("/proc/cmdline").read_text(encoding="ascii")
    modules = re.search(r"lab\.modules=(\S+)", arguments)
    if modules is None:
        raise LabError("cannot boot a pod VM: this is not inside the lab's guest")
    return Kernel(Path(modules[1]).parent.parent.parent)


def _machine(accelerated: str, *, memory_mib: int) -> tuple[str, ...]:
    cpu = "host" if accelerated == "kvm" else "max,-la57,phys-bits=36"
    return (
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-machine", "q35", "-accel", accelerated, "-cpu", cpu),
        *("-m", f"{memory_mib}M"),
    )


@contextmanager
def _started(
    nodes: tuple[str, ...], arguments: tuple[str, ...], line: socket.socket | None = None
) -> Iterator[_Running]:
    """Start QEMU with the functions behind the nodes, seeing no other node; kill it after."""
    behind = {node: functions_behind(node) for node in nodes}
    addresses = tuple(address for node in nodes for address in behind[node])
    with tempfile.TemporaryDirectory(prefix="pod-vm-") as folder:
        console, log = Path(folder) / "console", Path(folder) / "log"
        console.touch()
        command = (*arguments, "-serial", f"file:{console}", *_devices(behind))
        names = ("vfio", *(node.removeprefix("/dev/vfio/") for node in nodes))
        script = _IN_NAMESPACE.format(nodes=shlex.join(names), command=shlex.join(command))
        with log.open("wb") as output:
            child = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", script),
                env=process.ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[line.fileno()] if line else [],
            )
        try:
            yield _Running(child, addresses, log, console)
        finally:
            child.kill()
            child.wait(_KILL_TIMEOUT_S)


def _devices(behind: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Give each function a port of its own, as Kata's cold plug does."""
    if any(node.startswith("/dev/vfio/devices/") for node in behind):
        yield from ("-object", "iommufd,id=iommufd")
    port = 0
    for node, addresses in behind.items():
        backend = ",iommufd=iommufd" if node.startswith("/dev/vfio/devices/") else ""
        for address in addresses:
            port += 1
            yield from ("-device", f"pcie-root-port,id=port{port},chassis={port},slot={port}")
            yield from ("-device", f"vfio-pci,host={address},bus=port{port}{backend}")


def _is_bridge(device: Path) -> bool:
    class_code = int((device / "class").read_text(encoding="ascii"), 16)
    return class_code >> 8 in {_HOST_BRIDGE, _PCI_BRIDGE}
