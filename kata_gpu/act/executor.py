"""Take a plan's steps in order; the executor makes no choice.

Before a step changes anything the ledger says so; after it, what was reached is read back
and recorded. A step that fails is undone by itself; the steps that need it are skipped, the
others go on. Within a lane the order is strict; lanes know nothing of each other but the
ledger, which takes one change at a time.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import assert_never

from kata_gpu.act import cc_mode, cleaning, foreign_files, moving, owned_files, services, virtuals
from kata_gpu.act.holders import Looks
from kata_gpu.act.journal import Journal
from kata_gpu.errors import HeldError, KataGpuError, VerificationError
from kata_gpu.host import Host, modules
from kata_gpu.model.plan import (
    CleanUnit,
    LoadModule,
    MakeVirtuals,
    MoveFile,
    MoveGroup,
    NoteUse,
    Plan,
    Quarantine,
    ReadMode,
    RemoveFile,
    RemoveVirtuals,
    RestartService,
    StartService,
    Step,
    StopService,
    WriteFile,
)
from kata_gpu.model.report import Outcome, Report, Result

log = logging.getLogger(__name__)

Progress = Callable[[int, Step, Outcome | None], None]
"""Told of each step when it starts (no outcome) and when it ends."""


def execute(
    host: Host, plan: Plan, journal: Journal, *, progress: Progress | None = None
) -> Report:
    """Take every step of *plan* and return how each ended; deliberate errors stay inside.

    Units that follow each other are moved side by side, each in a lane of its own.
    """
    tell = _one_at_a_time(progress or _silent)
    outcomes: dict[int, Outcome] = {}
    looks = Looks(host)

    def take(number: int) -> None:
        step = plan.steps[number - 1]
        tell(number, step, None)
        missing = [n for n in step.needs if outcomes[n].result is not Result.DONE]
        outcome = _skipped(step, missing) if missing else _take(host, step, journal, looks)
        outcomes[number] = outcome
        tell(number, step, outcome)

    numbered = range(1, len(plan.steps) + 1)
    for _, stage in itertools.groupby(numbered, key=lambda n: _stage(plan.steps[n - 1], n)):
        _side_by_side(take, list(stage))
    return Report(outcomes=tuple(outcomes[number] for number in numbered))


def _stage(step: Step, number: int) -> tuple[str, int]:
    """Return what steps that may be taken side by side have in common."""
    match step:
        case MoveGroup():
            return ("release" if step.is_release else "bind", 0)
        case CleanUnit():
            return ("clean", 0)
        case ReadMode():
            return ("read", 0)
        case _:
            return ("alone", number)


def _side_by_side(take: Callable[[int], None], numbers: Sequence[int]) -> None:
    if len(numbers) == 1:
        take(numbers[0])
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - for nodes of many GPUs

    with ThreadPoolExecutor(max_workers=len(numbers), thread_name_prefix="lane") as lanes:
        for end in [lanes.submit(take, number) for number in numbers]:
            end.result()


def _one_at_a_time(progress: Progress) -> Progress:
    """Let lanes that speak at once be heard one after the other."""
    turn = threading.Lock()

    def tell(number: int, step: Step, outcome: Outcome | None) -> None:
        with turn:
            progress(number, step, outcome)

    return tell


def _take(host: Host, step: Step, journal: Journal, looks: Looks) -> Outcome:
    started = time.monotonic()
    result, detail = Result.DONE, None
    try:
        _do(host, step, journal, looks)
    except KataGpuError as error:
        result = Result.HELD if isinstance(error, HeldError) else Result.FAILED
        detail = str(error)
        log.error("failed to %s: %s", step.headline, error)  # noqa: TRY400 - no bug, no trace
    elapsed_s = time.monotonic() - started
    if detail is None:
        log.info("done: %s (%.2f s)", step.headline, elapsed_s)
    return Outcome(
        step=step.headline,
        result=result,
        unit=_unit(step),
        detail=detail,
        elapsed_s=elapsed_s,
        ended_at=datetime.now(UTC),
    )


def _do(host: Host, step: Step, journal: Journal, looks: Looks) -> None:
    match step:
        case LoadModule():
            _load(host, step)
        case StopService() | StartService() | RestartService():
            _switch(host, step, journal)
        case MakeVirtuals() | RemoveVirtuals():
            _change_virtuals(host, step, journal)
        case MoveGroup():
            moving.move(host, step, journal, looks)
        case CleanUnit() | ReadMode():
            _look_after(host, step, journal, looks)
        case WriteFile() | RemoveFile() | MoveFile():
            _change_file(host, step, journal)
        case NoteUse() | Quarantine():
            _note(step, journal)
        case _:
            assert_never(step)


def _look_after(host: Host, step: CleanUnit | ReadMode, journal: Journal, looks: Looks) -> None:
    match step:
        case CleanUnit():
            cleaning.clean(host, step, journal, looks)
        case ReadMode():
            cc_mode.take(host, step, journal, looks)


def _change_virtuals(host: Host, step: MakeVirtuals | RemoveVirtuals, journal: Journal) -> None:
    match step:
        case MakeVirtuals():
            virtuals.make(host, step, journal)
        case RemoveVirtuals():
            virtuals.remove(host, step, journal)


def _change_file(host: Host, step: WriteFile | RemoveFile | MoveFile, journal: Journal) -> None:
    match step:
        case WriteFile():
            owned_files.write(host, step, journal)
        case RemoveFile(path=path):
            owned_files.remove(host, path, journal)
        case MoveFile():
            foreign_files.move(host, step)


def _load(host: Host, step: LoadModule) -> None:
    modules.load(host.run, step.module, root=host.root)
    if not modules.pci_drivers(host.sysfs, step.module):
        raise VerificationError(
            f"cannot use module {step.module}: it loaded, but it registered no PCI driver; "
            f"see the kernel's log"
        )


def _switch(
    host: Host, step: StopService | StartService | RestartService, journal: Journal
) -> None:
    match step:
        case StopService(name=name):
            services.stop(host, name, journal)
        case StartService(name=name):
            services.start(host, name, journal)
        case RestartService(name=name, path=path):
            services.restart(host, name, path, journal)


def _note(step: NoteUse | Quarantine, journal: Journal) -> None:
    match step:
        case NoteUse(unit=unit):
            journal.amend(unit, is_used=True)
        case Quarantine(unit=unit, reason=reason):
            journal.amend(unit, quarantine=reason)


def _skipped(step: Step, missing: list[int]) -> Outcome:
    which = ", ".join(map(str, missing))
    return Outcome(
        step=step.headline,
        result=Result.SKIPPED,
        unit=_unit(step),
        detail=f"it needs step {which}, which was not done",
        elapsed_s=0.0,
        ended_at=datetime.now(UTC),
    )


def _unit(step: Step) -> str | None:
    return step.units[0] if len(step.units) == 1 else None


def _silent(_number: int, _step: Step, _outcome: Outcome | None) -> None:
    """Tell nobody."""
