"""Whether one pod fits on one node: first the node itself, then its resources, then devices.

Source: the scheduler's filters NodeUnschedulable, TaintToleration, NodeAffinity,
NodeResourcesFit and DynamicResources, in that order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from kata_gpu.plan.simulate import pools, quantity, queues
from kata_gpu.plan.simulate.values import (
    KAI,
    Choice,
    Claim,
    DeviceClass,
    Node,
    Pod,
    Request,
    RuntimeClass,
)

IMPLICIT: Final = "deviceclass.resource.kubernetes.io/"
"""A DeviceClass's name after it is an extended resource too."""

_BLOCKING: Final = frozenset({"NoSchedule", "NoExecute"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a pod needs of whichever node it gets."""

    pod: Pod
    """With what its RuntimeClass adds."""

    resources: Mapping[str, Fraction]
    """With the overhead, and one of ``pods``."""

    claims: tuple[Claim, ...]
    """Without devices yet, by the pod's names for them."""

    held: tuple[tuple[str, Claim], ...]
    """With devices already."""


def demand(
    pod: Pod,
    runtime: RuntimeClass | None,
    claims: Iterable[tuple[str, Claim]],
) -> Demand:
    """Return what *pod* needs; *claims* are by its own names for them."""
    claims = tuple(claims)
    resources = dict(pod.resources)
    overhead = pod.overhead
    if runtime is not None:
        overhead = runtime.overhead if overhead is None else overhead
        pod = replace(
            pod,
            node_selector={**runtime.node_selector, **pod.node_selector},
            tolerations=(*pod.tolerations, *runtime.tolerations),
        )
    for name, amount in (overhead or {}).items():
        resources[name] = resources.get(name, Fraction(0)) + amount
    return Demand(
        pod=pod,
        resources={**resources, "pods": Fraction(1)},
        claims=tuple(replace(c, name=name) for name, c in claims if c.picks is None),
        held=tuple((name, claim) for name, claim in claims if claim.picks is not None),
    )


def objection(wanted: Demand, node: Node) -> str | None:
    """Return why the node itself is not for the pod; None when it may be."""
    if node.is_cordoned:
        return "it is cordoned"
    return _tainted(wanted.pod, node) or _unselected(wanted.pod, node) or _elsewhere(wanted, node)


def _tainted(pod: Pod, node: Node) -> str | None:
    for taint in node.taints:
        is_tolerated = any(t.covers(taint.key, taint.value, taint.effect) for t in pod.tolerations)
        if taint.effect in _BLOCKING and not is_tolerated:
            value = f"={taint.value}" if taint.value else ""
            return f"its taint {taint.key}{value}:{taint.effect} is not tolerated"
    return None


def _unselected(pod: Pod, node: Node) -> str | None:
    if node.labels is None:
        return None
    for key, value in pod.node_selector.items():
        found = node.labels.get(key)
        if found != value:
            has = f"{key}={found}" if found is not None else f"no label {key}"
            return f"it has {has}, and {key}={value} is selected"
    if pod.terms and not pools.any_term(pod.terms, node):
        return "the pod's node affinity excludes it"
    return None


def _elsewhere(wanted: Demand, node: Node) -> str | None:
    for name, claim in wanted.held:
        if claim.where is not None and not pools.matches(claim.where, node):
            place = claim.where.node or "other nodes"
            return f"claim {name} has its devices already, on {place}"
    return None


def shortage(
    wanted: Demand, node: Node, used: Mapping[str, Fraction], backed: Iterable[str]
) -> str | None:
    """Return which resource the node has too little of; *backed* are those that claims stand for.

    What is not known of a node, such as its memory, it is held to have enough of.
    """
    backed = frozenset(backed)
    known = node.resources or {}
    for name, amount in wanted.resources.items():
        total = known.get(name)
        if name in backed or not amount:
            continue
        if total is None and "/" in name:
            return f"nothing on it offers {name}"
        if total is not None and amount > (left := total - used.get(name, Fraction(0))):
            return (
                f"{quantity.text(left)} of its {quantity.text(total)} {name} is left, and "
                f"{quantity.text(amount)} is asked for"
            )
    return None


def backed(
    wanted: Demand, node: Node, classes: Sequence[DeviceClass]
) -> tuple[tuple[str, ...], tuple[Claim, ...]]:
    """Return the extended resources that are claims in truth on that node, and these claims."""
    requests: list[Request] = []
    names: list[str] = []
    for name, amount in wanted.resources.items():
        class_ = None if "/" not in name else _class_for(name, classes)
        if class_ is None or name in (node.resources or {}) or wanted.pod.scheduler == KAI:
            continue
        names.append(name)
        choice = Choice(name=f"resource-{len(requests)}", class_name=class_, count=int(amount))
        requests.append(Request(name=choice.name, choices=(choice,)))
    if not requests:
        return (), ()
    return tuple(names), (Claim(name="extended resources", requests=tuple(requests)),)


def _class_for(resource: str, classes: Sequence[DeviceClass]) -> str | None:
    """Return the class of an extended resource: the newest, then the first by name."""
    if resource.startswith(IMPLICIT):
        name = resource.removeprefix(IMPLICIT)
        return name if any(class_.name == name for class_ in classes) else None
    named = sorted((c for c in classes if c.extended_resource == resource), key=lambda c: c.name)
    return max(named, key=lambda c: c.created).name if named else None


def kai_objection(wanted: Demand, *, has_dra_gpus: bool) -> str | None:
    """Return why KAI does not give the node to a pod that the node has room for."""
    if wanted.pod.scheduler != KAI or not has_dra_gpus:
        return None
    plugged = [name for name in queues.GPU_NAMES if wanted.resources.get(name)]
    if plugged:
        return f"KAI gives no {plugged[0]} on a node whose GPUs are in ResourceSlices"
    return None
