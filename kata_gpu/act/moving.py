"""Move a unit between its host drivers and VFIO, and keep the ledger ahead of it."""

from dataclasses import replace
from pathlib import Path

from kata_gpu.act import binding
from kata_gpu.act.holders import Looks
from kata_gpu.act.journal import Journal
from kata_gpu.errors import HeldError, HostError, VerificationError
from kata_gpu.host import Host
from kata_gpu.model.ledger import Stage
from kata_gpu.model.plan import MoveGroup


def move(host: Host, step: MoveGroup, journal: Journal, looks: Looks) -> None:
    """Announce, move, verify, record.

    Raises:
        HeldError: somebody uses a function; HostError or VerificationError: the kernel would
            not. Everything is where it was, in the ledger too.
        RollbackError: a function is in between. StuckError: a store does not return. The
            ledger still says what was begun.
    """
    unit = step.entry.unit
    changing = [found.address for found in step.moves if found.changes_driver]

    def refuse_if_held() -> None:
        looks.refuse_if_held(changing)

    refuse_if_held()
    before = journal.ledger.entry(unit)
    journal.update(lambda ledger: ledger.with_entry(step.entry))
    targets = {found.address: found.target for found in step.moves}
    try:
        binding.rebind(host.sysfs, targets, refuse_if_held)
    except (HeldError, HostError, VerificationError):
        journal.update(
            lambda ledger: ledger.with_entry(before) if before else ledger.without_entry(unit)
        )
        raise
    if step.is_release:
        journal.update(lambda ledger: ledger.without_entry(unit))
        return
    for group in step.groups:
        _require_node(host.path(f"/dev/vfio/{group}"), unit)
    journal.update(lambda ledger: ledger.with_entry(replace(step.entry, stage=Stage.BOUND)))


def _require_node(node: Path, unit: str) -> None:
    if not node.exists():
        raise VerificationError(
            f"cannot offer unit {unit}: it is bound, but {node} is not there; "
            f"mount the host's /dev/vfio into the agent"
        )
