"""The difference between what is and what should be, as steps in a safe order.

What always holds:

- a device leaves the CDI spec before its driver is taken, and enters it after the last of
  its functions is bound;
- originals are what the ledger says; a function that is on VFIO and not in the ledger came
  there by somebody else's hand and is left alone, unless a pool names its address;
- a node in order has an empty plan;
- what is refused is a finding, and no step touches it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import PciAddress, PciFunction
from kata_gpu.model.plan import (
    Finding,
    Move,
    MoveGroup,
    Plan,
    Severity,
)
from kata_gpu.model.unit import Unit
from kata_gpu.plan import cdi, checks, published, targets, units
from kata_gpu.plan.published import Steps


def plan(
    blueprint: Blueprint,
    inventory: Inventory,
    ledger: Ledger,
    *,
    cdi_directory: str,
    failed: Mapping[str, str] | None = None,
) -> Plan:
    """Return every step from *inventory* to *blueprint*.

    *failed* names units that are not to be tried now, with the reason.
    """
    formed = units.form(blueprint, inventory, ledger)
    draft = _Draft(blueprint, inventory, ledger, cdi_directory)
    draft.findings.extend(formed.findings)
    for unit in formed.units:
        if draft.note_stuck(unit.id, unit.functions):
            continue
        draft.consider(
            unit,
            failure=(failed or {}).get(unit.id),
            may_move=unit.pool not in formed.refused_pools,
        )
    draft.consider_orphans({unit.id for unit in formed.units}, failed or {})
    draft.consider_platform()
    return draft.finish()


def release(
    inventory: Inventory,
    ledger: Ledger,
    *,
    cdi_directory: str,
    chosen: frozenset[str] | None = None,
) -> Plan:
    """Return every step that gives units back; all of them, and all files, with None.

    It needs no blueprint: the ledger and our own files say what is ours.
    """
    draft = _Draft(Blueprint(version="(release)"), inventory, ledger, cdi_directory)
    for entry in ledger.entries:
        if chosen is None or entry.unit in chosen:
            draft.release(entry, "it was asked for")
    return draft.finish_release(everything=chosen is None)


class _Draft:
    """Steps as they are found, by phase; ``finish`` puts them in order."""

    def __init__(
        self, blueprint: Blueprint, inventory: Inventory, ledger: Ledger, cdi_directory: str
    ) -> None:
        self.findings: list[Finding] = []
        self._blueprint = blueprint
        self._inventory = inventory
        self._ledger = ledger
        self._cdi_directory = cdi_directory
        self._functions = inventory.by_address()
        self._best = {driver.address: driver for driver in inventory.vfio_drivers}
        self._loads: dict[str, list[str]] = {}
        self._moves: list[MoveGroup] = []
        self._offers: dict[str, dict[str, tuple[str, ...]]] = {}
        self._passengers = 0

    # What becomes of each unit

    def consider(self, unit: Unit, *, failure: str | None, may_move: bool) -> None:
        """Add what *unit* needs, or why it gets nothing; what is in order stays either way."""
        pool = next(pool for pool in self._blueprint.pools if pool.name == unit.pool)
        entry = self._ledger.entry(unit.id)
        match pool.mode:
            case Mode.IGNORE:
                if entry is not None:
                    self._note(
                        Severity.INFO,
                        unit.id,
                        f"it is ours, but pool {pool.name} ignores it, so it is left alone",
                        f"kata-gpu release {unit.id} gives it back",
                    )
            case Mode.HOST if failure is not None and entry is not None:
                self._note_failed(unit.id, failure)
            case Mode.HOST:
                self._consider_host(unit, pool, entry)
            case Mode.PASSTHROUGH if failure is not None:
                self._note_failed(unit.id, failure)
            case Mode.PASSTHROUGH:
                self._passengers += len(unit.functions)
                if (may_move or self._is_settled(unit)) and self._may_pass(unit, pool, entry):
                    self._pass_through(unit, pool, entry)

    def consider_orphans(self, known: set[str], failed: Mapping[str, str]) -> None:
        """Finish releases that were begun, and name units that no pool wants any more."""
        for entry in self._ledger.entries:
            if entry.unit in known:
                continue
            if self.note_stuck(entry.unit, (f.address for f in entry.functions)):
                continue
            if not any(f.address in self._functions for f in entry.functions):
                self._note(
                    Severity.WARNING,
                    entry.unit,
                    "it is ours, and its functions are gone from the bus",
                    f"plug it in again, or forget it with kata-gpu release {entry.unit}",
                )
            elif entry.stage is Stage.RELEASING and entry.unit in failed:
                self._note_failed(entry.unit, failed[entry.unit])
            elif entry.stage is Stage.RELEASING:
                self.release(entry, "a release was begun and not finished")
            else:
                self._note(
                    Severity.INFO,
                    entry.unit,
                    "it is ours, but no pool selects it any more, so it is left alone",
                    f"kata-gpu release {entry.unit} gives it back",
                )

    def consider_platform(self) -> None:
        """Warn of what the host allows and should not."""
        if self._passengers and self._inventory.platform.unsafe_interrupts:
            self._note(
                Severity.WARNING,
                "node",
                "vfio_iommu_type1.allow_unsafe_interrupts is set, so a guest may send the host "
                "interrupts of its own making",
                "unset it; a node that needs it cannot isolate its guests",
            )

    def release(self, entry: LedgerEntry, reason: str) -> None:
        """Add the way back to the original drivers, last function first."""
        if self.note_stuck(entry.unit, (f.address for f in entry.functions)):
            return
        moves = []
        for function in reversed(entry.functions):
            now = self._functions.get(function.address)
            if now is None:
                continue
            if not self._is_same(function):
                if now.binding.override is None and not self._is_on_vfio(now.address):
                    continue  # the host has the new card already: there is nothing to give back
                self._note(
                    Severity.REFUSED,
                    entry.unit,
                    f"{function.address} is now {now.label}, not the function that was bound",
                    "the card was exchanged: put it back, or rebind by hand",
                )
                return
            if now.binding != function.original:
                moves.append(
                    Move(address=now.address, before=now.binding, target=function.original)
                )
        self._moves.append(
            MoveGroup(
                entry=replace(entry, stage=Stage.RELEASING),
                groups=self._groups_of(entry),
                moves=tuple(moves),
                reason=reason,
            )
        )

    def _consider_host(self, unit: Unit, pool: Pool, entry: LedgerEntry | None) -> None:
        if entry is not None:
            self.release(entry, f"pool {pool.name} wants it on its host driver")
        elif any(map(self._is_on_vfio, unit.functions)):
            self._note(
                Severity.REFUSED,
                unit.id,
                f"pool {pool.name} wants it on its host driver, but it is on VFIO and this agent "
                f"did not put it there, so that driver is unknown",
                "give it back with the tool that took it",
            )

    def _may_pass(self, unit: Unit, pool: Pool, entry: LedgerEntry | None) -> bool:
        for blocker in unit.verdict.blockers:
            is_mate = blocker.address not in {None, unit.primary}
            mate = f"{blocker.address} shares its group: " if is_mate else ""
            reason = f"pool {pool.name} passes it through, but {mate}{blocker.reason}"
            self._note(Severity.REFUSED, unit.id, reason, blocker.remedy)
        if unit.verdict.blockers:
            return False
        if entry is None:
            return self._may_take(unit, pool)
        known = {function.address for function in entry.functions}
        if known != set(unit.functions) or not all(map(self._is_same, entry.functions)):
            self._note(
                Severity.REFUSED,
                unit.id,
                "its IOMMU group has other functions than when it was bound",
                f"kata-gpu release {unit.id}, then apply again",
            )
            return False
        return True

    def _may_take(self, unit: Unit, pool: Pool) -> bool:
        """Tell whether a unit that is not ours may become so; note why not."""
        owners = [self._ledger.owner(address) for address in unit.functions]
        owner = next((entry for entry in owners if entry is not None), None)
        if owner is not None:
            self._note(
                Severity.REFUSED,
                unit.id,
                f"a function of it is ours as part of unit {owner.unit}",
                f"kata-gpu release {owner.unit}, then apply again",
            )
            return False
        is_adopted = any(selector.address == unit.primary for selector in pool.selectors)
        if any(map(self._is_on_vfio, unit.functions)) and not is_adopted:
            self._note(
                Severity.REFUSED,
                unit.id,
                "it is on VFIO already and this agent did not put it there, so its original "
                "driver is unknown",
                f'select it by address = "{unit.id}" to adopt it as it is',
            )
            return False
        return True

    def _pass_through(self, unit: Unit, pool: Pool, entry: LedgerEntry | None) -> None:
        functions = [self._functions[address] for address in unit.functions]
        for module in targets.missing_modules(functions, self._best):
            self._loads.setdefault(module, []).append(unit.id)
        moves = targets.moves(functions, self._best)
        if moves is None:
            self._note(
                Severity.INFO,
                unit.id,
                "what the driver made for it is called shows only once its module is loaded",
                "it is bound in the next pass",
            )
            return
        if not self._is_settled(unit):
            self._moves.append(
                MoveGroup(
                    entry=_binding_entry(unit, functions, entry),
                    groups=unit.groups,
                    moves=moves,
                    reason=f"pool {pool.name} passes it through",
                )
            )
        if pool.resource is None:
            return
        is_unnumbered = any(move.before.driver != move.target.driver for move in moves)
        if self._inventory.platform.iommufd and is_unnumbered:
            self._note(
                Severity.INFO,
                unit.id,
                "its device nodes have no number before it is bound",
                "the CDI spec follows in the next pass",
            )
            return
        self.findings.extend(checks.unit(unit.id, functions, self._blueprint.handlers))
        nodes = cdi.nodes(unit, functions, self._inventory.platform)
        self._offers.setdefault(pool.resource, {})[unit.id] = nodes

    # Order

    def finish(self) -> Plan:
        """Return the plan: withdraw, load, move, publish, clean up."""
        steps = Steps(self._inventory.files)
        leaving = {
            group.entry.unit
            for group in self._moves
            if group.is_release or any(map(self._changes_vfio, group.moves))
        }
        withdrawn = self._withdraw(steps, leaving)
        loads = self._load(steps)
        numbers = {}
        for move in sorted(self._moves, key=lambda m: (not m.is_release, m.entry.unit)):
            unit = move.entry.unit
            needs = (*(withdrawn if unit in leaving else ()), *loads.get(unit, ()))
            numbers[unit] = steps.add(replace(move, needs=needs))
        wishes, findings = published.wishes(
            self._blueprint, self._inventory, self._offers, self._passengers, self._cdi_directory
        )
        self.findings.extend(findings)
        for wish in wishes:
            steps.fulfil(wish, tuple(sorted(numbers[u] for u in wish.units & numbers.keys())))
        wanted = {wish.path for wish in wishes}
        stale = (path for path in self._ledger.files if path not in wanted)
        steps.clear(stale, "the blueprint asks for it no more")
        return self._plan(steps)

    def finish_release(self, *, everything: bool) -> Plan:
        """Return the plan of a release: withdraw, move back, and remove all that is left."""
        steps = Steps(self._inventory.files)
        withdrawn = self._withdraw(steps, {move.entry.unit for move in self._moves})
        moved = tuple(
            steps.add(replace(move, needs=withdrawn))
            for move in sorted(self._moves, key=lambda m: m.entry.unit)
        )
        if everything:  # a unit that stays, for somebody holds it, keeps what its VM was given by
            steps.clear(self._ledger.files, "everything is given back", moved)
        return self._plan(steps)

    def _withdraw(self, steps: Steps, leaving: set[str]) -> tuple[int, ...]:
        if leaving:
            for wish in published.withdrawals(self._inventory, leaving, self._cdi_directory):
                steps.fulfil(wish, ())
        return tuple(range(1, len(steps.steps) + 1))

    def _plan(self, steps: Steps) -> Plan:
        return Plan(
            blueprint=self._blueprint.version,
            steps=tuple(steps.steps),
            findings=tuple(self.findings),
        )

    def _load(self, steps: Steps) -> dict[str, tuple[int, ...]]:
        """Add the modules that are missing; return the steps that each unit needs of them."""
        needs: dict[str, tuple[int, ...]] = {}
        for module, waiting in sorted(self._loads.items()):
            number = steps.add(targets.load(module, waiting))
            needs |= {unit: (*needs.get(unit, ()), number) for unit in waiting}
        return needs

    # Small questions

    def _groups_of(self, entry: LedgerEntry) -> tuple[int, ...]:
        now = (self._functions.get(function.address) for function in entry.functions)
        return tuple(sorted({f.iommu_group for f in now if f and f.iommu_group is not None}))

    def _is_same(self, function: OriginalFunction) -> bool:
        """Tell whether what the ledger knows is what sits there now, as far as both can tell."""
        now = self._functions[function.address]
        return (function.vendor, function.device) == (now.vendor, now.identity.device) and all(
            None in pair or pair[0] == pair[1]
            for pair in ((function.slot, now.slot), (function.serial, now.serial))
        )

    def _is_on_vfio(self, address: PciAddress) -> bool:
        return self._functions[address].is_on_vfio

    def _changes_vfio(self, move: Move) -> bool:
        """Whether a function goes from one VFIO driver to another, maybe from under a CDI name."""
        return self._is_on_vfio(move.address) and move.before.driver != move.target.driver

    def _is_settled(self, unit: Unit) -> bool:
        entry = self._ledger.entry(unit.id)
        return (
            entry is not None
            and entry.stage is Stage.BOUND
            and targets.moves((self._functions[a] for a in unit.functions), self._best) == ()
        )

    def note_stuck(self, unit: str, addresses: Iterable[PciAddress]) -> bool:
        """Tell whether an operation on the unit hangs, in which case nothing else may follow."""
        hung = {operation.address: operation for operation in self._inventory.operations}
        found = next((hung[address] for address in addresses if address in hung), None)
        if found is None:
            return False
        self._note(
            Severity.REFUSED,
            unit,
            f"it is stuck: {found}; nothing is written to its group until that ends",
            "end what uses the device; if nothing does, only a power cycle helps, for a reboot "
            "will hang too",
        )
        return True

    def _note_failed(self, unit: str, failure: str) -> None:
        self._note(Severity.REFUSED, unit, failure, "it is tried again later")

    def _note(self, severity: Severity, subject: str, reason: str, remedy: str) -> None:
        self.findings.append(
            Finding(severity=severity, subject=subject, reason=reason, remedy=remedy)
        )


def _binding_entry(
    unit: Unit, functions: Iterable[PciFunction], entry: LedgerEntry | None
) -> LedgerEntry:
    """Return what the ledger must say before the unit is touched; originals never change."""
    known = entry.functions if entry else None
    return LedgerEntry(
        unit=unit.id,
        stage=Stage.BINDING,
        functions=known
        or tuple(
            OriginalFunction(
                address=function.address,
                vendor=function.vendor,
                device=function.identity.device,
                original=function.binding,
                slot=function.slot,
                serial=function.serial,
            )
            for function in functions
        ),
    )
