"""Pods that start together or not at all: in which order they are tried, and what they miss.

Source: KAI's PodGroup, scheduling.run.ai/v2alpha2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from kata_gpu.plan.simulate.answer import GroupAnswer, PodAnswer, Verdict
from kata_gpu.plan.simulate.values import Pod, PodGroup


def placed(answers: Iterable[PodAnswer]) -> int:
    """Return how many are placed."""
    return sum(answer.verdict is Verdict.PLACED for answer in answers)


def size(pod: Pod) -> tuple[int, Fraction]:
    """Return how much a pod asks for, for an order."""
    return len(pod.claims), sum((a for n, a in pod.resources.items() if "/" in n), Fraction(0))


def needed_first(group: PodGroup, pods: Sequence[Pod]) -> list[Pod]:
    """Return members with those first that subgroups cannot do without."""
    left = {part.name: part.min_member for part in group.subgroups}
    needed: list[Pod] = []
    others: list[Pod] = []
    for pod in pods:
        is_needed = left.get(pod.subgroup or "", 0) > 0
        if is_needed:
            left[pod.subgroup or ""] -= 1
        (needed if is_needed else others).append(pod)
    return needed + others


def short(
    group: PodGroup,
    pods: Sequence[Pod],
    answers: Sequence[PodAnswer],
    running: Sequence[Pod],
) -> str | None:
    """Return what a gang misses; None when it may start."""
    if placed(answers) + len(running) < group.min_member:
        return (
            f"{placed(answers)} of {len(pods)} members find room, and at least "
            f"{group.min_member} must"
        )
    for part in group.subgroups:
        members = [a for p, a in zip(pods, answers, strict=True) if p.subgroup == part.name]
        there = sum(pod.subgroup == part.name for pod in running)
        if placed(members) + there < part.min_member:
            return (
                f"{placed(members)} of {len(members)} members of subgroup {part.name} find "
                f"room, and at least {part.min_member} must"
            )
    return None


def taken_back(answer: PodAnswer, gang: GroupAnswer) -> PodAnswer:
    """Return the answer for a member of a gang that is not placed."""
    if answer.verdict is not Verdict.PLACED:
        return answer
    told = f"it would fit on {answer.node}, but not its gang {gang.group}: {gang.reason}"
    return replace(answer, verdict=gang.verdict, node=None, devices=(), reason=told)
