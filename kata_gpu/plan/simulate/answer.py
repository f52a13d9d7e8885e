"""What a simulation says: where each pod goes, or what is in the way, device by device."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from kata_gpu.plan.simulate.values import DeviceId


class Condition(StrEnum):
    """What a device fails."""

    SELECTOR = "selector"
    SELECTOR_ERROR = "selector-error"
    UNKNOWN = "cannot-be-judged"
    TAINT = "taint"
    ALLOCATED = "allocated"
    COUNTER = "counter"
    MATCH = "match-attribute"
    DISTINCT = "distinct-attribute"
    CAPACITY = "capacity"
    POOL = "pool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a device is not to be had."""

    condition: Condition
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRefusal:
    """A device that will not do, and the condition that it fails."""

    device: DeviceId
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefusal:
    """A choice of a request that cannot be satisfied on a node."""

    claim: str
    request: str
    needed: str
    """How many devices, and how many would do."""

    devices: tuple[DeviceRefusal, ...]
    """Those that will not do."""


class Verdict(StrEnum):
    """What becomes of a pod."""

    PLACED = "placed"
    REFUSED = "refused"
    UNDECIDED = "undecided"
    """It could not be found out; the reason says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRefusal:
    """Why a node is not for a pod."""

    node: str
    reason: str
    requests: tuple[RequestRefusal, ...] = ()
    """Empty where it is not about devices."""

    verdict: Verdict = Verdict.REFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A device that a pod gets."""

    claim: str
    request: str
    device: DeviceId


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAnswer:
    """What becomes of one pod, or of a claim that no pod has."""

    pod: str
    verdict: Verdict
    node: str | None
    """None where it is not placed."""

    devices: tuple[Given, ...]
    reason: str | None
    """None where it is placed."""

    refusals: tuple[NodeRefusal, ...]
    """Empty where it is not about nodes, or *same_as* has them."""

    same_as: str | None = None
    """A pod before it that is refused for the same; None where there is none."""

    is_claim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAnswer:
    """What becomes of a gang."""

    group: str
    verdict: Verdict
    min_member: int
    members: int
    fitting: int
    """How many of them found room before the group was decided on."""

    reason: str | None
    """None where it is placed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueAnswer:
    """What a queue has with all pods placed that can be."""

    queue: str
    used: Mapping[str, float]
    shares: Mapping[str, float]
    """Of all that the nodes have, by resource; those alone that are known."""

    dominant: str | None
    """The resource of its largest share; None where none is known or used."""

    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The whole of it."""

    pods: tuple[PodAnswer, ...]
    groups: tuple[GroupAnswer, ...]
    queues: tuple[QueueAnswer, ...]
    notes: tuple[str, ...]

    @property
    def is_placed(self) -> bool:
        """Whether all of it is."""
        verdicts = {*(p.verdict for p in self.pods), *(g.verdict for g in self.groups)}
        return verdicts <= {Verdict.PLACED}


def told_once(answers: Iterable[PodAnswer]) -> Iterator[PodAnswer]:
    """Yield each answer, with what is in the way where it comes for the first time."""
    first: dict[object, str] = {}
    for answer in answers:
        key = (answer.verdict, answer.reason, tuple(map(id, answer.refusals)))
        before = first.setdefault(key, answer.pod)
        is_again = bool(answer.refusals) and before != answer.pod
        yield replace(answer, refusals=(), same_as=before) if is_again else answer
