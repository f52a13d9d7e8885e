"""What a single device fails, in words: whatever else is chosen, or beside what is."""

import re
from collections.abc import Sequence
from typing import Final

from kata_gpu.model.kubernetes import Effect
from kata_gpu.plan.simulate import quantity
from kata_gpu.plan.simulate.answer import Condition, Reason
from kata_gpu.plan.simulate.cel import CelFailure
from kata_gpu.plan.simulate.values import Choice, Constraint, Device, Value

_BLOCKING: Final = frozenset({Effect.NO_SCHEDULE, Effect.NO_EXECUTE})
_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SHOWN: Final = 160


def tainted(choice: Choice, device: Device) -> Reason | None:
    """Return the first taint that keeps a device from a choice."""
    for taint in device.taints:
        is_tolerated = any(
            toleration.covers(taint.key, taint.value, taint.effect)
            for toleration in choice.tolerations
        )
        if taint.effect in _BLOCKING and not is_tolerated:
            value = f"={taint.value}" if taint.value else ""
            return Reason(
                condition=Condition.TAINT,
                text=f"taint {taint.key}{value}:{taint.effect} is not tolerated",
            )
    return None


def short(choice: Choice, device: Device) -> Reason | CelFailure | None:
    """Return which capacity is too small."""
    if device.is_shared:
        return CelFailure("it may be shared by claims, which is not simulated", is_ours=True)
    for name, wanted in choice.capacity.items():
        full = name if "/" in name else f"{device.id.driver}/{name}"
        found = device.capacity.get(full)
        if found is None or found < wanted:
            has = "none" if found is None else quantity.text(found)
            return Reason(
                condition=Condition.CAPACITY,
                text=f"capacity {name} is {has}, and {quantity.text(wanted)} is asked for",
            )
    return None


def breaks(constraint: Constraint, device: Device, chosen: Sequence[Device]) -> Reason | None:
    """Return how a device differs from those *chosen*, or does not."""
    name = constraint.attribute
    condition = Condition.DISTINCT if constraint.is_distinct else Condition.MATCH
    value = device.attributes.get(name)
    if value is None:
        return Reason(condition=condition, text=f"it has no attribute {name}")
    for other in chosen:
        is_same = _same(value, other.attributes[name])
        if constraint.is_distinct and is_same:
            text = f"{name} is {_word(value)}, as that of {other.id.name} is"
            return Reason(condition=condition, text=text)
        if not constraint.is_distinct and not is_same:
            theirs = _word(other.attributes[name])
            text = f"{name} is {_word(value)}, and {theirs} for {other.id.name}"
            return Reason(condition=condition, text=text)
    return None


def _same(one: Value, other: Value) -> bool:
    return type(one) is type(other) and one == other


def _word(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def told(expression: str, device: Device) -> str:
    """Return the attributes and capacities that an expression names, as they are."""
    words = set(_NAME.findall(expression))
    found = {
        **{name: _word(value) for name, value in device.attributes.items()},
        **{name: quantity.text(number) for name, number in device.capacity.items()},
    }
    told = [
        f"{n.rpartition('/')[2]} {v}" for n, v in found.items() if n.rpartition("/")[2] in words
    ]
    if "driver" in words and f"{device.id.driver}/driver" not in found:
        told.insert(0, f"driver {device.id.driver}")
    return f" ({', '.join(told)})" if told else ""


def clip(text: str) -> str:
    """Return an expression on one line, of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
