"""What a node knows of one pod: its devices, and what its programs said of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from kata_gpu.model.blueprint import KataHandler
from kata_gpu.model.cdi import CdiSpecs
from kata_gpu.model.explanation import Said, Unsaid
from kata_gpu.model.node_facts import Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDevice:
    """One device that kubelet gave to a container, or that a claim of the pod has."""

    owner: str
    """``container NAME``, or ``claim NAME``."""

    resource: str
    """Of a device plugin, or the CDI kind under which a claim's device is known to Kata."""

    id: str

    @property
    def cdi_name(self) -> str:
        """What Kata makes of it."""
        return f"{self.resource}={self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocations:
    """What kubelet's checkpoint says of devices."""

    devices: Mapping[str, tuple[PodDevice, ...]]
    """Those of each pod, by its uid, in kubelet's order."""

    registered: Mapping[str, tuple[str, ...]]
    """The ids that a device plugin offers, by resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLine:
    """One line of the node's journal."""

    at: datetime
    program: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """All that is known of one pod."""

    namespace: str
    name: str
    uids: tuple[str, ...]
    """Of pods of that name that kubelet keeps logs of, the oldest first."""

    allocations: Allocations | Unknown
    claims: Mapping[str, tuple[PodDevice, ...]] | Unknown
    """What the claims of each pod have, by its uid."""

    lines: tuple[JournalLine, ...] | Unknown
    """What the container runtime, Kata and kubelet said of it, the oldest first."""

    specs: CdiSpecs
    handlers: tuple[KataHandler, ...]
    """Those of the blueprint; empty without one."""

    said: Said | Unsaid
