"""What a person writes for a simulation, or takes from a cluster: files in, a scenario out."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.text import printable
from kata_gpu.plan.simulate import offered
from kata_gpu.plan.simulate.values import (
    Claim,
    DeviceClass,
    Node,
    Pod,
    PodClaim,
    PodGroup,
    Queue,
    RuntimeClass,
    Scenario,
    Slice,
    TaintRule,
)
from kata_gpu.settings.manifests import claims, cluster, pods, slices, snapshot
from kata_gpu.settings.manifests.documents import Document

_DRA: Final = ("resource.k8s.io/v1", "resource.k8s.io/v1beta2")  # of one shape
_KINDS: Final = {
    "Pod": ("v1",),
    "Node": ("v1",),
    "Deployment": ("apps/v1",),
    "StatefulSet": ("apps/v1",),
    "ReplicaSet": ("apps/v1",),
    "Job": ("batch/v1",),
    "ResourceSlice": _DRA,
    "DeviceClass": _DRA,
    "DeviceTaintRule": _DRA,
    "ResourceClaim": _DRA,
    "ResourceClaimTemplate": _DRA,
    "RuntimeClass": ("node.k8s.io/v1",),
    "PodGroup": ("scheduling.run.ai/v2alpha2",),
    "Queue": ("scheduling.run.ai/v2",),
}
"""What is simulated, and in which versions it is written."""

_SHOWN: Final = 60


@dataclass(slots=True)
class _Found:
    nodes: list[Node] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    rules: list[TaintRule] = field(default_factory=list)
    classes: list[DeviceClass] = field(default_factory=list)
    runtimes: list[RuntimeClass] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    templates: list[Claim] = field(default_factory=list)
    groups: list[PodGroup] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    generated: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """How many objects got a name of one ``generateName``, by kind and namespace."""

    passed_over: dict[str, list[str]] = field(default_factory=dict)
    """Where there are objects of a kind that is not simulated."""

    def note(self, texts: Iterable[str]) -> None:
        self.notes.update(dict.fromkeys(texts))


def scenario(
    documents: Iterable[Document],
    snapshots: Iterable[tuple[Document, str]] = (),
    blueprint: Blueprint | None = None,
    background: Iterable[Document] = (),
) -> Scenario:
    """Return all that *documents* say, with nodes of *snapshots*, each by a name.

    Claims, templates and gangs of the *background* are there for pods of the *documents*; by
    themselves they are not asked about.

    Raises:
        InvalidBlueprint: one of them is not what it must be, or contradicts another.
    """
    found = _Found()
    for document in background:
        _take(found, document)
    known = {claim.name for claim in (*found.claims, *found.templates)}
    groups = {group.name for group in found.groups}
    for document in documents:
        _take(found, document)
    for document, name in snapshots:
        _take_snapshot(found, document, name, blueprint)
    found.note(_of_passed_over(found))
    _refuse_twice(found)
    alone = _claims_alone(found, known)
    members = {pod.group for pod in found.pods if pod.node is None}
    return Scenario(
        nodes=_nodes(found),
        slices=tuple(_tainted(slice_, found.rules) for slice_ in found.slices),
        classes=tuple(found.classes),
        runtime_classes=tuple(found.runtimes),
        claims=tuple(found.claims),
        templates=tuple(found.templates),
        groups=tuple(g for g in found.groups if g.name in members or g.name not in groups),
        queues=tuple(found.queues),
        pods=(*found.pods, *alone),
        notes=tuple(found.notes),
    )


def _take(found: _Found, document: Document) -> None:
    kind, version = document.tree.get("kind"), document.tree.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str):
        raise InvalidBlueprint(f"cannot use {document.origin}: apiVersion or kind is missing")
    known = _KINDS.get(kind)
    if known is None or _group(version) not in {_group(each) for each in known}:
        name = printable(f"{kind} of {version}"[:_SHOWN])
        found.passed_over.setdefault(name, []).append(document.origin)
        return
    if version not in known:
        raise InvalidBlueprint(
            f"cannot use {document.origin}: apiVersion is {printable(version[:_SHOWN])}: expected "
            f"{' or '.join(known)} for a {kind}"
        )
    _PARSERS[kind](found, _named(found, kind, document))


def _of_passed_over(found: _Found) -> Iterable[str]:
    """Yield what is not simulated, each kind once."""
    for name, origins in found.passed_over.items():
        more = f" and {len(origins) - 1} more" if len(origins) > 1 else ""
        yield f"{origins[0]}{more}: {name} is not simulated, and was passed over"


def _named(found: _Found, kind: str, document: Document) -> Document:
    """Return an object that is yet to get a name with one that no other gets here."""
    metadata = document.tree.get("metadata")
    start = metadata.get("generateName") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or metadata.get("name") or not isinstance(start, str):
        return document
    key = (kind, str(metadata.get("namespace")), start)
    number = found.generated[key] = found.generated.get(key, -1) + 1
    tree = {**document.tree, "metadata": {**metadata, "name": f"{start}{number}"}}
    return Document(document.origin, tree)


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def _take_pod(found: _Found, document: Document) -> None:
    made, notes = pods.pod_of(document)
    found.pods += made
    found.note(notes)


def _take_workload(found: _Found, document: Document) -> None:
    made, notes, gang = pods.pods_of(document)
    found.pods += made
    found.note(notes)
    found.groups += [] if gang is None else [gang]


def _take_slice(found: _Found, document: Document) -> None:
    made, notes = slices.slice_of(document)
    found.slices.append(made)
    found.note(notes)


def _take_snapshot(
    found: _Found, document: Document, name: str, blueprint: Blueprint | None
) -> None:
    """Take what a node would offer, its slices as those of a file are taken."""
    made = offered.offer(snapshot.snapshot_of(document, name, blueprint))
    found.nodes.append(made.node)
    for body in made.slices:
        _take_slice(found, Document(document.origin, dict(body)))
    found.note(made.notes)


def _take_rule(found: _Found, document: Document) -> None:
    made = slices.rule_of(document)
    found.rules += [] if made is None else [made]


_PARSERS: Final[dict[str, Callable[[_Found, Document], None]]] = {
    "Pod": _take_pod,
    **dict.fromkeys(("Deployment", "StatefulSet", "ReplicaSet", "Job"), _take_workload),
    "DeviceTaintRule": _take_rule,
    "Node": lambda found, document: found.nodes.append(cluster.node_of(document)),
    "ResourceSlice": _take_slice,
    "DeviceClass": lambda found, document: found.classes.append(slices.class_of(document)),
    "ResourceClaim": lambda found, document: found.claims.append(claims.claim_of(document)),
    "ResourceClaimTemplate": lambda found, document: found.templates.append(
        claims.template_of(document)
    ),
    "RuntimeClass": lambda found, document: found.runtimes.append(cluster.runtime_of(document)),
    "PodGroup": lambda found, document: found.groups.append(cluster.group_of(document)),
    "Queue": lambda found, document: found.queues.append(cluster.queue_of(document)),
}


def _refuse_twice(found: _Found) -> None:
    named: dict[str, list[str]] = {
        "ResourceSlices": [f"{s.driver}/{s.pool}/{s.generation}/{s.name}" for s in found.slices],
        "DeviceTaintRules": [rule.name for rule in found.rules],
        "DeviceClasses": [class_.name for class_ in found.classes],
        "ResourceClaims": [claim.name for claim in found.claims],
        "ResourceClaimTemplates": [template.name for template in found.templates],
        "PodGroups": [group.name for group in found.groups],
        "Queues": [queue.name for queue in found.queues],
        "RuntimeClasses": [runtime.name for runtime in found.runtimes],
    }
    for kind, names in named.items():
        met: set[str] = set()
        for name in names:
            if name in met:
                raise InvalidBlueprint(
                    f"cannot simulate: there are two {kind} {name}; leave one out"
                )
            met.add(name)
    pods.refuse_twice(found.pods)


def _tainted(slice_: Slice, rules: Sequence[TaintRule]) -> Slice:
    """Return a slice with the taints that rules put on its devices."""
    devices = tuple(
        replace(
            device,
            taints=(*device.taints, *(rule.taint for rule in rules if rule.is_about(device.id))),
        )
        for device in slice_.devices
    )
    return replace(slice_, devices=devices) if rules else slice_


def _nodes(found: _Found) -> tuple[Node, ...]:
    """Return every node that is described, or that a slice is for."""
    named = {s.where.node for s in found.slices if s.where is not None and s.where.node}
    named |= {d.where.node for s in found.slices for d in s.devices if d.where and d.where.node}
    known = offered.merged(found.nodes)
    missing = sorted(named - {node.name for node in known})
    return (*known, *(Node(name=name) for name in missing))


def _claims_alone(found: _Found, known: Collection[str]) -> Iterable[Pod]:
    """Return a pod for each claim and template that no pod has: it is asked about by itself."""
    claimed = {*known, *(c.claim for pod in found.pods for c in pod.claims)}
    made = {*known, *(c.template for pod in found.pods for c in pod.claims)}
    for claim in found.claims:
        if claim.picks is None and claim.name not in claimed:
            yield Pod(
                name=claim.name,
                claims=(PodClaim(name=claim.name, claim=claim.name),),
                is_claim=True,
            )
    for template in found.templates:
        if template.name not in made:
            yield Pod(
                name=f"{template.name} (template)",
                claims=(PodClaim(name=template.name, template=template.name),),
                is_claim=True,
            )
