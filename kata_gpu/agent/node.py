"""One turn of the loop: look, compare with the blueprint, plan, act, look again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from kata_gpu import __version__
from kata_gpu.act import executor
from kata_gpu.act.executor import Progress
from kata_gpu.act.journal import Journal
from kata_gpu.discover import inventory as discover
from kata_gpu.discover import quarantine, runtimes, vfio
from kata_gpu.discover.cdi import read as read_cdi
from kata_gpu.errors import HostError, LedgerError
from kata_gpu.host import Host, files, holders, leftovers
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Cleaning, Ledger
from kata_gpu.model.pci import Identity
from kata_gpu.model.plan import Plan, RestartService, StartService, Step, StopService
from kata_gpu.model.report import NodeState, Outcome, Report, Result
from kata_gpu.model.restraint import Order, Setback
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import cdi, modes, planner, state
from kata_gpu.plan.runtime import wiring
from kata_gpu.settings.agent import Settings

log = logging.getLogger(__name__)

_ROUNDS_MAX: Final = 5
"""Make virtual functions, load what only then names its driver, bind, publish what the kernel
numbered, and publish without what failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn found in the end, did on the way, and leaves to do."""

    inventory: Inventory
    plan: Plan
    """What is still to do; only steps of units that failed, or came in too late."""

    taken: tuple[tuple[Step, Outcome], ...]
    failed: Mapping[str, Setback] = field(default_factory=dict)
    """Units and services that failed, or were skipped for a failure, with the reason."""

    @property
    def report(self) -> Report:
        """How each step ended."""
        return Report(outcomes=tuple(outcome for _, outcome in self.taken))


def open_journal(host: Host, settings: Settings) -> Journal:
    """Return the journal of this node.

    Raises:
        LedgerError: it cannot be trusted, or it is gone though the agent has worked here.
    """
    path = host.path(settings.ledger)
    traces = [] if path.exists() else _traces(host, settings)
    if traces:
        raise LedgerError(
            f"cannot find the ledger {settings.ledger}, but {traces[0]} shows that this agent has "
            f"worked here; restore it from a backup, or remove what it published by hand once no "
            f"VM uses it, and adopt each unit by its address"
        )
    return Journal(path)


def _traces(host: Host, settings: Settings) -> list[str]:
    """Return the CDI specs that only this agent writes."""
    names = files.names(host.path(settings.cdi_directory))
    paths = (f"{settings.cdi_directory}/{name}" for name in names)
    return [path for path in paths if cdi.is_ours(settings.cdi_directory, path)]


def survey(host: Host, settings: Settings, blueprint: Blueprint, reason: str) -> Turn:
    """Look, and say of everything that is not done that it is for *reason*."""
    inventory = look(host, settings, blueprint, Ledger())
    plan = planner.survey(blueprint, inventory, reason=reason)
    return Turn(inventory=inventory, plan=plan, taken=())


def look(host: Host, settings: Settings, blueprint: Blueprint, ledger: Ledger) -> Inventory:
    """Read everything that the plan depends on."""

    def interest(identity: Identity) -> bool:
        is_ours = ledger.owner(identity.address) or ledger.made(identity.address)
        return is_ours is not None or blueprint.could_select(identity)

    kinds = dict.fromkeys(pool.resource for pool in blueprint.pools if pool.resource)
    specs = (cdi.path(settings.cdi_directory, kind) for kind in kinds)
    found_runtimes = runtimes.find(host) if blueprint.wiring.handlers else ()
    found = discover.collect(
        host,
        interest=interest,
        handlers={handler.name: handler.config for handler in blueprint.handlers},
        paths=(*specs, *ledger.files, *wiring.paths(found_runtimes)),
        operations=leftovers.find(host.path("/proc")),
    )
    addresses = [function.address for function in found.functions if not function.is_bridge]
    users = holders.find(host, addresses)
    return replace(
        found,
        holders={address: who for address, who in users.items() if who},
        cdi=read_cdi(host, settings.cdi_directory),
        quarantine=settings.quarantine,
        set_aside=quarantine.read(host, settings.quarantine),
        runtimes=found_runtimes,
    )


def make_plan(  # noqa: PLR0913 - as `planner.plan`
    host: Host,
    settings: Settings,
    blueprint: Blueprint,
    ledger: Ledger,
    failed: Mapping[str, Setback] | None = None,
    opened: frozenset[str] = frozenset(),
    kept: Order | None = None,
    *,
    claimed: frozenset[str] | None = None,
) -> tuple[Inventory, Plan]:
    """Look, and return what would be done; the last arguments are those of `planner.plan`."""
    blueprint = replace(blueprint, pod_resources=settings.pod_resources)
    inventory = vfio.suited(host, look(host, settings, blueprint, ledger))
    return inventory, planner.plan(
        blueprint,
        inventory,
        ledger,
        cdi_directory=settings.cdi_directory,
        failed=failed,
        opened=opened,
        kept=kept,
        claimed=claimed,
    )


def make_release(
    host: Host, settings: Settings, ledger: Ledger, chosen: frozenset[str] | None
) -> Plan:
    """Look, and return how the *chosen* are given back; everything with None.

    Raises:
        HostError: one that is chosen is neither a unit of ours, nor the physical function to
            which one belongs.
    """
    inventory = look(host, settings, Blueprint(version="none"), ledger)
    known = {
        *(entry.unit for entry in ledger.entries),
        *(str(made.parent) for made in ledger.virtuals),
        *(str(f.parent) for f in inventory.functions if f.parent and ledger.owner(f.address)),
    }
    strangers = sorted((chosen or frozenset()) - known)
    if strangers:
        ours = ", ".join(sorted(known)) or "none"
        raise HostError(f"cannot release {', '.join(strangers)}: not ours (ours: {ours})")
    return planner.release(inventory, ledger, cdi_directory=settings.cdi_directory, chosen=chosen)


def converge(  # noqa: PLR0913 - as `planner.plan`
    host: Host,
    settings: Settings,
    blueprint: Blueprint,
    journal: Journal,
    *,
    failed: Mapping[str, Setback] | None = None,
    opened: frozenset[str] = frozenset(),
    kept: Order | None = None,
    claimed: frozenset[str] | None = None,
    progress: Progress | None = None,
) -> Turn:
    """Plan and act until there is nothing left that could succeed now.

    *failed* names units that are not to be tried. What fails here is not tried twice.
    """
    hopeless = dict(failed or {})
    taken: list[tuple[Step, Outcome]] = []

    def look_again(opened: frozenset[str] = frozenset()) -> tuple[Inventory, Plan]:
        ledger = journal.ledger
        return make_plan(host, settings, blueprint, ledger, hopeless, opened, kept, claimed=claimed)

    inventory, plan = look_again(opened)
    for _ in range(_ROUNDS_MAX):
        if not plan.steps:
            break
        report = executor.execute(host, plan, journal, progress=progress)
        taken.extend(zip(plan.steps, report.outcomes, strict=True))
        setbacks = _setbacks(plan, report)
        if report.failures and not setbacks:
            break  # a file: trying again now would fail again
        hopeless.update(setbacks)
        inventory, plan = look_again()
    return Turn(inventory=inventory, plan=plan, taken=tuple(taken), failed=hopeless)


def read_modes(
    host: Host, settings: Settings, blueprint: Blueprint, journal: Journal, turn: Turn
) -> Turn:
    """Read the confidential modes that nobody knows, of units that nobody has; once is enough."""
    found, cdi_directory = turn.inventory, settings.cdi_directory
    units = state.assess(blueprint, found, journal.ledger, turn.plan, cdi_directory=cdi_directory)
    plan = modes.plan(blueprint.version, found, journal.ledger, units)
    report = executor.execute(host, plan, journal)
    taken = (*turn.taken, *zip(plan.steps, report.outcomes, strict=True))
    return replace(turn, taken=taken)


def clear(journal: Journal, unit: str) -> None:
    """Take *unit* out of quarantine, on an admin's word that it is clean.

    Raises:
        HostError: it is not in quarantine, or the ledger cannot be written.
    """
    entry = journal.ledger.entry(unit)
    if entry is None or entry.quarantine is None:
        kept = [e.unit for e in journal.ledger.entries if e.quarantine is not None]
        raise HostError(
            f"cannot clear {unit}: it is not in quarantine (in quarantine: "
            f"{', '.join(kept) or 'none'})"
        )
    result = f"cleared by an admin; it was in quarantine: {entry.quarantine}"
    record = Cleaning(at=datetime.now(UTC), method="none", result=result)
    journal.amend(unit, quarantine=None, is_used=False, cleaned=record)


def _setbacks(plan: Plan, report: Report) -> dict[str, Setback]:
    """Return the units and services that came to nothing, each with the first reason.

    One that is held although services were stopped for it has failed: starting these again is
    heard, and it would be tried, and they be stopped, for ever.
    """
    found: dict[str, Setback] = {}
    for step, outcome in zip(plan.steps, report.outcomes, strict=True):
        if outcome.detail is not None:
            stopped = any(isinstance(plan.steps[n - 1], StopService) for n in step.needs)
            is_held = outcome.result is Result.HELD and not stopped
            state = UnitState.WAITING if is_held else UnitState.FAILED
            is_final = outcome.result is Result.FAILED and isinstance(step, RestartService)
            setback = Setback(reason=outcome.detail, state=state, is_final=is_final)
            for name in _what_failed(step):
                found.setdefault(name, setback)
    return found


def _what_failed(step: Step) -> tuple[str, ...]:
    match step:
        case StartService(name=name):
            return (name,)
        case RestartService(name=name, path=path):
            return (name, path)
        case _:
            return step.units


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
        ),
        kata=turn.inventory.kata,
        files=ledger.files,
        findings=turn.plan.findings,
        problems=turn.inventory.problems,
        last_report=last_report,
    )
