"""Which services of the host must not run, and which that we stopped are started again.

A service that a pool names is stopped before the first unit of the pool leaves its driver,
and started when none of them is ours: after the last release, and after a bind that failed.
"""

from collections.abc import Iterable, Mapping

from kata_gpu.model.blueprint import Mode, Pool
from kata_gpu.model.plan import Finding, MoveGroup, Severity, StartService, StopService
from kata_gpu.plan.situation import Situation

Pools = Mapping[str, Pool]
"""The pool of each unit."""


def stops(now: Situation, pools: Pools, moves: Iterable[MoveGroup]) -> tuple[StopService, ...]:
    """Return what is to be stopped before *moves*, by name."""
    waiting: dict[str, list[str]] = {}
    for group in moves:
        if not group.is_release and any(map(now.leaves_host_driver, group.moves)):
            for name in dict.fromkeys(pools[group.entry.unit].stop_services):
                waiting.setdefault(name, []).append(group.entry.unit)
    return tuple(
        StopService(
            name=name,
            units=tuple(units),
            reason=f"{', '.join(units)} cannot leave the host driver while it runs",
        )
        for name, units in sorted(waiting.items())
    )


def starts(
    now: Situation, pools: Pools, stopped: Iterable[StopService], *, needs: tuple[int, ...]
) -> tuple[tuple[StartService, ...], tuple[Finding, ...]]:
    """Return what is to be started at the end of a plan with *stopped*, and what cannot be.

    *pools* are those of units that stay; *needs* are the releases of the plan.
    """
    needed = {step.name for step in stopped}
    for entry in now.ledger.entries:
        pool = pools.get(entry.unit)
        if pool is not None and pool.mode is Mode.PASSTHROUGH:
            needed.update(pool.stop_services)
    ready = [name for name in now.ledger.services if name not in needed]
    return (
        tuple(start(name, needs=needs) for name in ready if name not in now.failed),
        tuple(_failed(name, now.failed[name].reason) for name in ready if name in now.failed),
    )


def start(name: str, *, needs: tuple[int, ...]) -> StartService:
    """Return the step that starts a service again."""
    reason = "we stopped it, and no unit that is ours needs that any more"
    return StartService(name=name, reason=reason, needs=needs)


def _failed(name: str, reason: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        subject=f"service {name}",
        reason=f"it was stopped for a GPU and does not start again: {reason}",
        remedy="it is tried again later",
    )
