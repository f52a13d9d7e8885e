"""CDI specs of all vendors: Kata's runtimes read them all, and one they refuse stops every pod.

The rules are `plan.cdi`'s; here they are sorted into checks.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from kata_gpu.model.cdi import CdiFault, CdiSpecs, Scope
from kata_gpu.model.doctor import Answer
from kata_gpu.model.node_facts import NodeFacts, Unknown
from kata_gpu.plan.cdi import devices, judge, stopped
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning

_SHOWN: Final = 5
_EVERY_POD: Final = "Kata's runtimes read every spec, and one they refuse stops every pod"
_VERSIONS: Final = frozenset({"version", "newer-version"})
_DUPLICATES: Final = frozenset({"twice-in-directory", "twice-in-directories"})
_DEVICES: Final = frozenset({Scope.DEVICE})


def files(facts: NodeFacts) -> Iterable[Answer]:
    """Every spec can be read, by both runtimes."""
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
        return
    for problem in facts.cdi.problems:
        yield unknown(Unknown(reason=problem))
    found = [f for f in _judged(facts.cdi) if _check(f) is files]
    yield from _answers(found, f"{len(facts.cdi.files)} specs")


def versions(facts: NodeFacts) -> Iterable[Answer]:
    """Every spec has a version that both of Kata's runtimes know."""
    yield from _of(facts, versions, "none after 0.6.0")


def duplicates(facts: NodeFacts) -> Iterable[Answer]:
    """No device is in two specs."""
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
        return
    count = len(devices(facts.cdi))
    yield from _of(facts, duplicates, f"{count} devices, each in one spec")


def device_nodes(facts: NodeFacts) -> Iterable[Answer]:
    """Every device can be had: its nodes exist, and are what Kata makes a device of."""
    yield from _of(facts, device_nodes, "all there")


def leftovers(facts: NodeFacts) -> Iterable[Answer]:
    """Nothing but specs lies in the folders."""
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
    elif facts.cdi.leftovers:
        shown = ", ".join(facts.cdi.leftovers[:_SHOWN])
        yield info(f"{len(facts.cdi.leftovers)} files that no reader takes: {shown}")
    else:
        yield ok("none")


Check = Callable[[NodeFacts], Iterable[Answer]]


def _check(fault: CdiFault) -> Check:
    """Return the check that a fault belongs to."""
    if fault.rule in _VERSIONS:
        return versions
    if fault.rule in _DUPLICATES:
        return duplicates
    return device_nodes if fault.scopes == _DEVICES else files


def _of(facts: NodeFacts, check: Check, sound: str) -> Iterable[Answer]:
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
        return
    yield from _answers([f for f in _judged(facts.cdi) if _check(f) is check], sound)


@lru_cache(maxsize=1)  # four checks ask for the same
def _judged(specs: CdiSpecs) -> tuple[CdiFault, ...]:
    return judge(specs)


def _answers(found: list[CdiFault], sound: str) -> Iterable[Answer]:
    """Yield an answer for each of the first faults, the gravest first, or that all is sound."""
    if not any(fault.scopes - {Scope.IGNORED} for fault in found):
        yield ok(sound)
    ordered = sorted(found, key=lambda fault: Scope.EVERY_POD not in fault.scopes)
    for fault in ordered[:_SHOWN]:
        yield _answer(fault)
    if len(found) > _SHOWN:
        yield info(f"{len(found) - _SHOWN} more of the kind; kata-gpu cdi validate tells them all")


def _answer(fault: CdiFault) -> Answer:
    found = str(fault)
    if Scope.EVERY_POD in fault.scopes:
        return error(found, f"{_EVERY_POD} of {stopped(fault)}", fault.remedy)
    if Scope.UNKNOWN in fault.scopes:
        return unknown(Unknown(reason=found))
    if Scope.DEVICE in fault.scopes:
        why = f"a pod of {stopped(fault)} that asks for this device does not get it"
        return warning(found, why, fault.remedy)
    if Scope.AMBIGUOUS in fault.scopes:
        why = "Kata's two runtimes do not agree on which of them counts"
        return warning(found, why, fault.remedy)
    return info(found)
