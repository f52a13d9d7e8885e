"""What is to be done about it, in order; for a unit that can be had, how a pod asks for it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from kata_gpu.model.explanation import Said
from kata_gpu.model.kubernetes import Door, driver_of
from kata_gpu.model.plan import Severity
from kata_gpu.model.unit import UnitState
from kata_gpu.plan.explanation.case import Case, Facts

_BY_HAND: Final = "start the agent (systemctl start kata-gpu), or run kata-gpu apply"


def actions(facts: Facts, case: Case) -> tuple[str, ...]:
    """Return the actions, each once."""
    if case.is_bridge:
        return ("nothing: a bridge is never passed through; select what is below it",)
    if case.unit is None or case.state is None:
        made = tuple(_without_unit(facts, case))
    else:
        made = tuple(action for side in _SIDES[case.state] for action in side(facts, case))
    return tuple(dict.fromkeys(made))


def _without_unit(facts: Facts, case: Case) -> Iterable[str]:
    yield from _remedies(facts, case)
    if case.asking is not None:
        yield from _of_virtuals(facts, case)
        return
    if case.function is not None and case.state is None:
        yield from _mends(facts, case)
        gpus = sorted(str(f.address) for f in (case.function, *case.mates) if f.is_gpu)
        chosen = str(case.address) if case.function.is_gpu or not gpus else gpus[0]
        yield (
            f'select {chosen} in a pool of the blueprint: mode = "passthrough", a resource, and '
            f'select = [{{ address = "{chosen}" }}] or what else is true of it'
        )


def _of_virtuals(facts: Facts, case: Case) -> Iterable[str]:
    """Lead from a physical function to its virtual ones."""
    virtuals = [str(f.address) for f in facts.inventory.functions if f.parent == case.address]
    if case.steps:
        yield from _next_turn(facts, case)
    if virtuals:
        yield f"see kata-gpu explain for each of them: {', '.join(virtuals)}"


def _ask(facts: Facts, case: Case) -> Iterable[str]:
    """Say how a pod gets it, and what will not work."""
    handlers = facts.blueprint.handlers
    names = " or ".join(handler.name for handler in handlers) or "one of Kata's"
    asking, name = _asking(case)
    yield (
        f"nothing: it is for a pod {asking}, with a runtimeClassName whose handler is {names} "
        f"(CDI device {name})"
    )
    if not handlers:
        yield "name your Kata handlers in the blueprint, or set them up for cold-plug by hand"
    subjects = {f"handler {handler.name}" for handler in handlers}
    for finding in facts.plan.findings:
        if finding.subject in subjects:
            yield f"{finding.subject}: {finding.reason}; {finding.remedy}"


def _asking(case: Case) -> tuple[str, str]:
    """Return what such a pod has, and the CDI device that it gets."""
    pool = case.pool
    resource = pool.resource if pool else None
    name = f"{resource}={case.name}"
    match pool.door if pool else Door.NONE:
        case Door.DRA:
            return f"whose ResourceClaim gets {case.name} of {driver_of(case.functions)}", name
        case Door.DEVICE_PLUGIN if pool and pool.bundle:
            bundle = f"{resource}={pool.bundle}"
            return f"that asks for resource {resource}, and gets all of {pool.bundle}", bundle
        case Door.DEVICE_PLUGIN:
            return f"that asks for resource {resource}", name
        case _:
            return "that somebody else gives it to", name


def _let_go(_facts: Facts, case: Case) -> Iterable[str]:
    """Name each pod once, and each process that is in none."""
    for holder in case.holders:
        who = f"process {holder.pid} ({holder.command}, user {holder.user or 'unknown'})"
        if holder.pod_name is not None:
            who = f"pod {holder.pod_namespace}/{holder.pod_name}"
        elif holder.pod_uid is not None:
            who = f"the pod with uid {holder.pod_uid}"
        elif holder.container is not None:
            who = f"container {holder.container[:12]}"
        yield f"end {who}, or wait until it ends"


def _then_reset(_facts: Facts, _case: Case) -> Iterable[str]:
    return ("then nothing: it is reset, and offered to the next pod",)


def _mend_the_reason(_facts: Facts, _case: Case) -> Iterable[str]:
    return ("mend what the reason names",)


def _remedies(_facts: Facts, case: Case) -> Iterable[str]:
    """Give the mends of what was found, the gravest first."""
    order = list(Severity)
    for finding in sorted(case.findings, key=lambda f: -order.index(f.severity)):
        yield finding.remedy


def _mends(_facts: Facts, case: Case) -> Iterable[str]:
    """Give the mends of what is, or would be, in the way of a pool that passes it through."""
    if case.verdict is not None:
        yield from (blocker.remedy for blocker in case.verdict.blockers)


def _another_mode(_facts: Facts, case: Case) -> Iterable[str]:
    pool = case.pool.name if case.pool else ""
    yield (
        f"it is where the blueprint wants it; for pods, give pool {pool} "
        f'mode = "passthrough" and a resource, or select {case.name} in such a pool before it'
    )


def _again(facts: Facts, _case: Case) -> Iterable[str]:
    if isinstance(facts.said, Said):
        yield "then nothing: the agent goes on by itself, at the latest with its next rescan"
    else:
        yield f"then {_BY_HAND}"


def _next_turn(facts: Facts, _case: Case) -> Iterable[str]:
    if isinstance(facts.said, Said):
        yield "nothing: the agent does it in its next turn"
    else:
        yield _BY_HAND


def _at_once(facts: Facts, case: Case) -> Iterable[str]:
    if isinstance(facts.said, Said):
        yield "to have it tried at once: systemctl reload kata-gpu"
    else:
        yield from _again(facts, case)


_SIDES: Final[Mapping[UnitState, tuple[Callable[[Facts, Case], Iterable[str]], ...]]] = {
    UnitState.AVAILABLE: (_ask,),
    UnitState.IN_USE: (_let_go, _then_reset),
    UnitState.UNCLAIMED: (_ask,),
    UnitState.PENDING: (_remedies, _next_turn),
    UnitState.WAITING: (_let_go, _again),
    UnitState.REFUSED: (_remedies, _again),
    UnitState.FOREIGN: (_remedies, _again),
    UnitState.FAILED: (_mend_the_reason, _remedies, _at_once),
    UnitState.DRIFTED: (_remedies,),
    UnitState.CONTESTED: (_remedies, _at_once),
    UnitState.STUCK: (_let_go, _remedies),
    UnitState.QUARANTINED: (_mends, _remedies, _again),
    UnitState.HOST: (_remedies, _mends, _another_mode),
    UnitState.IGNORED: (_remedies, _mends, _another_mode),
}
