"""Nodes, RuntimeClasses, and KAI's PodGroups and Queues.

Source: k8s.io/api core/v1 and node/v1; KAI's scheduling.run.ai/v2 and v2alpha2.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Final

from pydantic import Field

from kata_gpu.plan.simulate import values
from kata_gpu.settings.manifests.documents import Document
from kata_gpu.settings.manifests.objects import (
    Amounts,
    Labels,
    Metadata,
    Name,
    Part,
    Text,
    TolerationPart,
    validate,
)

_MEMBERS_MAX: Final = 1 << 31
_UNITS: Final[Mapping[str, Fraction]] = {
    "cpu": Fraction(1, 1000),
    "memory": Fraction(10**6),
    "gpu": Fraction(1),
}
"""Queues count CPU in thousandths, memory in megabytes."""

_Bound = Annotated[float | int, Field(allow_inf_nan=False)]
_Members = Annotated[int, Field(ge=0, lt=_MEMBERS_MAX)]


class NodeTaintPart(Part):
    """A taint of a node."""

    key: Name
    value: Text = ""
    effect: Name


class NodeSpec(Part):
    """``spec`` of a node."""

    taints: list[NodeTaintPart] = Field(default_factory=list)
    unschedulable: bool = False


class NodeStatus(Part):
    """``status`` of a node."""

    allocatable: Amounts | None = None


class NodeObject(Part):
    """A Node."""

    metadata: Metadata
    spec: NodeSpec = Field(default_factory=NodeSpec)
    status: NodeStatus = Field(default_factory=NodeStatus)


def node_of(document: Document) -> values.Node:
    """Return a Node."""
    found = validate(document, NodeObject)
    return values.Node(
        name=found.metadata.own,
        labels=found.metadata.labels,
        taints=tuple(
            values.NodeTaint(key=taint.key, value=taint.value, effect=taint.effect)
            for taint in found.spec.taints
        ),
        resources=found.status.allocatable,
        is_cordoned=found.spec.unschedulable,
    )


class OverheadPart(Part):
    """``overhead``."""

    pod_fixed: Amounts = Field(default_factory=dict)


class SchedulingPart(Part):
    """``scheduling``."""

    node_selector: Labels = Field(default_factory=dict)
    tolerations: list[TolerationPart] = Field(default_factory=list)


class RuntimeObject(Part):
    """A RuntimeClass."""

    metadata: Metadata
    overhead: OverheadPart | None = None
    scheduling: SchedulingPart | None = None


def runtime_of(document: Document) -> values.RuntimeClass:
    """Return a RuntimeClass."""
    found = validate(document, RuntimeObject)
    scheduling = found.scheduling or SchedulingPart()
    return values.RuntimeClass(
        name=found.metadata.own,
        overhead={} if found.overhead is None else found.overhead.pod_fixed,
        node_selector=scheduling.node_selector,
        tolerations=tuple(toleration.as_value() for toleration in scheduling.tolerations),
    )


class SubGroupPart(Part):
    """A subgroup."""

    name: Name
    min_member: _Members = 1


class GroupSpec(Part):
    """``spec`` of a PodGroup."""

    min_member: _Members = 1
    queue: Name | None = None
    sub_groups: list[SubGroupPart] = Field(default_factory=list)


class GroupObject(Part):
    """A PodGroup."""

    metadata: Metadata
    spec: GroupSpec


def group_of(document: Document) -> values.PodGroup:
    """Return a PodGroup."""
    found = validate(document, GroupObject)
    return values.PodGroup(
        name=found.metadata.full,
        min_member=found.spec.min_member,
        queue=found.spec.queue,
        subgroups=tuple(
            values.SubGroup(name=part.name, min_member=part.min_member)
            for part in found.spec.sub_groups
        ),
    )


class BoundsPart(Part):
    """What a queue is entitled to of one resource, and what it may have; negative for no bound."""

    quota: _Bound | None = None
    limit: _Bound | None = None


class QueueResources(Part):
    """``resources`` of a queue."""

    cpu: BoundsPart = Field(default_factory=BoundsPart)
    memory: BoundsPart = Field(default_factory=BoundsPart)
    gpu: BoundsPart = Field(default_factory=BoundsPart)


class QueueSpec(Part):
    """``spec`` of a Queue."""

    parent_queue: Name | None = None
    resources: QueueResources = Field(default_factory=QueueResources)


class QueueObject(Part):
    """A Queue."""

    metadata: Metadata
    spec: QueueSpec = Field(default_factory=QueueSpec)


def queue_of(document: Document) -> values.Queue:
    """Return a Queue."""
    found = validate(document, QueueObject)
    parts = found.spec.resources
    bounds = {"cpu": parts.cpu, "memory": parts.memory, "gpu": parts.gpu}
    return values.Queue(
        name=found.metadata.own,
        parent=found.spec.parent_queue or None,
        quota=_bounds({name: part.quota for name, part in bounds.items()}),
        limit=_bounds({name: part.limit for name, part in bounds.items()}),
    )


def _bounds(found: Mapping[str, float | None]) -> dict[str, Fraction]:
    return {
        name: Fraction(str(amount)) * _UNITS[name]
        for name, amount in found.items()
        if amount is not None and amount >= 0
    }
