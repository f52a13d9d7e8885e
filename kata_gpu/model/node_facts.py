"""Facts of a whole node that its fitness for passthrough hangs on, as they were read.

A fact that cannot be read is an :class:`Unknown`, never a default: what nobody can tell
must not look sound.
"""

from dataclasses import dataclass
from enum import StrEnum

from kata_gpu.model.cdi import CdiSpecs
from kata_gpu.model.kata import InstalledFile
from kata_gpu.model.operation import Operation
from kata_gpu.model.platform import Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Stands for a fact that could not be read."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hugepages:
    """Reserved pages of one size."""

    size_kib: int
    total: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """What the kernel shows of itself."""

    platform: Platform | Unknown
    iommu_groups: int | Unknown
    command_line: tuple[str, ...] | Unknown
    """The words meant for the kernel, not those for init."""

    unsafe_interrupts: bool | Unknown | None
    """vfio_iommu_type1.allow_unsafe_interrupts; None while the module is not loaded."""

    noiommu_mode: bool | Unknown | None
    """vfio.enable_unsafe_noiommu_mode; None while the module is not loaded, or has it not."""

    taint: int | Unknown
    operations: tuple[Operation, ...] | Unknown
    """What a child of an agent waits for, where nothing can end it."""

    hugepages: tuple[Hugepages, ...] | Unknown
    tee_parameters: tuple[tuple[str, str | None], ...] | Unknown
    """KVM's own word on each trusted environment; None while its module is not loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRule:
    """One line of modprobe.d."""

    file: str
    verb: str
    """``blacklist``, ``install`` or ``options``."""

    module: str
    """With underscores, as the kernel spells it."""

    rest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """Which kernel modules there are, and what stands in their way."""

    release: str
    has_folder: bool | Unknown
    """Whether the modules of the running kernel are on disk."""

    loadable: frozenset[str] | Unknown
    """Those of VFIO that are built in or on disk; empty without the folder."""

    loaded: frozenset[str] | Unknown
    """All that sysfs shows: loaded ones, and those built in that have parameters."""

    rules: tuple[ModuleRule, ...] | Unknown
    """Those on VFIO's modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A node in /dev against the device that the kernel shows."""

    path: str
    number: str | None
    """``major:minor`` as the kernel shows it; None when it shows none."""

    node: str | None
    """``major:minor`` of the character device at *path*; None when there is none."""

    exists: bool
    """Whether anything is at *path*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """The device nodes that a VM opens."""

    iommufd: DeviceNode | Unknown
    groups: tuple[DeviceNode, ...] | Unknown
    """One for each group that VFIO holds, after the container node where VFIO is loaded."""

    cdevs: tuple[DeviceNode, ...] | Unknown
    """One for each function on VFIO that has a character device of its own."""

    bound: int | Unknown
    """How many functions VFIO holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLock:
    """How much memory a program and what it starts may pin."""

    program: str
    limit_bytes: int | None
    """None: unlimited."""

    may_exceed: bool
    """Whether its children can have CAP_IPC_LOCK, which lifts the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What this process may do and see; the same holds for an agent started beside it."""

    user: int | Unknown
    capabilities: int | Unknown
    """The effective set, as in /proc/self/status."""

    sees_host: bool | Unknown
    """Whether it is in the PID namespace that the kernel started with."""

    commands: frozenset[str] | Unknown
    """What runs, by the first 15 bytes of its name."""

    memory_locks: tuple[MemoryLock, ...] | Unknown
    """Of the container runtimes found, else of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """What a path lies on."""

    kind: str
    is_read_only: bool
    free_bytes: int
    free_files: int | None
    """None where files are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A folder of ours, or the nearest that exists above where it will be made."""

    path: str
    """The folder of ours."""

    existing: str
    """It, or the nearest one above that exists."""

    is_directory: bool
    owner: int
    mode: int
    file_system: FileSystem | Unknown


class PartState(StrEnum):
    """How a part of the agent is."""

    SOUND = "sound"
    ABSENT = "absent"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPart:
    """One part of the agent: a file of it, or its socket."""

    state: PartState
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """The agent's own parts on this node."""

    settings: AgentPart
    blueprint: AgentPart
    ledger: AgentPart
    socket: AgentPart


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedLink:
    """The link by which Kata is led to who knows a pod's devices."""

    path: str
    kubelet: str
    """Where it leads while no agent answers."""

    is_wanted: bool
    """Whether Kata is to ask there: a pool is offered through DRA."""

    is_there: bool
    """Whether anything is at its path."""

    target: str | None = None
    """Where it leads; None where there is nothing, or no link."""

    leads_to_agent: bool = False
    """Whether that is a socket of an agent's, by its name."""

    is_target_there: bool = False
    is_served: bool = False
    """Whether somebody may listen there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """All of it, as of one moment."""

    kernel: KernelFacts
    modules: ModuleFacts
    devices: DeviceFacts
    process: ProcessFacts
    sysfs: FileSystem | Unknown
    """Of the least writable place that a rebind writes to."""

    state_directory: Directory | Unknown
    cdi_directory: Directory | Unknown
    cdi: CdiSpecs | Unknown
    driverctl: tuple[str, ...] | Unknown
    """Devices that driverctl gives to a driver at boot."""

    agent: AgentFacts
    asked: AskedLink | Unknown
    kata: tuple[InstalledFile, ...] | Unknown = ()
    """Base files of Kata's handlers: those that the blueprint names, or with something beside."""
