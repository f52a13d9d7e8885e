"""Why a unit is not touched now, though the blueprint asks for it: one finding for each reason.

No step is planned for a unit with an objection; what it is offered as stays as it is.
"""

from collections.abc import Collection, Iterable, Sequence

from kata_gpu.model.blueprint import Pool
from kata_gpu.model.ledger import LedgerEntry
from kata_gpu.model.pci import PciAddress, PhysicalFunction
from kata_gpu.model.plan import Finding, Move, Severity, virtual_functions
from kata_gpu.model.unit import Unit, UnitState
from kata_gpu.plan.situation import Situation


def stuck(now: Situation, unit: str, addresses: Iterable[PciAddress]) -> Finding | None:
    """Object if an operation on the unit hangs in the kernel."""
    operation = now.hung(addresses)
    if operation is None:
        return None
    return refusal(
        unit,
        f"{operation}; nothing is written to its group until that ends",
        "end what uses the device; if nothing does, only a power cycle helps, for a reboot "
        "will hang too",
        state=UnitState.STUCK,
    )


def failed(now: Situation, unit: str) -> Finding | None:
    """Object if it was tried in vain not long ago."""
    setback = now.failed.get(unit)
    if setback is None:
        return None
    match setback.state:
        case UnitState.WAITING:
            return waiting(unit, setback.reason, "end what uses it, or wait until that ends")
        case UnitState.CONTESTED:
            remedy = "find that program and stop it; it is left alone for a while"
        case _:
            remedy = "it is tried again later"
    return refusal(unit, setback.reason, remedy, state=setback.state)


def drifted(now: Situation, unit: str, moves: Sequence[Move]) -> Finding | None:
    """Object to repairing what the blueprint only wants reported."""
    if not moves or unit not in now.kept.units:
        return None
    what = "; ".join(f"{move.address} has {move.before}" for move in moves)
    return refusal(
        unit,
        f"somebody changed it since it was put in order: {what}",
        'kata-gpu apply repairs it, and so would drift = "repair"',
        state=UnitState.DRIFTED,
    )


def held(
    now: Situation, unit: str, moves: Sequence[Move], *, stopped: Collection[str] = ()
) -> Finding | None:
    """Object to taking a driver away from a function that somebody has.

    Processes of services that are *stopped* before are nobody.
    """
    if not any(move.changes_driver for move in moves):
        return None
    found = now.holders(move.address for move in moves)
    holders = [holder for holder in found if holder.service not in stopped]
    if not holders:
        return None
    who = "; ".join(map(str, holders))
    return waiting(unit, f"it is in use: {who}", "it is moved when they are gone")


def file(now: Situation, path: str) -> Finding | None:
    """Object to writing a file that somebody else keeps changing, or that is only watched."""
    setback = now.failed.get(path)
    if setback is not None:
        remedy = (
            "mend that, then have the blueprint read again (SIGHUP)"
            if setback.is_final
            else "find that program and stop it"
        )
        return refusal(path, setback.reason, remedy, state=setback.state)
    left = now.kept.files.get(path)
    if left is None or left == now.inventory.content(path):
        return None
    return refusal(
        path,
        "somebody changed it since it was written",
        'kata-gpu apply writes it anew, and so would drift = "repair"',
        state=UnitState.DRIFTED,
    )


def with_virtuals(now: Situation, unit: str, moves: Iterable[Move]) -> Finding | None:
    """Object to taking the driver of a physical function from under its virtual ones."""
    for move in moves:
        role = now.functions[move.address].sriov
        if move.changes_driver and isinstance(role, PhysicalFunction) and role.active_vfs:
            return refusal(
                unit,
                f"{move.address} has {virtual_functions(role.active_vfs)}, which would be lost "
                f"with its driver, or could not be removed any more",
                f"remove them first (echo 0 > /sys/bus/pci/devices/{move.address}/sriov_numvfs)",
            )
    return None


def to_passing(
    now: Situation, unit: Unit, pool: Pool, entry: LedgerEntry | None
) -> tuple[Finding, ...]:
    """Object to passing a unit through, whether it is done now or not before a claim comes."""
    found = not_ours(now, unit, pool) if entry is None else changed(now, unit, entry)
    return blocked(unit, pool) or ((found,) if found else ())


def blocked(unit: Unit, pool: Pool) -> tuple[Finding, ...]:
    """Object for everything that keeps its groups from being given to a guest."""
    found = []
    for blocker in unit.verdict.blockers:
        is_mate = blocker.address not in {None, unit.primary}
        mate = f"{blocker.address} shares its group: " if is_mate else ""
        reason = f"pool {pool.name} passes it through, but {mate}{blocker.reason}"
        found.append(refusal(unit.id, reason, blocker.remedy))
    return tuple(found)


def changed(now: Situation, unit: Unit, entry: LedgerEntry) -> Finding | None:
    """Object if what is ours is not made of the functions that were bound."""
    known = {function.address for function in entry.functions}
    if known == set(unit.functions) and all(map(now.is_same, entry.functions)):
        return None
    return refusal(
        unit.id,
        "its IOMMU group has other functions than when it was bound",
        f"kata-gpu release {unit.id}, then apply again",
    )


def not_ours(now: Situation, unit: Unit, pool: Pool) -> Finding | None:
    """Object to taking what belongs to another unit, or came to VFIO by somebody else's hand."""
    owners = [now.ledger.owner(address) for address in unit.functions]
    owner = next((entry for entry in owners if entry is not None), None)
    if owner is not None:
        return refusal(
            unit.id,
            f"a function of it is ours as part of unit {owner.unit}",
            f"kata-gpu release {owner.unit}, then apply again",
        )
    is_adopted = any(selector.address == unit.primary for selector in pool.selectors)
    if is_adopted or not any(map(now.is_on_vfio, unit.functions)):
        return None
    return refusal(
        unit.id,
        "it is on VFIO already and this agent did not put it there, so its original driver is "
        "unknown",
        f'select it by address = "{unit.id}" to adopt it as it is',
        state=UnitState.FOREIGN,
    )


def quarantined(entry: LedgerEntry) -> Finding | None:
    """Object to giving out what could not be cleaned after its last user."""
    if entry.quarantine is None:
        return None
    return refusal(
        entry.unit,
        f"it could not be cleaned after its last user: {entry.quarantine}",
        f"kata-gpu clear {entry.unit}, once you know that nothing of its last user is left",
        state=UnitState.QUARANTINED,
    )


def gone(unit: str) -> Finding:
    """Say that what is ours is not there."""
    return Finding(
        severity=Severity.WARNING,
        subject=unit,
        reason="it is ours, and its functions are gone from the bus",
        remedy=f"plug it in again, or forget it with kata-gpu release {unit}",
    )


def unselected(unit: str) -> Finding:
    """Say that nobody asks for what is ours."""
    return Finding(
        severity=Severity.INFO,
        subject=unit,
        reason="it is ours, but no pool selects it any more, so it is left alone",
        remedy=f"kata-gpu release {unit} gives it back",
    )


def ignored(entry: LedgerEntry, pool: Pool) -> Finding:
    """Say that what is ours is of a pool that leaves it alone."""
    return Finding(
        severity=Severity.INFO,
        subject=entry.unit,
        reason=f"it is ours, but pool {pool.name} ignores it, so it is left alone",
        remedy=f"kata-gpu release {entry.unit} gives it back",
    )


def taken_by_another(unit: Unit, pool: Pool) -> Finding:
    """Object to giving back what somebody else took: nobody knows from which driver."""
    return refusal(
        unit.id,
        f"pool {pool.name} wants it on its host driver, but it is on VFIO and this "
        f"agent did not put it there, so that driver is unknown",
        "give it back with the tool that took it",
    )


def unread(now: Situation, entry: LedgerEntry) -> Finding | None:
    """Object to forgetting where a function came from that is there and cannot be read."""
    there = {str(f.address) for f in entry.functions if f.address not in now.functions}
    for problem in now.inventory.problems:
        if problem.subject in there:
            return refusal(
                entry.unit,
                f"{problem.reason}; it is ours, and left as it is until it can be read",
                "see the kernel's log; if the device is lost, take it off the bus",
            )
    return None


def exchanged(now: Situation, entry: LedgerEntry) -> Finding | None:
    """Object to giving back another card than the one that was taken."""
    for function in reversed(entry.functions):
        found = now.functions.get(function.address)
        if found is None or now.is_same(function):
            continue
        if found.is_on_vfio or found.binding.override is not None:  # else the host has it already
            return refusal(
                entry.unit,
                f"{found.address} is now {found.label}, not the function that was bound",
                "the card was exchanged: put it back, or rebind by hand",
            )
    return None


def refusal(
    subject: str, reason: str, remedy: str, *, state: UnitState = UnitState.REFUSED
) -> Finding:
    """Say that something the blueprint asks for is not done."""
    return Finding(
        severity=Severity.REFUSED, subject=subject, reason=reason, remedy=remedy, state=state
    )


def waiting(unit: str, reason: str, remedy: str) -> Finding:
    """Say that it is done as soon as somebody lets go."""
    return Finding(
        severity=Severity.WAITING,
        subject=unit,
        reason=reason,
        remedy=remedy,
        state=UnitState.WAITING,
    )
