"""What Kubernetes is told of this node's units: devices, each through one door."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kata_gpu.model.pci import PciFunction

GPU_DRIVER: Final = "gpu.kata-passthrough.io"
"""KAI counts every device of a driver whose name holds "gpu": GPUs only, nothing else."""

FABRIC_DRIVER: Final = "fabric.kata-passthrough.io"
"""NVSwitches."""

DRIVERS: Final = (GPU_DRIVER, FABRIC_DRIVER)

Attribute = bool | int | str

KUBELET_SOCKET: Final = "/var/lib/kubelet/pod-resources/kubelet.sock"
"""Where kubelet serves PodResources, unless it has been moved."""


class Door(StrEnum):
    """By which of kubelet's interfaces a pool's units are offered; one device has one door."""

    DEVICE_PLUGIN = "device-plugin"
    DRA = "dra"
    NONE = "none"
    """Not offered to Kubernetes: the CDI spec is all there is."""


class BindWhen(StrEnum):
    """When a unit is taken from its host driver."""

    ALWAYS = "always"
    ON_CLAIM = "on-claim"
    """When a claim for it is prepared; it goes back after the claim. Through DRA only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodResources:
    """Whom Kata can ask which devices a pod has, by the paths of their sockets."""

    kubelet: str = KUBELET_SOCKET
    link: str | None = None
    """Leads to kubelet, through this agent while that serves; None where nobody knows of DRA."""


class Effect(StrEnum):
    """What a taint does, as in ``resource.k8s.io/v1``."""

    NONE = "None"
    NO_SCHEDULE = "NoSchedule"
    NO_EXECUTE = "NoExecute"


def driver_of(functions: "Iterable[PciFunction]") -> str:
    """Return the DRA driver of a unit of these functions: GPUs make it one of GPUs."""
    found = tuple(functions)
    is_fabric = any(f.identity.is_nvswitch for f in found) and not any(f.is_gpu for f in found)
    return FABRIC_DRIVER if is_fabric else GPU_DRIVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """Why a device must not be chosen; *key* is a label's name, *value* a label's value."""

    key: str
    value: str
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One unit, or one bundle of units, as Kubernetes sees it."""

    id: str
    """The unit's id, ``0000:41:00.0``, or the bundle's name: device-plugin id and CDI name."""

    name: str
    """Name in a ResourceSlice, a DNS label: ``0000-41-00-0``, or the bundle's name."""

    door: Door
    driver: str
    """GPU_DRIVER or FABRIC_DRIVER."""

    resource: str
    """CDI kind and extended resource: ``nvidia.com/pgpu``."""

    units: tuple[str, ...]
    """Ids of the units it stands for: its own, or those of the bundle."""

    is_bundle: bool = False
    is_healthy: bool
    """Whether a pod may be given it now. One that a pod has already stays healthy."""

    is_ready: bool
    """Whether it is on VFIO and in the CDI spec; one that is bound on claim is healthy before."""

    is_in_use: bool = False
    """Whether a VM has it now; before its claim is prepared, that is an earlier pod's."""

    on_claim: bool = False
    """Whether it leaves VFIO when no claim has it: that it is ready says nothing of later."""

    reason: str
    """In words of the unit's state."""

    nodes: tuple[str, ...] = ()
    """Device nodes that the CDI spec gives a pod; empty until it is ready."""

    numa_node: int | None = None
    root: str = ""
    """The host bridge, ``pci0000:40``."""

    path: tuple[str, ...] = ()
    """Addresses of the bridges above it, outermost first: who shares more of them is nearer."""

    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """By name; those without a domain are the driver's."""

    capacity_bytes: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    """What it takes of the node's counters: one whole function each."""

    taints: tuple[Taint, ...] = ()

    @property
    def cdi_names(self) -> tuple[str, ...]:
        """Fully qualified CDI names; those of its units for a bundle through DRA."""
        if self.is_bundle and self.door is Door.DRA:
            return tuple(f"{self.resource}={unit}" for unit in self.units)
        return (f"{self.resource}={self.id}",)
