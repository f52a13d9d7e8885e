"""Take a plan's steps in order; the executor makes no choice.

Before a step changes anything the ledger says so; after it, what was reached is read back
and recorded. A step that fails is undone by itself; the steps that need it are skipped, the
others go on.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kata_gpu.act import binding, holders
from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, KataGpuError, VerificationError
from kata_gpu.host import Host, files, modules
from kata_gpu.model.ledger import Stage
from kata_gpu.model.plan import (
    LoadModule,
    MoveGroup,
    Plan,
    RemoveFile,
    Step,
    WriteFile,
    headline,
)
from kata_gpu.model.report import Outcome, Report, Result

log = logging.getLogger(__name__)

Progress = Callable[[int, Step, Outcome | None], None]
"""Told of each step when it starts (no outcome) and when it ends."""


def execute(
    host: Host, plan: Plan, journal: Journal, *, progress: Progress | None = None
) -> Report:
    """Take every step of *plan* and return how each ended; deliberate errors stay inside."""
    tell = progress or _silent
    outcomes: list[Outcome] = []
    for number, step in enumerate(plan.steps, 1):
        tell(number, step, None)
        missing = [n for n in step.needs if outcomes[n - 1].result is not Result.DONE]
        outcome = _skipped(step, missing) if missing else _take(host, step, journal)
        outcomes.append(outcome)
        tell(number, step, outcome)
    return Report(outcomes=tuple(outcomes))


def _take(host: Host, step: Step, journal: Journal) -> Outcome:
    started = time.monotonic()
    detail = None
    try:
        _do(host, step, journal)
    except KataGpuError as error:
        detail = str(error)
        log.error("failed to %s: %s", headline(step), error)  # noqa: TRY400 - no bug, no trace
    elapsed_s = time.monotonic() - started
    if detail is None:
        log.info("done: %s (%.2f s)", headline(step), elapsed_s)
    return Outcome(
        step=headline(step),
        result=Result.DONE if detail is None else Result.FAILED,
        unit=_unit(step),
        detail=detail,
        elapsed_s=elapsed_s,
    )


def _do(host: Host, step: Step, journal: Journal) -> None:
    match step:
        case LoadModule(module=module):
            modules.load(host.run, module, root=host.root)
            if not modules.pci_drivers(host.sysfs, module):
                raise VerificationError(
                    f"cannot use module {module}: it loaded, but it registered no PCI driver; "
                    f"see the kernel's log"
                )
        case MoveGroup():
            _move(host, step, journal)
        case WriteFile(path=path, content=content, staging=staging):
            journal.save(journal.ledger.with_file(path))
            files.replace(host.path(path), content, staging=host.path(staging))
            if files.read(host.path(path)) != content:
                raise VerificationError(f"cannot write {path}: it reads back otherwise")
        case RemoveFile(path=path):
            files.remove(host.path(path))
            journal.save(journal.ledger.without_file(path))


def _move(host: Host, step: MoveGroup, journal: Journal) -> None:
    """Announce, move, verify, record."""
    unit = step.entry.unit
    changing = [m.address for m in step.moves if m.before.driver != m.target.driver]
    holders.refuse_if_held(host, changing)
    before = journal.ledger
    journal.save(before.with_entry(step.entry))
    targets = {move.address: move.target for move in step.moves}
    try:
        binding.rebind(host.sysfs, targets)
    except (HostError, VerificationError):  # everything is where it was; a rollback is not
        journal.save(before)
        raise
    if step.is_release:
        journal.save(journal.ledger.without_entry(unit))
        return
    if step.group is not None:
        _require_node(host.path(f"/dev/vfio/{step.group}"), unit)
    journal.save(journal.ledger.with_entry(replace(step.entry, stage=Stage.BOUND)))


def _require_node(node: Path, unit: str) -> None:
    if not node.exists():
        raise VerificationError(
            f"cannot offer unit {unit}: it is bound, but {node} is not there; "
            f"mount the host's /dev/vfio into the agent"
        )


def _skipped(step: Step, missing: list[int]) -> Outcome:
    which = ", ".join(map(str, missing))
    return Outcome(
        step=headline(step),
        result=Result.SKIPPED,
        unit=_unit(step),
        detail=f"it needs step {which}, which was not done",
        elapsed_s=0.0,
    )


def _unit(step: Step) -> str | None:
    return step.entry.unit if isinstance(step, MoveGroup) else None


def _silent(_number: int, _step: Step, _outcome: Outcome | None) -> None:
    """Tell nobody."""
