"""The blueprint: what this node should be, as its admin wrote it.

Text becomes these values in ``settings.blueprint``; past that door nothing is unparsed.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from kata_gpu.model.kubernetes import BindWhen, Door, PodResources
from kata_gpu.model.pci import Identity, PciAddress, PciFunction

SCHEMA: Final = 1


class Mode(StrEnum):
    """What becomes of the functions a pool selects."""

    PASSTHROUGH = "passthrough"
    """On VFIO, offered to pod VMs."""

    HOST = "host"
    """On the host driver they came from."""

    IGNORE = "ignore"
    """Left alone, whatever they are."""


class Drift(StrEnum):
    """What becomes of things that somebody changed after we had put them in order."""

    REPAIR = "repair"
    REPORT = "report"


class Runtime(StrEnum):
    """Which Kata runtime reads a handler's configuration: each has its own dialect."""

    GO = "go"
    RUST = "rust"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Conditions that one function must all meet; None sets no condition."""

    vendor: int | None = None
    device: int | None = None
    class_prefix: str | None = None
    """Leading hex digits of the 24-bit class: "03" any display, "0302" 3D controllers."""

    address: PciAddress | None = None
    numa_node: int | None = None
    product: str | None = None
    """Shell-style pattern for the pci.ids product name, case-sensitive: ``*H100*``."""

    def could_match(self, identity: Identity) -> bool:
        """Tell whether a function of that identity can meet the conditions.

        A selector that names no address, device or class is about GPUs only: a vendor's
        audio and USB functions come along with a GPU, never by themselves.
        """
        if self.address is not None and self.address != identity.address:
            return False  # first, for there may be a selector for each function of a node
        is_specific = (self.device, self.class_prefix, self.address) != (None, None, None)
        return (
            self.vendor in {None, identity.vendor}
            and self.device in {None, identity.device}
            and (self.class_prefix is None or identity.class_hex.startswith(self.class_prefix))
            and (is_specific or identity.is_gpu)
        )

    def matches(self, function: PciFunction) -> bool:
        """Tell whether *function* meets every condition."""
        return (
            self.could_match(function.identity)
            and self.numa_node in {None, function.numa_node}
            and (self.product is None or fnmatchcase(function.product_name or "", self.product))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Functions chosen by any of the selectors, and what becomes of them."""

    name: str
    mode: Mode
    selectors: tuple[Selector, ...]

    resource: str | None = None
    """``vendor.tld/class``: CDI kind and Kubernetes resource; set for passthrough alone."""

    min_units: int = 0
    """Fewer units than this are worth a warning."""

    max_units: int | None = None
    """Units past this number fall through to the next pool that matches; None for no limit."""

    stop_services: tuple[str, ...] = ()
    """systemd services that keep its GPUs busy: none of them runs while a unit is ours."""

    virtual_functions: int | None = None
    """How many SR-IOV virtual functions each physical one that it selects shall have: they are
    its units, in place of the physical one. None for functions as they are."""

    door: Door = Door.DEVICE_PLUGIN
    """How its units are offered to Kubernetes."""

    bind: BindWhen = BindWhen.ALWAYS
    bundle: str | None = None
    """A name for all its units together, as one device: beside them through DRA, in their place
    through the device plugin. It has all of them, at least *min_units*, or cannot be had. None for
    no such device."""

    def selects(self, function: PciFunction) -> bool:
        """Tell whether any selector matches a function that is not a bridge."""
        return not function.is_bridge and any(s.matches(function) for s in self.selectors)


@dataclass(frozen=True, slots=True, kw_only=True)
class KataHandler:
    """A Kata runtime handler whose configuration gets our drop-in."""

    name: str
    runtime: Runtime
    config: str
    """Absolute path of the handler's base file, symbolic links allowed."""

    hypervisor: str = "qemu"
    """Name of the ``[hypervisor.NAME]`` table the base file uses."""

    pod_resource_api_sock: str | None = None
    """Whom Kata asks for a pod's devices; None for who knows all that the pools offer."""

    pcie_root_ports: int | None = None
    """Fixed number of root ports; None to have as many as the units need."""

    cold_plug_vfio: str = "root-port"
    hot_plug_vfio: str = "no-port"
    """Of the Go runtime, which refuses both together; runtime-rs has it not."""

    vfio_mode: str = "guest-kernel"
    memory_mib: int | None = None
    """Memory of a VM before its containers ask for theirs; None to leave it as it is."""

    kernel_params: tuple[str, ...] = ()
    """Appended to those that hold without us; never for confidential guests, whose measurement
    they would change.
    """

    enable_annotations: tuple[str, ...] = ()
    """Appended to those that hold without us."""

    dial_timeout_s: int | None = None
    """How long a VM's agent is waited for, in all; None, here and below, to leave it as it is."""

    create_container_timeout_s: int | None = None
    cdh_api_timeout_s: int | None = None
    launch_process_timeout_s: int | None = None

    confidential: str | None = None
    """``snp``, ``tdx`` or ``none``; None to go by the name."""

    @property
    def tee(self) -> str:
        """The trusted environment that it is for, by the blueprint's word: snp, tdx or none."""
        return self.confidential or tee_of(self.name)

    @property
    def is_confidential(self) -> bool:
        """Whether its VMs take no legacy VFIO group."""
        return self.tee != "none"


def tee_of(name: str) -> str:
    """Return the trusted environment that a handler's name speaks of: snp, tdx or none.

    Kata's names have it as a word: ``kata-qemu-nvidia-gpu-snp-runtime-rs``.
    """
    words = name.split("-")
    return next((tee for tee in ("snp", "tdx") if tee in words), "none")


class RuntimeKind(StrEnum):
    """Who brings and configures the container runtime."""

    CONTAINERD = "containerd"
    K3S = "k3s"
    RKE2 = "rke2"
    K0S = "k0s"
    MICROK8S = "microk8s"
    CRIO = "crio"


class Restart(StrEnum):
    """When the container runtime is restarted to read what we wrote."""

    NEVER = "never"
    WHEN_CHANGED = "when-changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeHandler:
    """A handler that the container runtime gets from us, beside those of kata-deploy."""

    name: str
    """``kata-gpu`` or ``kata-gpu-…``."""

    base: str
    """Name of the Kata handler whose configuration it shares."""

    shim: str | None = None
    """Absolute path of Kata's shim; None for where Kata installs it beside the base file."""

    snapshotter: str | None = None
    """containerd's snapshotter for its images; None for containerd's own choice."""

    guest_pull: bool = False
    """Whether CRI-O leaves pulling images to the guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the container runtime is told."""

    handlers: tuple[RuntimeHandler, ...] = field(default=())
    restart: Restart = Restart.NEVER
    kind: RuntimeKind | None = None
    """Which container runtime; None for the only one that the node has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What a node should be: pools in order of precedence, and the Kata handlers."""

    version: str
    """The admin's label for this text, shown wherever its effects are."""

    drift: Drift = Drift.REPAIR
    pools: tuple[Pool, ...] = field(default=())
    handlers: tuple[KataHandler, ...] = field(default=())
    cdi_quarantine: tuple[str, ...] = field(default=())
    """Patterns of the names of foreign CDI files that are to be moved out of the way."""

    kata_quarantine: tuple[str, ...] = field(default=())
    """Patterns of the names of foreign drop-ins of the handlers, likewise."""

    wiring: Wiring = field(default=Wiring())
    pod_resources: PodResources = field(default=PodResources())
    """Whom Kata can ask; the agent's settings know that, not the blueprint's text."""

    @property
    def asked(self) -> PodResources:
        """Whom Kata is to ask: without a pool that is offered through DRA, kubelet alone."""
        if any(pool.door is Door.DRA for pool in self.pools):
            return self.pod_resources
        return replace(self.pod_resources, link=None)

    def pool_for(self, function: PciFunction) -> Pool | None:
        """Return the first pool that selects *function*, limits aside; None for none."""
        return next((pool for pool in self.pools if pool.selects(function)), None)

    def pool_of_virtuals(self, parent: PciFunction) -> Pool | None:
        """Return the pool whose units are the virtual functions of *parent*; None for none.

        It is the first that selects *parent*, if it asks for any.
        """
        pool = self.pool_for(parent)
        return None if pool is None or pool.virtual_functions is None else pool

    def could_select(self, identity: Identity) -> bool:
        """Tell whether any pool may turn out to select a function of that identity."""
        return any(s.could_match(identity) for pool in self.pools for s in pool.selectors)
