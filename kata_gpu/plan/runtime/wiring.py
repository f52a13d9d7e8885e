"""The container runtime's drop-in as it should be, and when it has to be read anew."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kata_gpu.model.blueprint import (
    Blueprint,
    KataHandler,
    Restart,
    RuntimeHandler,
    RuntimeKind,
    Wiring,
)
from kata_gpu.model.plan import (
    Finding,
    RemoveFile,
    RestartService,
    Severity,
    Step,
    WriteFile,
)
from kata_gpu.model.runtime import ContainerRuntime
from kata_gpu.plan.runtime import handlers, soundness, spot, tables
from kata_gpu.plan.runtime.spot import Obstacle, Spot
from kata_gpu.plan.situation import Situation
from kata_gpu.plan.wish import Wish

_SUBJECT: Final = "container runtime"

Same = Callable[[str, str | None], bool]


def paths(runtimes: Iterable[ContainerRuntime]) -> tuple[str, ...]:
    """Return where our drop-ins go or would go, to be looked at."""
    spots = map(spot.find, runtimes)
    return tuple(place.path for place in spots if isinstance(place, Spot))


def chosen(wiring: Wiring, runtimes: Sequence[ContainerRuntime]) -> ContainerRuntime | Finding:
    """Return the container runtime that is to get our handlers, or why none is."""
    found = [r for r in runtimes if wiring.kind in {None, r.kind}]
    if len(found) == 1:
        return found[0]
    if found:
        kinds = ", ".join(r.kind for r in found)
        words = " or ".join(f'"{r.kind}"' for r in found)
        return refusal(
            _SUBJECT,
            f"the node has several ({kinds}), and nobody says which one runs the pods",
            f"say it in the blueprint: [runtime] kind = {words}",
        )
    wanted = wiring.kind or "containerd or CRI-O"
    return refusal(
        _SUBJECT,
        f"no configuration of {wanted} was found, so no handler is wired",
        "install it, or correct [runtime] kind in the blueprint",
    )


def drop_ins(
    blueprint: Blueprint, runtimes: Sequence[ContainerRuntime], is_same: Same = operator.eq
) -> tuple[tuple[Wish, ...], tuple[Finding, ...]]:
    """Return the drop-in that the blueprint's own handlers need, and what is not done.

    *is_same* tells whether two paths lead to one base file.
    """
    if not blueprint.wiring.handlers:
        return (), ()
    runtime = chosen(blueprint.wiring, runtimes)
    if isinstance(runtime, Finding):
        return (), (runtime,)
    place = spot.find(runtime)
    ours = place.path if isinstance(place, Spot) else None
    missing, findings = _missing(blueprint, runtime, ours, is_same)
    if not missing:
        return (), tuple(findings)
    if isinstance(place, Obstacle):
        names = ", ".join(handler.name for handler, _ in missing)
        told = refusal(str(runtime.kind), f"{names} not wired: {place.reason}", place.remedy)
        return (), (*findings, told)
    names = ", ".join(f"{handler.name} ({base.name})" for handler, base in missing)
    wish = Wish(
        path=place.path,
        staging=place.staging,
        content=text(missing, place.version),
        reason=f"{runtime.kind} gets {names} by it",
    )
    return (wish,), tuple(findings)


def text(pairs: Iterable[tuple[RuntimeHandler, KataHandler]], version: int) -> str:
    """Return the tables of handlers, of containerd's configuration *version*; 0 for CRI-O."""
    return tables.containerd(pairs, version) if version else tables.crio(pairs)


def pairs(blueprint: Blueprint) -> tuple[tuple[RuntimeHandler, KataHandler], ...]:
    """Return the blueprint's own handlers, each with its base."""
    bases = {handler.name: handler for handler in blueprint.handlers}
    return tuple((handler, bases[handler.base]) for handler in blueprint.wiring.handlers)


def _missing(
    blueprint: Blueprint, runtime: ContainerRuntime, ours: str | None, is_same: Same
) -> tuple[list[tuple[RuntimeHandler, KataHandler]], list[Finding]]:
    """Return the handlers that no other file wires, and those that one wires otherwise."""
    others = [h for h in handlers.found(runtime) if h.file != ours]
    missing, findings = [], []
    for handler, base in pairs(blueprint):
        same = handlers.named(others, handler.name)
        if not same:
            missing.append((handler, base))
        elif not is_same(base.config, same[-1].config):
            findings.append(
                refusal(
                    f"handler {handler.name}",
                    f"{same[-1].file} has it already, with {same[-1].config or 'no base file'} "
                    f"instead of {base.config}",
                    "remove it there, or name ours otherwise",
                )
            )
        if handler.guest_pull and runtime.kind is not RuntimeKind.CRIO and not handler.snapshotter:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    subject=f"handler {handler.name}",
                    reason="guest_pull is CRI-O's; containerd leaves images to the guest by a "
                    "snapshotter alone",
                    remedy="set its snapshotter, as in nydus",
                )
            )
    return missing, findings


def restarts(
    now: Situation, steps: Sequence[Step]
) -> tuple[tuple[RestartService, ...], tuple[Finding, ...]]:
    """Return what has to be restarted after *steps* to read our drop-in, or who is to do it."""
    if not now.blueprint.wiring.handlers:
        return (), ()
    runtime = chosen(now.blueprint.wiring, now.inventory.runtimes)
    place = spot.find(runtime) if isinstance(runtime, ContainerRuntime) else None
    if not isinstance(runtime, ContainerRuntime) or not isinstance(place, Spot):
        return (), ()
    needs = _changes(steps, place.path)
    if not needs and not is_unread(runtime, place.path):
        return (), ()
    service = runtime.service
    is_wished = now.blueprint.wiring.restart is Restart.WHEN_CHANGED
    is_allowed = is_wished and not tuple(soundness.faults(runtime))  # it might not start again
    if is_allowed and service is not None and service not in now.failed:
        reason = f"it reads {place.path} only when it starts"
        return (RestartService(name=service, path=place.path, reason=reason, needs=needs),), ()
    return (), (_ask(runtime, place.path, now),)


def is_unread(runtime: ContainerRuntime, path: str) -> bool:
    """Tell whether a file is newer than what runs; no when nobody can tell."""
    file = runtime.file(path)
    modified = None if file is None else file.modified_at_s
    started = runtime.started_at_s
    return started is not None and modified is not None and modified > started


def _changes(steps: Iterable[Step], path: str) -> tuple[int, ...]:
    return tuple(
        number
        for number, step in enumerate(steps, 1)
        if isinstance(step, WriteFile | RemoveFile) and step.path == path
    )


def _ask(runtime: ContainerRuntime, path: str, now: Situation) -> Finding:
    name = runtime.service or runtime.place.services[0]
    reason = f"{runtime.kind} must be restarted to read {path}"
    setback = now.failed.get(name)
    if setback is not None:
        reason = f"{reason}, and that failed: {setback.reason}"
    unsound = next(iter(soundness.faults(runtime)), None)
    if unsound is not None:
        reason = f"{reason}, and may not come up again: {unsound}"
    return Finding(
        severity=Severity.WARNING,
        subject=str(runtime.kind),
        reason=reason,
        remedy=f"systemctl restart {name}; running pods stay, new ones wait. [runtime] restart = "
        f'"when-changed" has it done',
    )


def refusal(subject: str, reason: str, remedy: str) -> Finding:
    """Say that something the blueprint asks for is not done, whatever becomes of the units."""
    return Finding(severity=Severity.REFUSED, subject=subject, reason=reason, remedy=remedy)
