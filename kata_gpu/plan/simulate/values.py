"""What a simulation is asked: nodes and their devices, and pods with their claims.

Names of attributes and capacities are qualified: ``gpu.kata-passthrough.io/vendor``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final

from kata_gpu.model.kubernetes import Taint

CLAIM_DEVICES_MAX: Final = 32
"""As many devices does one claim get at most (AllocationResultsMaxSize)."""

KAI: Final = "kai-scheduler"


@dataclass(frozen=True, slots=True)
class Version:
    """An attribute that is a semantic version."""

    text: str

    def __str__(self) -> str:
        return self.text


Value = bool | int | str | Version


@dataclass(frozen=True, slots=True, order=True)
class DeviceId:
    """What names a device in the whole cluster."""

    driver: str
    pool: str
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One condition of a node selector on a label, or on a node's name."""

    key: str
    operator: str
    """In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    values: tuple[str, ...] = ()
    is_field: bool = False
    """Whether it is about the field ``metadata.name``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which nodes a slice or a device is for: one by name, all, or those of a selector."""

    node: str | None = None
    is_everywhere: bool = False
    terms: tuple[tuple[Key, ...], ...] = ()
    """Any of them must hold, with all of its conditions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device of a ResourceSlice."""

    id: DeviceId
    attributes: Mapping[str, Value] = field(default_factory=dict)
    capacity: Mapping[str, Fraction] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    counts: Mapping[tuple[str, str], Fraction] = field(default_factory=dict)
    """What it takes of the pool's counters, by set and counter."""

    where: Where | None = None
    """Its own nodes; None where the slice says it for all."""

    is_shared: bool = False
    """Whether it may be given to several claims at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A ResourceSlice."""

    name: str
    driver: str
    pool: str
    generation: int
    count: int
    """How many slices the pool has."""

    where: Where | None
    """None where each device says it."""

    devices: tuple[Device, ...] = ()
    counters: Mapping[tuple[str, str], Fraction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTaint:
    """A taint of a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node; what is None is not known, and not held against a pod."""

    name: str
    labels: Mapping[str, str] | None = None
    taints: tuple[NodeTaint, ...] = ()
    resources: Mapping[str, Fraction] | None = None
    """Allocatable, the resources of device plugins among it."""

    is_cordoned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaintRule:
    """A DeviceTaintRule: a taint that somebody else than the driver puts on devices."""

    name: str
    taint: Taint
    driver: str | None = None
    """None, here and below, for any."""

    pool: str | None = None
    device: str | None = None

    def is_about(self, found: DeviceId) -> bool:
        """Tell whether a device has the taint."""
        return (
            self.driver in {None, found.driver}
            and self.pool in {None, found.pool}
            and self.device in {None, found.name}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """A DeviceClass."""

    name: str
    selectors: tuple[str, ...]
    extended_resource: str | None = None
    """The resource that pods may ask for instead of a claim."""

    created: str = ""
    """When; of two with one extended resource the newest counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClass:
    """What a RuntimeClass adds to its pods."""

    name: str
    overhead: Mapping[str, Fraction]
    node_selector: Mapping[str, str]
    tolerations: "tuple[Toleration, ...]" = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """What lets a pod go to a tainted node, or a request have a tainted device."""

    key: str = ""
    """Empty for any."""

    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    """Empty for any."""

    def covers(self, key: str, value: str, effect: str) -> bool:
        """Tell whether a taint is tolerated."""
        is_near = self.key in {"", key} and self.effect in {"", effect}
        is_equal = self.operator == "Equal" and self.key == key and self.value == value
        return is_near and (self.operator == "Exists" or is_equal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to satisfy a request: devices of one class."""

    name: str
    """The request's, or ``request/subrequest``."""

    class_name: str
    selectors: tuple[str, ...] = ()
    count: int = 1
    is_all: bool = False
    is_admin: bool = False
    tolerations: tuple[Toleration, ...] = ()
    capacity: Mapping[str, Fraction] = field(default_factory=dict)

    @property
    def request(self) -> str:
        """The request's name alone."""
        return self.name.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of a claim: the first choice that can be had."""

    name: str
    choices: tuple[Choice, ...]
    is_prioritized: bool = False
    """Whether it is written as ``firstAvailable``, however many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """An attribute that devices must have in common, or each with a value of its own."""

    attribute: str
    requests: tuple[str, ...] = ()
    """Names of requests or subrequests; empty for all."""

    is_distinct: bool = False

    def is_about(self, choice: Choice) -> bool:
        """Tell whether devices of that choice count."""
        return not self.requests or choice.name in self.requests or choice.request in self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A device, and the request that it was given for."""

    request: str
    device: DeviceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A ResourceClaim, or the one that a template makes for a pod."""

    name: str
    """``namespace/name``."""

    requests: tuple[Request, ...]
    constraints: tuple[Constraint, ...] = ()
    picks: tuple[Pick, ...] | None = None
    """What it has already; None before its allocation."""

    where: Where | None = None
    """Where what it has is; None before its allocation, and for everywhere."""

    queue: str | None = None
    users: frozenset[str] = field(default=frozenset(), repr=False)
    """What it was reserved for before anything is placed: ``namespace/name`` of a pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodClaim:
    """A claim of a pod, by the pod's name for it."""

    name: str
    claim: str | None = None
    """``namespace/name`` of a claim; None for one of its own."""

    template: str | None = None
    """``namespace/name`` of a template; None for a claim that others may have too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that is to be placed, or one that has its node."""

    name: str
    """``namespace/name``."""

    resources: Mapping[str, Fraction] = field(default_factory=dict)
    """All its containers together, without the overhead of its RuntimeClass."""

    claims: tuple[PodClaim, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    terms: tuple[tuple[Key, ...], ...] = ()
    """Of its required node affinity."""

    tolerations: tuple[Toleration, ...] = ()
    runtime_class: str | None = None
    overhead: Mapping[str, Fraction] | None = None
    """As admission wrote it; None before."""

    scheduler: str = "default-scheduler"
    queue: str | None = None
    group: str | None = None
    """``namespace/name`` of its PodGroup."""

    subgroup: str | None = None
    node: str | None = None
    """Where it is already."""

    origin: str = ""
    """What made it, such as ``Deployment ml/serve``; pods of one origin are alike."""

    is_claim: bool = False
    """Whether it stands for a claim that no pod of the files has."""

    def called(self, name: str) -> "Pod":
        """Return the same pod by another name, or by none, to be compared."""
        return replace(self, name=name, origin=self.origin if name else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubGroup:
    """A part of a PodGroup with a minimum of its own."""

    name: str
    min_member: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PodGroup:
    """A KAI PodGroup: pods that start together or not at all."""

    name: str
    """``namespace/name``."""

    min_member: int
    queue: str | None = None
    subgroups: tuple[SubGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A KAI queue; amounts are by ``cpu``, ``memory`` (bytes) and ``gpu``, absent for no bound."""

    name: str
    parent: str | None = None
    quota: Mapping[str, Fraction] = field(default_factory=dict)
    limit: Mapping[str, Fraction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that is known."""

    nodes: tuple[Node, ...] = ()
    slices: tuple[Slice, ...] = ()
    classes: tuple[DeviceClass, ...] = ()
    runtime_classes: tuple[RuntimeClass, ...] = ()
    claims: tuple[Claim, ...] = ()
    templates: tuple[Claim, ...] = ()
    groups: tuple[PodGroup, ...] = ()
    queues: tuple[Queue, ...] = ()
    pods: tuple[Pod, ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out of account."""
