"""A kernel in the test's own process: real files to read, and stores that act as Linux's do.

It refuses what the kernel refuses, with the same errno; `tests/kernel/contract.py` is held
against it and against a real kernel. A store that it does not model is an AssertionError,
never a success.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError, StuckError
from kata_gpu.host import Host
from kata_gpu.host.children import Answer
from kata_gpu.host.sysfs import Sysfs
from tests.kernel import attributes
from tests.kernel.answers import WouldBlockForever, refuse
from tests.kernel.bus import Bus, Function
from tests.kernel.modules import Modules, module_name
from tests.kernel.specs import PCI_BRIDGE, DeviceSpec, DriverSpec, PciId, Sriov
from tests.kernel.tree import Tree

ROOT_PORT: Final = "0000:00:01.0"
RELEASE: Final = "6.1.0-56-amd64"

WriteFilter = Callable[[str, str], bool]
"""Tells by path and value whether a write is meant."""

_GPU_BARS: Final = (16 << 20, 128 << 30, 32 << 20)
_FIRST_PID: Final = 4_194_400  # above any that Linux gives
_INTERRUPTS: Final = """\
           CPU0       CPU1
  0:         11          0  {remapped}IO-APIC    2-edge      timer
 24:          0       1432  {remapped}PCI-MSI 1048576-edge      eth0
"""


class FakeKernel(Sysfs):
    """The sysfs of a host whose files are below *root*, and the programs it can run."""

    def __init__(
        self,
        root: Path,
        *,
        iommu: str | None = "dmar0",
        interrupt_remapping: bool = True,
        unsafe_interrupts: bool = False,
        noiommu_mode: bool = False,
        cdevs: bool = False,
        release: str = RELEASE,
    ) -> None:
        super().__init__(root / "sys")
        self.tree = Tree(root)
        self.bus = Bus(
            self.tree,
            hotplug_honours_autoprobe=int(release.split(".", maxsplit=1)[0]) >= 7,
            cdevs=cdevs,
            noiommu=noiommu_mode,
        )
        self._modules = Modules(
            self.tree,
            self.bus,
            release,
            vfio={
                "vfio": {"enable_unsafe_noiommu_mode": noiommu_mode},
                "vfio_iommu_type1": {"allow_unsafe_interrupts": unsafe_interrupts},
            },
        )
        self._has_iommu = iommu is not None
        self._lock = threading.RLock()
        self._let_go = threading.Condition(self._lock)

        self.writes: list[tuple[str, str]] = []
        """Every write that was tried, as path and value, whatever came of it."""
        self.runs: list[tuple[str, ...]] = []
        """Every program that was run."""
        self.read_only = False
        """Whether every write fails with EROFS, as in a container without a writable /sys."""
        self.forbidden = False
        """Whether every write fails with EACCES, as for a user that is not root."""
        self.on_write: Callable[[str, str], None] | None = None
        """Called with each write before the kernel sees it; what it raises ends the write."""
        self.is_locked_down = False
        self.looks_before_start = 0
        """How often a device's memory is read after its reset before it answers."""

        self.after_write: Callable[[str, str], None] | None = None
        """Called with each write that the kernel has accepted."""
        self.on_run: Callable[[tuple[str, ...]], str] | None = None
        """Answers every program that is not modprobe; without it they are not modelled."""
        self.patience_s: float | None = None
        """How long an unbind waits for the function's user before it is left to itself, as the
        agent's children are; None raises WouldBlockForever instead."""
        self.delay: Callable[[str, str], float] | None = None
        """Tells how many seconds the kernel takes for a write."""
        self._failures: list[tuple[int | WriteFilter, int]] = []
        self._vanishing: list[tuple[int, str]] = []

        self.tree.text("proc/sys/kernel/osrelease", f"{release}\n")
        remapped = "IR-" if interrupt_remapping else ""
        self.tree.text("proc/interrupts", _INTERRUPTS.format(remapped=remapped))
        if iommu is not None:
            self.tree.add_iommu(iommu)
        if noiommu_mode or unsafe_interrupts:
            self._modules.load_vfio()

    @property
    def host(self) -> Host:
        """The whole host, for code that is handed one."""
        return Host(root=self.tree.root, sysfs=self, run=self.run)

    @property
    def deaf(self) -> set[str]:
        """Drivers that accept a bind, or a number of virtual functions, and ignore it."""
        return self.bus.deaf

    @property
    def stingy(self) -> set[str]:
        """Drivers that make one virtual function less than they are asked for."""
        return self.bus.stingy

    # the builder

    def add_driver(  # noqa: PLR0913 - one argument for each fact of a driver
        self,
        name: str,
        *,
        module: str | None = None,
        ids: Iterable[tuple[int, int] | PciId] = (),
        managed_dma: bool = False,
        takes_anything: bool = False,
        vfio: bool = False,
        sriov: Sriov = Sriov.NONE,
        aliases: tuple[str, ...] = (),
        loaded: bool = True,
    ) -> None:
        """Give the host a driver; one that is not *loaded* waits for modprobe."""
        rows = (
            row if isinstance(row, PciId) else PciId(vendor=row[0], device=row[1]) for row in ids
        )
        spec = DriverSpec(
            name=name,
            module=module_name(module or name),
            ids=tuple(rows),
            managed_dma=managed_dma,
            takes_anything=takes_anything,
            vfio=vfio,
            sriov=sriov,
            aliases=aliases,
        )
        self._modules.add(spec)
        if loaded:
            self._modules.register(spec)

    def add_module(
        self, name: str, *, aliases: tuple[str, ...] = (), error: str | None = None
    ) -> None:
        """Install a module without drivers; with an *error* modprobe cannot load it."""
        self._modules.add_module(module_name(name), aliases, error=error)

    def add_device(  # noqa: PLR0913 - one argument for each fact of a function
        self,
        address: str,
        *,
        vendor: int,
        device: int,
        class_code: int,
        driver: str | None = None,
        group: int | None = None,
        translated: bool = True,
        parent: str | None = ROOT_PORT,
        subsystem: tuple[int, int] = (0, 0),
        revision: int = 0,
        numa_node: int = -1,
        boot_vga: bool = False,
        reset_methods: tuple[str, ...] = ("flr", "bus"),
        header_type: int = 0,
        multifunction: bool = False,
        total_vfs: int = 0,
        vf_device: int = 0,
        vfs: int = 0,
        bars: tuple[int, ...] = _GPU_BARS,
        pcie: bool = True,
        link: tuple[str, int] = ("16.0 GT/s PCIe", 16),
    ) -> None:
        """Put a function on the bus, held by *driver*; a parent that is missing is a root port.

        Without a *group* it gets one of its own, unless the host has no IOMMU or none that
        translates for it. *vfs* virtual functions are enabled, without drivers.
        """
        if parent is not None and parent not in self.bus.functions:
            self.add_port(parent)
        spec = DeviceSpec(
            address=address,
            vendor=vendor,
            device=device,
            class_code=class_code,
            parent=parent,
            group=self._group(group, translated=translated),
            subsystem=subsystem,
            revision=revision,
            numa_node=numa_node,
            boot_vga=boot_vga,
            reset_methods=reset_methods,
            header_type=header_type,
            multifunction=multifunction,
            total_vfs=total_vfs,
            vf_device=vf_device,
            bars=bars,
            pcie=pcie,
            link=link,
        )
        function = self.bus.add(spec)
        if driver is not None:
            self.bus.bind(self.bus.drivers[driver], address)
        if vfs:
            function.virtuals_probe = False
            self.bus.enable_virtuals(function, vfs)
            function.virtuals_probe = True

    def add_port(
        self, address: str, *, parent: str | None = None, group: int | None = None
    ) -> None:
        """Put a PCI Express port on the bus, held by pcieport if the host has it."""
        self.add_device(
            address,
            vendor=0x8086,
            device=0x352A,
            class_code=PCI_BRIDGE,
            driver="pcieport" if "pcieport" in self.bus.drivers else None,
            group=group,
            parent=parent,
            header_type=1,
            reset_methods=(),
            bars=(),
        )

    # the world outside

    def plug(self, address: str) -> None:
        """Bring back a function that was unplugged or removed, as new."""
        with self._lock:
            spec = next(spec for spec in self.bus.gone if spec.address == address)
            self.bus.gone.remove(spec)
            self.bus.plug(spec)

    def unplug(self, address: str) -> None:
        """Pull a function out, with all that is behind it."""
        with self._lock:
            self.bus.pull(address)

    @contextmanager
    def vm_holds(self, address: str, command: str = "qemu-system-x86") -> Iterator[None]:
        """Let a VM have a function open; OSError as the kernel refuses it.

        ENOENT when nothing of its group is on VFIO, EBUSY when another has the group, EPERM
        when a host driver holds one of the group, ENODEV when VFIO does not hold this one.
        """
        with self._lock:
            function = self.bus.find(address)
            self.bus.open(function)
            node = self.tree.node(function.spec.group or 0)
        try:
            with self.process(command, node):
                yield
        finally:
            with self._let_go:
                function.holders -= 1
                self.bus.settle_power(function)
                self._let_go.notify_all()

    def vm_leaves(self, address: str) -> None:
        """Let the user of a function go, whoever it was."""
        with self._let_go:
            self.bus.functions[address].holders = 0
            self.bus.settle_power(self.bus.functions[address])
            self._let_go.notify_all()

    @contextmanager
    def process(self, command: str, *nodes: Path, uid: int = 0, cgroup: str = "/") -> Iterator[int]:
        """Let a process have device nodes open, and return its pid."""
        pid = self.spawn(command, *nodes, uid=uid, cgroup=cgroup)
        try:
            yield pid
        finally:
            self.tree.remove_process(pid)

    def spawn(self, command: str, *nodes: Path, uid: int = 0, cgroup: str = "/") -> int:
        """Let a process begin that has device nodes open, and return its pid."""
        with self._lock:
            pid = self._free_pid()
            self.tree.add_process(pid, command, nodes, uid=uid, cgroup=cgroup)
        return pid

    def run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        """Run modprobe, which loads a module of the table; see `kata_gpu.host.commands.Run`."""
        assert timeout_s > 0
        self.runs.append(tuple(argv))
        match argv:
            case ["modprobe", *where, "--", name] if where in ([], ["-d", str(self.host.root)]):
                with self._lock:
                    said = self._modules.load(name)
                if said is not None:
                    raise HostError(f"cannot run {' '.join(argv)}: exit status 1: {said}")
                return ""
            case ["modprobe", "-r", "--", name]:
                with self._lock:
                    self._modules.unload(name)
                return ""
            case _ if self.on_run is not None:
                return self.on_run(tuple(argv))
            case _:
                raise AssertionError(f"not modelled: run {' '.join(argv)}")

    # faults

    def fail_write(self, which: int | WriteFilter, code: int) -> None:
        """Refuse the write that will be ``writes[which]``, or all that a filter means."""
        self._failures.append((which, code))

    def vanish_after_write(self, index: int, address: str) -> None:
        """Unplug a function right after the write ``writes[index]``, whatever came of it."""
        self._vanishing.append((index, address))

    def unreadable(self, address: str, attribute: str) -> None:
        """Let every read of an attribute fail with EIO."""
        self.tree.make_unreadable(address, attribute)

    # stores

    def write(self, path: str, value: str) -> None:
        """Store a value as `Sysfs.write` does, and let the kernel act on it."""
        if not value:
            raise ValueError(f"an empty write to {path} never reaches the kernel")
        with self._lock:
            index = len(self.writes)
            self.writes.append((path, value))
            if self.on_write is not None:
                self.on_write(path, value)
        if self.delay is not None:
            time.sleep(self.delay(path, value))
        try:
            with self._lock:
                waiting = self._store(index, path, value)
            if waiting is not None:
                self._wait(waiting, path, value)
        except OSError as error:
            raise HostError(
                f"cannot write {value!r} to {self.root / path}: {error.strerror}"
            ) from error
        finally:
            self._vanish(index)
        with self._lock:
            if self.after_write is not None:
                self.after_write(path, value)

    def _store(self, index: int, path: str, value: str) -> Function | None:
        """Act on a write; return a function whose unbind has yet to end."""
        self._fail_as_told(index, path, value)
        real = os.path.relpath(os.path.realpath(self._at(path)), os.path.realpath(self.root))
        folder, _, attribute = real.rpartition("/")
        self._open(path, attribute)
        waiting = attributes.store(self.bus, folder, attribute, value)
        if waiting is not None and self.patience_s is None:
            raise WouldBlockForever(f"a user has {waiting.spec.address} open")
        return waiting

    def _fail_as_told(self, index: int, path: str, value: str) -> None:
        if self.read_only:
            refuse(errno.EROFS)
        if self.forbidden:
            refuse(errno.EACCES)
        for which, code in self._failures:
            if which(path, value) if callable(which) else which == index:
                refuse(code)

    def _vanish(self, index: int) -> None:
        with self._lock:
            for number, address in self._vanishing:
                if number == index and address in self.bus.functions:
                    self.unplug(address)

    def _open(self, path: str, attribute: str) -> None:
        """Refuse what cannot be opened for writing; an unknown name is the test's mistake."""
        at = Path(self._at(path))
        match path.split("/"):
            case ["bus", "pci", "devices" | "drivers" as kind, name, *_] if not self.exists(
                f"bus/pci/{kind}/{name}"
            ):
                refuse(errno.ENOENT)
            case _ if attribute in attributes.MODELLED and not at.exists():
                refuse(errno.ENOENT)
            case _ if not at.is_file():
                raise AssertionError(f"not modelled: write to {path}")
            case _:
                pass
        if not at.stat().st_mode & 0o222:
            refuse(errno.EACCES)

    def _wait(self, function: Function, path: str, value: str) -> None:
        """Wait for the user in a child, as the agent does, and leave it when it takes too long."""
        with self._lock:
            function.stuck = True
            self.tree.show_driver(function.spec, None)  # which goes first
        unbind = threading.Thread(target=self._finish_unbind, args=(function,), daemon=True)
        unbind.start()
        unbind.join(self.patience_s)
        with self._lock:
            if not function.stuck:
                return
            function.unbinder = self._free_pid()
            self.tree.add_child(function.unbinder, path, value)
        raise StuckError(f"cannot wait longer for {path}", function.unbinder)

    def _finish_unbind(self, function: Function) -> None:
        with self._let_go:
            self._let_go.wait_for(lambda: not function.holders)
            function.stuck = False
            self.bus.detach(function)
            if function.unbinder is not None:
                self.tree.remove_process(function.unbinder)
                function.unbinder = None

    @contextmanager
    def locking(self, paths: Sequence[str]) -> Iterator[Callable[[], dict[str, Answer]]]:
        """Read as `Sysfs.locking` does; what an unbind that waits has locked does not answer.

        So it is on Linux 6.1; later ones show driver_override without the lock.
        """
        with super().locking(paths) as answers:
            yield lambda: {
                path: self._unless_stuck(path, answer) for path, answer in answers().items()
            }

    def peek(self, path: str, offset: int = 0) -> str:
        """Read as `Sysfs.peek` does; a function that sleeps, or decodes nothing, reads as ones."""
        device = path.rpartition("/")[0]
        is_decoding = self.head(f"{device}/config", 6)[4] & 0x02
        if self.is_locked_down:
            raise HostError(f"cannot read {path}: {os.strerror(errno.EPERM)}")
        state = super().peek(path, offset)
        self.looks_before_start -= 1
        is_awake = is_decoding and self.read(f"{device}/power_state") == "D0"
        return state if is_awake and self.looks_before_start < 0 else "0xffffffff"

    def _unless_stuck(self, path: str, answer: Answer) -> Answer:
        function = self.bus.functions.get(path.split("/")[3])
        if function is not None and function.stuck:
            return StuckError(f"cannot wait longer for {path}", 0)
        return answer

    def _free_pid(self) -> int:
        return next(
            number
            for number in range(_FIRST_PID, _FIRST_PID + 1000)
            if not (self.tree.root / "proc" / str(number)).exists()
        )

    def _group(self, asked: int | None, *, translated: bool) -> int | None:
        if not (self._has_iommu and translated):
            return None
        return self.bus.next_group() if asked is None else asked
