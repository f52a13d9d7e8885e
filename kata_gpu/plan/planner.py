"""The difference between what is and what should be, as steps in a safe order.

What always holds:

- a device leaves the CDI spec before its driver is taken, and enters it after the last of
  its functions is bound;
- originals are what the ledger says; a function that is on VFIO and not in the ledger came
  there by somebody else's hand and is left alone, unless a pool names its address;
- a node in order has an empty plan;
- what is refused is a finding, and no step touches it;
- a unit that is bound on claim goes back only clean, and only when nobody has it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from kata_gpu.model import confidential
from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Ledger, LedgerEntry, Stage
from kata_gpu.model.plan import (
    Finding,
    LoadModule,
    Move,
    MoveGroup,
    NoteUse,
    Plan,
    Severity,
    StopService,
)
from kata_gpu.model.restraint import Order, Setback
from kata_gpu.model.unit import Unit
from kata_gpu.plan import (
    checks,
    cleaning,
    objections,
    offers,
    published,
    quarantine,
    services,
    targets,
    units,
    virtuals,
)
from kata_gpu.plan.cleaning import CleaningStep
from kata_gpu.plan.published import Steps
from kata_gpu.plan.runtime import wiring
from kata_gpu.plan.situation import Situation


def plan(  # noqa: PLR0913 - what is, what should be, and all that the agent remembers
    blueprint: Blueprint,
    inventory: Inventory,
    ledger: Ledger,
    *,
    cdi_directory: str,
    failed: Mapping[str, Setback] | None = None,
    opened: frozenset[str] = frozenset(),
    kept: Order | None = None,
    claimed: frozenset[str] | None = None,
) -> Plan:
    """Return every step from *inventory* to *blueprint*.

    *failed* names units and files that are not to be touched now, with the reason; *opened*
    units that somebody was seen to open since the last look; *kept* is what is only reported
    where it is no longer so; *claimed* are the units that claims are prepared for, None where
    nobody knows: then what is bound on claim stays where it is.
    """
    now = Situation.of(blueprint, inventory, ledger, failed, kept, claimed)
    notes = tuple(cleaning.uses(now, opened))
    now = replace(now, ledger=cleaning.noted(ledger, notes))
    formed = units.form(blueprint, inventory, ledger)
    draft = _Draft(now, cdi_directory, notes)
    family = virtuals.plan(now, formed.refused_pools)
    draft.findings.extend((*formed.findings, *family.findings))
    draft.findings.extend(checks.bundles(blueprint, formed.units))
    for unit in formed.units:
        is_fixed = unit.pool in formed.refused_pools or family.is_unsettled(now, unit)
        draft.consider(unit, may_move=not is_fixed)
    draft.consider_orphans({unit.id for unit in formed.units})
    return draft.finish(family.steps)


def survey(blueprint: Blueprint, inventory: Inventory, *, reason: str) -> Plan:
    """Return the plan of an agent that may change nothing: no steps, and why."""
    remedy = "see kata-gpu explain for each unit, and mend that first"
    told = [objections.refusal("node", f"nothing is changed: {reason}", remedy)]
    formed = units.form(blueprint, inventory, Ledger())
    for unit in formed.units:
        if not all(inventory.by_address()[address].is_on_vfio for address in unit.functions):
            told.append(objections.refusal(unit.id, f"nothing is changed: {reason}", remedy))
    return Plan(blueprint=blueprint.version, findings=(*told, *formed.findings))


def release(
    inventory: Inventory,
    ledger: Ledger,
    *,
    cdi_directory: str,
    chosen: frozenset[str] | None = None,
) -> Plan:
    """Return every step that gives units back; all of them, and all files, with None.

    To choose a physical function is to choose its virtual ones, and to remove those that we
    made. It needs no blueprint: the ledger and our own files say what is ours.
    """
    now = Situation.of(Blueprint(version="(release)"), inventory, ledger)
    draft = _Draft(now, cdi_directory)
    for entry in ledger.entries:
        if chosen is None or chosen & {entry.unit, *map(str, virtuals.parents(now, entry))}:
            draft.release(entry, "it was asked for")
    return draft.finish_release(chosen)


class _Draft:
    """Steps as they are found, by phase; ``finish`` puts them in order."""

    def __init__(self, now: Situation, cdi_directory: str, notes: tuple[NoteUse, ...] = ()) -> None:
        self.findings: list[Finding] = []
        self._now = now
        self._cdi_directory = cdi_directory
        self._loads: dict[str, list[str]] = {}
        self._notes = notes
        self._moves: list[MoveGroup] = []
        self._cleanings: list[CleaningStep] = []
        self._offered: list[tuple[str, Unit]] = []
        self._unclaimed: list[tuple[str, Unit]] = []
        self._passengers = 0
        self._pools: dict[str, Pool] = {}
        self._considered: set[str] = set()

    # What becomes of each unit

    def consider(self, unit: Unit, *, may_move: bool) -> None:
        """Add what *unit* needs, or why it gets nothing; what is in order stays either way."""
        now = self._now
        pool = next(pool for pool in now.blueprint.pools if pool.name == unit.pool)
        self._pools[unit.id] = pool
        match pool.mode:
            case Mode.IGNORE:
                for owner in now.owners(unit):
                    self._considered.add(owner.unit)
                    self.findings.append(objections.ignored(owner, pool))
            case Mode.HOST:
                self._consider_host(unit, pool)
            case Mode.PASSTHROUGH:
                entry = now.ledger.entry(unit.id)
                self._consider_passthrough(unit, pool, entry, may_move=may_move)

    def consider_orphans(self, known: set[str]) -> None:
        """Finish releases that were begun, and name units that no pool wants any more."""
        for entry in self._now.ledger.entries:
            if entry.unit in known | self._considered:
                continue
            if self._objects(objections.unread(self._now, entry)):
                continue
            if not any(f.address in self._now.functions for f in entry.functions):
                self.findings.append(objections.gone(entry.unit))
            elif entry.stage is Stage.RELEASING:
                self._give_back(entry, "a release was begun and not finished")
            else:
                self.findings.append(objections.unselected(entry.unit))

    def release(self, entry: LedgerEntry, reason: str) -> None:
        """Add the way back to the original drivers, last function first."""
        now = self._now
        if self._objects(self._stuck(entry) or objections.unread(now, entry)):
            return
        moves = now.way_back(entry)
        if self._objects(
            objections.exchanged(now, entry)
            or objections.with_virtuals(now, entry.unit, moves)
            or objections.held(now, entry.unit, moves)
        ):
            return
        self._moves.append(
            MoveGroup(
                entry=replace(entry, stage=Stage.RELEASING),
                groups=now.groups_of(entry),
                moves=moves,
                reason=reason,
            )
        )

    def _give_back(self, entry: LedgerEntry, reason: str) -> None:
        """Release a unit, unless that hangs, which is its state and no failure, or failed."""
        if not self._objects(self._stuck(entry) or objections.failed(self._now, entry.unit)):
            self.release(entry, reason)

    def _stuck(self, entry: LedgerEntry) -> Finding | None:
        return objections.stuck(self._now, entry.unit, (f.address for f in entry.functions))

    def _consider_host(self, unit: Unit, pool: Pool) -> None:
        """Give back what is ours of it, be it called otherwise since another function is first."""
        owners = self._now.owners(unit)
        for owner in owners:
            if owner.unit == unit.id or self._now.is_whole_in(unit, owner):
                self._considered.add(owner.unit)
                self._give_back(owner, f"pool {pool.name} wants it on its host driver")
            else:
                self._objects(objections.not_ours(self._now, unit, pool))
        if not owners and any(map(self._now.is_on_vfio, unit.functions)):
            self.findings.append(objections.taken_by_another(unit, pool))

    def _consider_passthrough(
        self, unit: Unit, pool: Pool, entry: LedgerEntry | None, *, may_move: bool
    ) -> None:
        now = self._now
        self._passengers += len(unit.functions)
        is_to_pass = now.is_to_pass(unit, pool)
        if not may_move and not (is_to_pass and now.is_settled(unit)):
            return
        if self._objects(
            objections.stuck(now, unit.id, unit.functions)
            or (entry and objections.quarantined(entry))
            or objections.failed(now, unit.id)
        ):
            return
        if entry is not None and not is_to_pass:
            self._unclaim(unit, entry)
            return
        found = objections.to_passing(now, unit, pool, entry)
        self.findings.extend(found)
        if found:
            named = () if unit.verdict.blockers else now.owners(unit)[:1]
            self._considered |= {e.unit for e in named if e.stage is not Stage.RELEASING}
            return
        if is_to_pass:
            self._pass_through(unit, pool, entry)
        elif pool.resource is not None:
            self._unclaimed.append((pool.resource, unit))

    def _unclaim(self, unit: Unit, entry: LedgerEntry) -> None:
        """Give back what no claim asks for any more; clean it first, as for another tenant."""
        if self._objects(objections.unread(self._now, entry)):
            return  # it would count as clean with a function that was not reset
        step = cleaning.before_return(self._now, unit, entry)
        if step is None:
            self.release(entry, "no claim asks for it")
        else:
            self._cleanings.append(step)

    def _pass_through(self, unit: Unit, pool: Pool, entry: LedgerEntry | None) -> None:
        now = self._now
        functions = [now.functions[address] for address in unit.functions]
        for module in targets.missing_modules(functions, now.best):
            self._loads.setdefault(module, []).append(unit.id)
        moves = targets.moves(functions, now.best)
        if moves is None:
            self._say(
                Severity.INFO,
                unit.id,
                "what the driver made for it is called shows only once its module is loaded",
                "it is bound in the next pass",
            )
            return
        if self._objects(
            objections.drifted(now, unit.id, moves)
            or objections.held(now, unit.id, moves, stopped=pool.stop_services)
        ):
            self._loads = {m: [u for u in us if u != unit.id] for m, us in self._loads.items()}
            return
        if entry is not None and now.is_settled(unit):
            if not self._may_be_had(unit, entry):
                return
        else:
            begun = targets.begun(unit, functions, entry, moves)
            reason = f"pool {pool.name} passes it through"
            self._moves.append(
                MoveGroup(
                    entry=begun,
                    groups=unit.groups,
                    moves=moves,
                    reason=reason,
                    looks=confidential.looks(functions),
                )
            )
            if begun.is_used and not now.holders(unit.functions):
                return  # it is cleaned in the next pass, and offered after that
        self._offer(unit, pool, moves)

    def _may_be_had(self, unit: Unit, entry: LedgerEntry) -> bool:
        """Tell whether a unit that is in order may be offered; see that it is clean first."""
        now = self._now
        if not entry.is_used or now.holders(unit.functions):
            return True
        step = cleaning.step(unit, [now.functions[address] for address in unit.functions])
        self._cleanings.append(step)
        return cleaning.may_succeed(step)

    def _offer(self, unit: Unit, pool: Pool, moves: Iterable[Move]) -> None:
        if pool.resource is None:
            return
        now = self._now
        if now.inventory.platform.iommufd and any(move.changes_driver for move in moves):
            self._say(
                Severity.INFO,
                unit.id,
                "its device nodes have no number before it is bound",
                "the CDI spec follows in the next pass",
            )
            return
        functions = [now.functions[address] for address in unit.functions]
        self.findings.extend(checks.unit(unit.id, functions, now.blueprint.handlers))
        self._offered.append((pool.resource, unit))

    def _offers(self) -> published.Offers:
        """Return what is offered, in the one way that this node gives access to all of it."""
        now = self._now
        offer = offers.choose(now, self._offered, self._unclaimed)
        self.findings.extend(offer.findings)
        return offers.bundled(offer.nodes, self._pools)

    # Order

    def finish(self, virtual_steps: virtuals.Steps) -> Plan:
        """Return the plan: make, withdraw, load, stop, move, clean, publish, clear away, start."""
        now = self._now
        if self._passengers:
            self.findings.extend(checks.platform(now.inventory.platform))
        steps = Steps(now.inventory.files)
        away, findings = quarantine.plan(now)
        self.findings.extend(findings)
        steps.steps.extend(away)
        virtuals.add(steps, virtual_steps)
        for note in self._notes:
            steps.add(note)
        leaving = {
            group.entry.unit
            for group in self._moves
            if group.is_release or any(map(now.changes_vfio, group.moves))
        } | {step.unit for step in self._cleanings}
        withdrawn = steps.withdraw(now.inventory, leaving, self._cdi_directory)
        stops = services.stops(now, self._pools, self._moves)
        prepared = self._prepare(steps, stops)
        numbers = {}
        for move in sorted(self._moves, key=lambda m: (not m.is_release, m.entry.unit)):
            unit = move.entry.unit
            needs = (*(withdrawn if unit in leaving else ()), *prepared.get(unit, ()))
            numbers[unit] = steps.add(replace(move, needs=needs))
        for step in sorted(self._cleanings, key=lambda s: s.unit):
            numbers[step.unit] = steps.add(replace(step, needs=withdrawn))
        wishes, findings = published.wishes(
            now.blueprint, now.inventory, self._offers(), self._passengers, self._cdi_directory
        )
        self.findings.extend(findings)
        settled = set()
        for wish in wishes:
            if not steps.is_so(wish) and self._objects(objections.file(now, wish.path)):
                settled.add(wish.path)
                continue
            if wish.content is not None or wish.stays:
                settled.add(wish.path)
            steps.fulfil(wish, tuple(sorted(numbers[u] for u in wish.units & numbers.keys())))
        stale = (path for path in now.ledger.files if path not in settled)
        steps.clear(stale, "the blueprint asks for it no more")
        back = sorted(numbers[move.entry.unit] for move in self._moves if move.is_release)
        given_back = {move.entry.unit for move in self._moves if move.is_release}
        pools = {unit: pool for unit, pool in self._pools.items() if unit not in given_back}
        starts, findings = services.starts(now, pools, stops, needs=tuple(back))
        self.findings.extend(findings)
        steps.steps.extend(starts)
        again, findings = wiring.restarts(now, steps.steps)
        self.findings.extend(findings)
        steps.steps.extend(again)
        return self._plan(steps)

    def finish_release(self, chosen: frozenset[str] | None) -> Plan:
        """Return the plan of a release: withdraw, move back, and remove all that is left."""
        now = self._now
        steps = Steps(now.inventory.files)
        leaving = {move.entry.unit for move in self._moves}
        withdrawn = steps.withdraw(now.inventory, leaving, self._cdi_directory)
        moved = {
            steps.add(replace(move, needs=withdrawn)): move.entry
            for move in sorted(self._moves, key=lambda m: m.entry.unit)
        }
        family = virtuals.release(now, chosen, leaving)
        self.findings.extend(family.findings)
        virtuals.add(steps, family.steps, virtuals.needs(now, moved))
        is_all = len(self._moves) == len(now.ledger.entries)
        if chosen is None and is_all:  # a unit that stays keeps what its VM was given by
            steps.clear(now.ledger.files, "everything is given back", tuple(moved))
            steps.steps.extend(quarantine.release(now))
        for name in now.ledger.services if is_all else ():
            steps.add(services.start(name, needs=tuple(moved)))
        return self._plan(steps)

    def _prepare(self, steps: Steps, stops: Iterable[StopService]) -> dict[str, tuple[int, ...]]:
        """Add what must be before units move; return the steps that each unit needs of it."""
        loads = (targets.load(name, units) for name, units in sorted(self._loads.items()) if units)
        before: tuple[LoadModule | StopService, ...] = (*loads, *stops)
        needs: dict[str, tuple[int, ...]] = {}
        for step in before:
            number = steps.add(step)
            needs |= {unit: (*needs.get(unit, ()), number) for unit in step.units}
        return needs

    def _plan(self, steps: Steps) -> Plan:
        return Plan(
            blueprint=self._now.blueprint.version,
            steps=tuple(steps.steps),
            findings=tuple(self.findings),
        )

    # Words

    def _objects(self, objection: Finding | None) -> bool:
        """Tell whether there is an objection, and keep it."""
        if objection is not None:
            self.findings.append(objection)
        return objection is not None

    def _say(self, severity: Severity, subject: str, reason: str, remedy: str) -> None:
        self.findings.append(
            Finding(severity=severity, subject=subject, reason=reason, remedy=remedy)
        )
