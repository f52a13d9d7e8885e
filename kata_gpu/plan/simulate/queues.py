"""KAI's queues: what each has of CPU, memory and GPUs, and how far it may go.

What KAI counts as a GPU is not what a node has of them: an extended resource by two names, and
a claim by the name of its DeviceClass.

Source: KAI scheduler, pkg/common/resources/dra.go, cluster_info.go, resource_info.go, and its
proportion plugin.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Final

from kata_gpu.plan.simulate import quantity
from kata_gpu.plan.simulate.answer import QueueAnswer
from kata_gpu.plan.simulate.values import Claim, Node, Pod, Queue, Slice

RESOURCES: Final = ("cpu", "memory", "gpu")
GPU_NAMES: Final = ("nvidia.com/gpu", "amd.com/gpu")
_DEPTH_MAX: Final = 16

Amounts = Mapping[str, Fraction]


def is_gpu(name: str) -> bool:
    """Tell whether KAI takes a driver or a class of that name for one of GPUs."""
    return "gpu" in name.lower()


def gpus(resources: Amounts, claims: Iterable[Claim]) -> Fraction:
    """Return how many GPUs KAI counts for a pod: of ``firstAvailable`` none, of ``All`` one."""
    named = sum((resources.get(name, Fraction(0)) for name in GPU_NAMES), Fraction(0))
    for claim in claims:
        for request in claim.requests:
            choice = request.choices[0]
            if not request.is_prioritized and is_gpu(choice.class_name):
                named += 1 if choice.is_all else choice.count
    return named


def dra_gpus(slices: Iterable[Slice]) -> dict[str, int]:
    """Return how many GPUs of ResourceSlices KAI counts on each node, the tainted among them."""
    found: dict[str, int] = {}
    for slice_ in slices:
        if is_gpu(slice_.driver) and slice_.where is not None and slice_.where.node is not None:
            name = slice_.where.node
            found[name] = found.get(name, 0) + len(slice_.devices)
    return found


def totals(nodes: Iterable[Node], slices: Iterable[Slice]) -> dict[str, Fraction]:
    """Return what all nodes have; what is not known of one of them is left out."""
    nodes, claimed = tuple(nodes), dra_gpus(slices)
    counts = (gpus(node.resources or {}, ()) + claimed.get(node.name, 0) for node in nodes)
    found = {"gpu": sum(counts, Fraction(0))}
    for name in ("cpu", "memory"):
        amounts = [(node.resources or {}).get(name) for node in nodes]
        if all(amount is not None for amount in amounts):
            found[name] = sum((amount for amount in amounts if amount is not None), Fraction(0))
    return found


def chain(name: str, queues: Mapping[str, Queue]) -> list[Queue]:
    """Return a queue and those above it, as far as they are known."""
    found: list[Queue] = []
    at: str | None = name
    while at is not None and at in queues and len(found) < _DEPTH_MAX:
        found.append(queues[at])
        at = queues[at].parent
    return found


def objection(
    pod: Pod, asked: Amounts, queues: Mapping[str, Queue], used: Mapping[str, Amounts]
) -> str | None:
    """Return why a queue has no room for a pod that asks for *asked*; None when it has."""
    if pod.queue is None or not queues:
        return None
    if pod.queue not in queues:
        return f"there is no queue {pod.queue}"
    if any(other.parent == pod.queue for other in queues.values()):
        return f"queue {pod.queue} is no leaf: pods go to those below it"
    for queue in chain(pod.queue, queues):
        for name, limit in queue.limit.items():
            has = used.get(queue.name, {}).get(name, Fraction(0))
            if asked.get(name, Fraction(0)) > 0 and has + asked[name] > limit:
                return (
                    f"queue {queue.name} has {quantity.text(has)} of at most "
                    f"{quantity.text(limit)} {name}, and this asks for "
                    f"{quantity.text(asked[name])}"
                )
    return None


def answer(
    name: str, queues: Mapping[str, Queue], used: Amounts, all_there_is: Amounts
) -> QueueAnswer:
    """Return what a queue has, and whether it is entitled to it."""
    shares = {
        resource: round(float(used.get(resource, Fraction(0)) / all_there_is[resource]), 4)
        for resource in RESOURCES
        if all_there_is.get(resource)
    }
    largest = max(shares, key=lambda resource: shares[resource], default=None)
    return QueueAnswer(
        queue=name,
        used={r: float(used.get(r, Fraction(0))) for r in RESOURCES},
        shares=shares,
        dominant=largest if largest is not None and shares[largest] else None,
        verdict=_verdict(queues.get(name), used),
    )


def _verdict(queue: Queue | None, used: Amounts) -> str:
    if queue is None:
        return "not known: its quota and limit are not counted"
    over = [
        f"{quantity.text(used[name] - quota)} {name}"
        for name, quota in queue.quota.items()
        if used.get(name, Fraction(0)) > quota
    ]
    if over:
        return f"over its quota by {', '.join(over)}, which others may reclaim"
    return "within its quota"
