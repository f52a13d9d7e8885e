"""One turn of the loop: look, compare with the blueprint, plan, act, look again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from kata_gpu import __version__
from kata_gpu.act import executor
from kata_gpu.act.executor import Progress
from kata_gpu.act.journal import Journal
from kata_gpu.discover import inventory as discover
from kata_gpu.discover import vfio
from kata_gpu.host import Host, children
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import Identity
from kata_gpu.model.plan import LoadModule, Plan
from kata_gpu.model.report import NodeState, Outcome, Report
from kata_gpu.plan import cdi, planner, state
from kata_gpu.settings.agent import Settings

log = logging.getLogger(__name__)

_ROUNDS_MAX: Final = 4
"""Load what only then names its driver, bind, publish what the kernel numbered, and publish
without what failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn found in the end, did on the way, and leaves to do."""

    inventory: Inventory
    plan: Plan
    """What is still to do; only steps of units that failed, or came in too late."""

    report: Report
    failed: Mapping[str, str] = field(default_factory=dict)
    """Units that failed, or were skipped for a failure, with the reason."""


def look(host: Host, settings: Settings, blueprint: Blueprint, ledger: Ledger) -> Inventory:
    """Read everything that the plan depends on."""

    def interest(identity: Identity) -> bool:
        return blueprint.could_select(identity) or ledger.owner(identity.address) is not None

    kinds = dict.fromkeys(pool.resource for pool in blueprint.pools if pool.resource)
    specs = (cdi.path(settings.cdi_directory, kind) for kind in kinds)
    return discover.collect(
        host,
        interest=interest,
        handlers={handler.name: handler.config for handler in blueprint.handlers},
        paths=(*specs, *ledger.files),
        operations=children.leftovers(host.path("/proc")),
    )


def make_plan(
    host: Host,
    settings: Settings,
    blueprint: Blueprint,
    ledger: Ledger,
    failed: Mapping[str, str] | None = None,
) -> tuple[Inventory, Plan]:
    """Look, and return what would be done."""
    inventory = vfio.suited(host, look(host, settings, blueprint, ledger))
    return inventory, planner.plan(
        blueprint, inventory, ledger, cdi_directory=settings.cdi_directory, failed=failed
    )


def make_release(
    host: Host, settings: Settings, ledger: Ledger, chosen: frozenset[str] | None
) -> Plan:
    """Look, and return how the *chosen* units are given back; all of them with None."""
    inventory = look(host, settings, Blueprint(version="none"), ledger)
    return planner.release(inventory, ledger, cdi_directory=settings.cdi_directory, chosen=chosen)


def converge(
    host: Host,
    settings: Settings,
    blueprint: Blueprint,
    journal: Journal,
    *,
    failed: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Turn:
    """Plan and act until there is nothing left that could succeed now.

    *failed* names units that are not to be tried. What fails here is not tried twice.
    """
    hopeless = dict(failed or {})
    outcomes: list[Outcome] = []
    inventory, plan = make_plan(host, settings, blueprint, journal.ledger, hopeless)
    for _ in range(_ROUNDS_MAX):
        if not plan.steps:
            break
        report = executor.execute(host, plan, journal, progress=progress)
        outcomes.extend(report.outcomes)
        setbacks = _setbacks(plan, report)
        if report.failures and not setbacks:
            break  # a file: trying again now would fail again
        hopeless.update(setbacks)
        inventory, plan = make_plan(host, settings, blueprint, journal.ledger, hopeless)
    return Turn(
        inventory=inventory, plan=plan, report=Report(outcomes=tuple(outcomes)), failed=hopeless
    )


def _setbacks(plan: Plan, report: Report) -> dict[str, str]:
    """Return the units that came to nothing, each with the first reason."""
    found: dict[str, str] = {}
    for step, outcome in zip(plan.steps, report.outcomes, strict=True):
        if outcome.detail is not None:
            units = step.units if isinstance(step, LoadModule) else (outcome.unit,)
            for unit in units:
                if unit is not None:
                    found.setdefault(unit, outcome.detail)
    return found


def describe(
    turn: Turn,
    settings: Settings,
    blueprint: Blueprint,
    ledger: Ledger,
    *,
    number: int,
    last_report: Report,
) -> NodeState:
    """Return the whole answer to "how is this node?" after a turn."""
    return NodeState(
        agent=__version__,
        blueprint=blueprint.version,
        pass_number=number,
        read_at=turn.inventory.read_at,
        platform=turn.inventory.platform,
        units=state.assess(
            blueprint,
            turn.inventory,
            ledger,
            turn.plan,
            cdi_directory=settings.cdi_directory,
            failed=turn.failed,
        ),
        kata=turn.inventory.kata,
        files=ledger.files,
        findings=turn.plan.findings,
        problems=turn.inventory.problems,
        last_report=last_report,
    )
