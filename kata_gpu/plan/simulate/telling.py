"""An answer as lines for people: what is refused, on which node, by which condition."""

from collections.abc import Iterable, Iterator, Sequence

from kata_gpu.plan.simulate.answer import (
    Answer,
    DeviceRefusal,
    NodeRefusal,
    PodAnswer,
    RequestRefusal,
    Verdict,
)

_NAMED_MAX = 4
"""Devices, nodes or pods that are named where several have the same to tell."""


def lines(answer: Answer, *, is_wide: bool = False) -> Iterator[str]:
    """Return why what is not placed is not; of many alike the first ones are named."""
    for group in answer.groups:
        if group.reason is not None:
            yield f"gang {group.group} is {group.verdict}: {group.reason}"
    for pods in _alike(p for p in answer.pods if p.verdict is not Verdict.PLACED):
        yield from _pods(pods, is_wide=is_wide)


def _alike(pods: Iterable[PodAnswer]) -> list[list[PodAnswer]]:
    """Return pods with one and the same account together, who has it first."""
    found: dict[object, list[PodAnswer]] = {}
    for pod in pods:
        is_alone = bool(pod.refusals or pod.same_as)
        key = pod.same_as or pod.pod if is_alone else (pod.verdict, pod.reason, pod.is_claim)
        found.setdefault(key, []).append(pod)
    return list(found.values())


def _pods(pods: Sequence[PodAnswer], *, is_wide: bool) -> Iterator[str]:
    first = pods[0]
    who = names([pod.pod for pod in pods], is_wide=is_wide)
    kind = "claim " if first.is_claim else ""
    yield f"{kind}{who} {'is' if len(pods) == 1 else 'are'} {first.verdict}: {first.reason}"
    nodes: dict[object, list[NodeRefusal]] = {}
    for refusal in first.refusals:
        key = _account(refusal)
        nodes.setdefault(key, []).append(refusal)
    for refusals in nodes.values():
        yield from _node(refusals, is_wide=is_wide)


def _account(refusal: NodeRefusal) -> object:
    """Return what two nodes have in common that say the same: of devices only their names."""
    requests = tuple(
        (r.claim, r.request, r.needed, tuple((d.device.name, d.reason) for d in r.devices))
        for r in refusal.requests
    )
    return refusal.verdict, refusal.reason, requests


def _node(refusals: Sequence[NodeRefusal], *, is_wide: bool) -> Iterator[str]:
    first = refusals[0]
    who = names([refusal.node for refusal in refusals], is_wide=is_wide)
    if not first.requests:
        word = "undecided: " if first.verdict is Verdict.UNDECIDED else ""
        yield f"  {who}: {word}{first.reason}"
    for request in first.requests:
        yield f"  {who}: claim {request.claim}, request {request.request} {request.needed}"
        yield from _devices(request, is_wide=is_wide)


def _devices(request: RequestRefusal, *, is_wide: bool) -> Iterator[str]:
    found: dict[object, list[DeviceRefusal]] = {}
    for refusal in request.devices:
        found.setdefault(refusal.reason, []).append(refusal)
    for refusals in found.values():
        who = names([refusal.device.name for refusal in refusals], is_wide=is_wide)
        yield f"    {who}: {refusals[0].reason.text}"


def names(found: Sequence[str], *, is_wide: bool = False) -> str:
    """Return names in a row, of many the first."""
    if is_wide or len(found) <= _NAMED_MAX:
        return ", ".join(found)
    return f"{', '.join(found[: _NAMED_MAX - 1])} and {len(found) - _NAMED_MAX + 1} more"
