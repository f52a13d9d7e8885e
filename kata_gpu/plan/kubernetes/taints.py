"""Taints that do not flap: each write is seen by every scheduler of the cluster.

A device that is new is published with the taints it has. Later a taint appears when it has
been wanted for a while, and goes when it has not been for a longer while; what must never
reach a pod is told at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from kata_gpu.model.kubernetes import Device, Taint
from kata_gpu.model.slices import HeldTaint, Settled, TaintId

APPEARS_AFTER_S: Final = 5.0
GOES_AFTER_S: Final = 30.0
AT_ONCE: Final = frozenset({"quarantined", "stuck", "foreign"})
"""Names of keys, without their domain, that appear without delay."""


def settle(before: Settled, devices: Sequence[Device], now_s: float) -> Settled:
    """Return *devices* with the taints to publish at *now_s*, given what was *before*."""
    known = {device.name for device in before.devices}
    held_before = _by_device(before.held)
    held: dict[TaintId, HeldTaint] = {}
    for device in devices:
        wanted = {(device.name, taint.key, taint.effect): taint for taint in device.taints}
        if device.name not in known:
            fresh = {i: HeldTaint(published=t, wanted=t, since_s=None) for i, t in wanted.items()}
            held.update(fresh)
            continue
        held.update(_next(held_before.get(device.name, {}), wanted, now_s))
    published = _by_device(held)
    due = [_due_s(taint) for taint in held.values() if taint.since_s is not None]
    return Settled(
        devices=tuple(replace(d, taints=_published(published.get(d.name, {}))) for d in devices),
        look_again_at_s=min(due, default=None),
        held=held,
    )


Held = Mapping[TaintId, HeldTaint]


def _by_device(held: Held) -> dict[str, dict[TaintId, HeldTaint]]:
    found: dict[str, dict[TaintId, HeldTaint]] = {}
    for key, taint in held.items():
        found.setdefault(key[0], {})[key] = taint
    return found


def _next(
    held: Held, wanted: Mapping[TaintId, Taint], now_s: float
) -> Iterator[tuple[TaintId, HeldTaint]]:
    """Return the taints of one device as they are now; one that is gone is not among them."""
    for key in dict.fromkeys((*held, *wanted)):
        old = held.get(key)
        published = old.published if old else None
        want = wanted.get(key)
        if published == want:
            since_s = None
        elif old is None or old.since_s is None or (old.wanted is None) != (want is None):
            since_s = now_s
        else:
            since_s = old.since_s
        taint = HeldTaint(published=published, wanted=want, since_s=since_s)
        if since_s is not None and _due_s(taint) <= now_s:
            taint = HeldTaint(published=want, wanted=want, since_s=None)
        if taint.published or taint.wanted:
            yield key, taint


def _due_s(taint: HeldTaint) -> float:
    since_s = taint.since_s or 0.0
    if taint.wanted is None:
        return since_s + GOES_AFTER_S
    return since_s + (0.0 if _is_urgent(taint.wanted) else APPEARS_AFTER_S)


def _is_urgent(taint: Taint) -> bool:
    return taint.key.rpartition("/")[2] in AT_ONCE


def _published(held: Held) -> tuple[Taint, ...]:
    found = [taint.published for taint in held.values() if taint.published]
    return tuple(sorted(found, key=lambda taint: (taint.key, taint.effect)))
