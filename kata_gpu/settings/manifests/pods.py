"""Pods, and what makes them: Deployments, StatefulSets, ReplicaSets and Jobs.

Source: k8s.io/api core/v1, apps/v1 and batch/v1; k8s.io/component-helpers/resource for what a
pod's containers come to together; KAI's podgrouper for a Job that is a gang.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.plan.simulate import values
from kata_gpu.settings.manifests.claims import QUEUE_LABEL
from kata_gpu.settings.manifests.documents import Document
from kata_gpu.settings.manifests.objects import (
    Amounts,
    Labels,
    Metadata,
    Name,
    NodeSelectorPart,
    Part,
    TolerationPart,
    validate,
)

REPLICAS_MAX: Final = 5_000
CLAIMS_MAX: Final = 32
GROUP_ANNOTATION: Final = "pod-group-name"
SUBGROUP_LABEL: Final = "kai.scheduler/subgroup-name"
MEMBERS_ANNOTATION: Final = "kai.scheduler/batch-min-member"
TOPOLOGY_ANNOTATION: Final = "kai.scheduler/topology"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_ENDED: Final = frozenset({"Succeeded", "Failed"})


class ClaimName(Part):
    """A claim of the pod that a container uses."""

    name: Name


class ResourcesPart(Part):
    """``resources``."""

    limits: Amounts = Field(default_factory=dict)
    requests: Amounts = Field(default_factory=dict)
    claims: list[ClaimName] = Field(default_factory=list)

    def wanted(self) -> dict[str, Fraction]:
        """Return the requests; a limit without one is one."""
        return {**self.limits, **self.requests}


class ContainerPart(Part):
    """A container."""

    resources: ResourcesPart = Field(default_factory=ResourcesPart)
    restart_policy: Name | None = None


class PodClaimPart(Part):
    """A claim of a pod."""

    name: Name
    resource_claim_name: Name | None = None
    resource_claim_template_name: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> "PodClaimPart":
        if (self.resource_claim_name is None) == (self.resource_claim_template_name is None):
            raise ValueError(
                "expected exactly one of resourceClaimName and resourceClaimTemplateName"
            )
        return self


class NodeAffinityPart(Part):
    """``nodeAffinity``."""

    required: NodeSelectorPart | None = Field(
        None, alias="requiredDuringSchedulingIgnoredDuringExecution"
    )


class AffinityPart(Part):
    """``affinity``."""

    node_affinity: NodeAffinityPart | None = None
    pod_affinity: Any = None
    pod_anti_affinity: Any = None


class PodSpec(Part):
    """``spec`` of a pod."""

    containers: Annotated[list[ContainerPart], Field(min_length=1)]
    init_containers: list[ContainerPart] = Field(default_factory=list)
    resources: ResourcesPart | None = None
    overhead: Amounts | None = None
    resource_claims: Annotated[list[PodClaimPart], Field(max_length=CLAIMS_MAX)] = Field(
        default_factory=list
    )
    node_selector: Labels = Field(default_factory=dict)
    affinity: AffinityPart | None = None
    tolerations: list[TolerationPart] = Field(default_factory=list)
    topology_spread_constraints: list[Any] = Field(default_factory=list)
    scheduling_gates: list[Any] = Field(default_factory=list)
    runtime_class_name: Name | None = None
    scheduler_name: Name = "default-scheduler"
    node_name: Name | None = None

    @model_validator(mode="after")
    def _claims(self) -> "PodSpec":
        known = [claim.name for claim in self.resource_claims]
        if len(set(known)) < len(known):
            raise ValueError("two of resourceClaims have one name")
        for container in (*self.containers, *self.init_containers):
            for claim in container.resources.claims:
                if claim.name not in known:
                    raise ValueError(
                        f"a container uses a claim {claim.name} that is not among resourceClaims"
                    )
        return self

    def amounts(self) -> dict[str, Fraction]:
        """Return what all containers need at once, those that end before the others apart."""
        total: dict[str, Fraction] = {}
        for container in self.containers:
            _add(total, container.resources.wanted())
        beside: dict[str, Fraction] = {}
        peak: dict[str, Fraction] = {}
        for container in self.init_containers:
            wanted = container.resources.wanted()
            if container.restart_policy == "Always":
                _add(beside, wanted)
                wanted = {}
            now = dict(beside)
            _add(now, wanted)
            peak = {
                n: max(peak.get(n, Fraction(0)), now.get(n, Fraction(0))) for n in {**peak, **now}
            }
        _add(total, beside)
        found = {
            n: max(total.get(n, Fraction(0)), peak.get(n, Fraction(0))) for n in {**peak, **total}
        }
        return {**found, **({} if self.resources is None else self.resources.wanted())}


def _add(total: dict[str, Fraction], more: Mapping[str, Fraction]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, Fraction(0)) + amount


class PodStatus(Part):
    """``status`` of a pod."""

    phase: Name = "Pending"


class PodObject(Part):
    """A Pod."""

    metadata: Metadata
    spec: PodSpec
    status: PodStatus = Field(default_factory=PodStatus)


class PodTemplate(Part):
    """``template``."""

    metadata: Metadata = Field(default_factory=Metadata)
    spec: PodSpec


_Replicas = Annotated[int, Field(ge=0, le=REPLICAS_MAX)]


class WorkloadSpec(Part):
    """``spec`` of what makes pods."""

    template: PodTemplate
    replicas: _Replicas = 1
    parallelism: _Replicas = 1
    completions: _Replicas | None = None


class WorkloadObject(Part):
    """A Deployment, StatefulSet, ReplicaSet or Job."""

    metadata: Metadata
    spec: WorkloadSpec


def pod_of(document: Document) -> tuple[list[values.Pod], list[str]]:
    """Return a Pod, none if it has ended, and what of it is not simulated."""
    found = validate(document, PodObject)
    if found.status.phase in _ENDED:
        return [], []
    made = _pod(found.metadata, found.spec, found.metadata.full)
    return [made], _notes(found.spec, f"pod {made.name}") if made.node is None else []


def pods_of(
    document: Document,
) -> tuple[list[values.Pod], list[str], values.PodGroup | None]:
    """Return all pods that a workload makes, what of it is not simulated, and the gang they are.

    Raises:
        InvalidBlueprint: it is none, or a gang of no number that KAI takes.
    """
    found = validate(document, WorkloadObject)
    kind = str(document.tree["kind"])
    spec = found.spec
    count = spec.replicas
    if kind == "Job":
        count = (
            spec.parallelism
            if spec.completions is None
            else min(spec.parallelism, spec.completions)
        )
    metadata = spec.template.metadata.model_copy(update={"namespace": found.metadata.namespace})
    origin = f"{kind} {found.metadata.full}"
    made = _pod(metadata, spec.template.spec, origin)
    notes = _notes(spec.template.spec, origin)
    gang = _gang(document, found)
    if gang is not None:
        made = replace(made, group=gang.name)
    if made.scheduler == values.KAI and TOPOLOGY_ANNOTATION in found.metadata.annotations:
        notes.append(f"{origin}: {TOPOLOGY_ANNOTATION} is not simulated")
    pods = [made.called(f"{found.metadata.full}-{number}") for number in range(count)]
    return pods, notes, gang


def _gang(document: Document, found: WorkloadObject) -> values.PodGroup | None:
    """Return the gang that KAI makes of a Job whose annotation says how many start together.

    None for any other workload, and for one whose pods name a PodGroup of their own.
    """
    said = found.metadata.annotations.get(MEMBERS_ANNOTATION)
    template = found.spec.template
    if (
        said is None
        or document.tree["kind"] != "Job"
        or template.spec.scheduler_name != values.KAI
        or GROUP_ANNOTATION in template.metadata.annotations
    ):
        return None
    if not _NUMBER.fullmatch(said):
        raise InvalidBlueprint(
            f"cannot use {document.origin}: metadata.annotations.{MEMBERS_ANNOTATION}: expected a "
            f"number of at least 1 in quotes"
        )
    queue = found.metadata.labels.get(QUEUE_LABEL)
    return values.PodGroup(name=f"{found.metadata.full} (Job)", min_member=int(said), queue=queue)


def _pod(metadata: Metadata, spec: PodSpec, origin: str) -> values.Pod:
    group = metadata.annotations.get(GROUP_ANNOTATION)
    affinity = spec.affinity and spec.affinity.node_affinity
    required = affinity.required if affinity else None
    return values.Pod(
        name=metadata.full,
        resources=spec.amounts(),
        claims=tuple(_pod_claims(metadata.namespace, spec)),
        node_selector=spec.node_selector,
        terms=required.terms() if required else (),
        tolerations=tuple(toleration.as_value() for toleration in spec.tolerations),
        runtime_class=spec.runtime_class_name,
        overhead=spec.overhead,
        scheduler=spec.scheduler_name,
        queue=metadata.labels.get(QUEUE_LABEL),
        group=f"{metadata.namespace}/{group}" if group else None,
        subgroup=metadata.labels.get(SUBGROUP_LABEL),
        node=spec.node_name,
        origin=origin,
    )


def _pod_claims(namespace: str, spec: PodSpec) -> Iterable[values.PodClaim]:
    for part in spec.resource_claims:
        yield values.PodClaim(
            name=part.name,
            claim=part.resource_claim_name and f"{namespace}/{part.resource_claim_name}",
            template=part.resource_claim_template_name
            and f"{namespace}/{part.resource_claim_template_name}",
        )


def _notes(spec: PodSpec, origin: str) -> list[str]:
    passed_over = {
        "podAffinity": spec.affinity and spec.affinity.pod_affinity,
        "podAntiAffinity": spec.affinity and spec.affinity.pod_anti_affinity,
        "topologySpreadConstraints": spec.topology_spread_constraints,
        "schedulingGates": spec.scheduling_gates,
        "a toleration by Lt or Gt": [t for t in spec.tolerations if t.operator in {"Lt", "Gt"}],
    }
    return [f"{origin}: {name} is not simulated" for name, value in passed_over.items() if value]


def refuse_twice(pods: Iterable[values.Pod]) -> None:
    """Refuse two pods of one name, of which only one could be.

    Raises:
        InvalidBlueprint: there are two, or more pods than are simulated.
    """
    met: set[str] = set()
    for pod in pods:
        if pod.name in met:
            raise InvalidBlueprint(f"cannot simulate: there are two pods {pod.name}; rename one")
        met.add(pod.name)
    if len(met) > REPLICAS_MAX:
        raise InvalidBlueprint(
            f"cannot simulate {len(met)} pods: {REPLICAS_MAX} is the most; ask for fewer replicas"
        )
