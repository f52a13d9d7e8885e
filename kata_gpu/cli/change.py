"""``kata-gpu plan``, ``apply`` and ``release``: see the steps, then take them."""

import argparse
import sys
from typing import Any

from kata_gpu.act import executor
from kata_gpu.agent import asking, node, withdrawal
from kata_gpu.agent.withdrawal import NOTHING, Withdrawal
from kata_gpu.cli import configuration, consent, context, output
from kata_gpu.cli import withdrawal as words
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import HostError
from kata_gpu.host import locks
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.plan import Plan, Step
from kata_gpu.model.report import Outcome, Report, Result
from kata_gpu.observe.document import document
from kata_gpu.plan import review


def plan(options: argparse.Namespace) -> int:
    """Print the plan; exit 0 for an empty one, 2 for one with steps."""
    host, settings = context.host(options), configuration.settings(options)
    wanted = configuration.blueprint(options, settings)
    ledger = node.open_journal(host, settings).ledger
    inventory, found = node.make_plan(host, settings, wanted, ledger)
    if options.output in {"json", "yaml"}:
        body = {
            **document(found),
            "steps": [_step(step) for step in found.steps],
            "problems": document(inventory.problems),
        }
        print(output.dump(body, options.output))
    else:
        print(output.plain(review.text(found)), end="")
        for problem in inventory.problems:
            print(output.printable(f"problem: {problem.subject}: {problem.reason}"))
    return _verdict(found)


def _step(step: Step) -> dict[str, Any]:
    return {"kind": type(step).__name__, "headline": step.headline, **document(step)}


def apply(options: argparse.Namespace) -> int:
    """Take the plan's steps, after asking."""
    settings = configuration.settings(options)
    host = context.working_host(options, settings.operation_timeout_s)
    wanted = configuration.blueprint(options, settings)
    ledger = node.open_journal(host, settings).ledger
    _, found = node.make_plan(host, settings, wanted, ledger)
    if options.dry_run or not found.steps:
        print(output.plain(review.text(found)), end="")
        return _verdict(found)
    if not _agreed(found, options):
        return ExitCode.FAILED
    with locks.exclusive(host.path(settings.lock)):
        journal = node.open_journal(host, settings)
        asking.settle(host, settings)
        turn = node.converge(host, settings, wanted, journal, progress=Progress())
    if turn.report.failures:
        return failed(turn.report)
    return ExitCode.REFUSED if turn.plan.refusals else ExitCode.OK


def release(options: argparse.Namespace) -> int:
    """Give units back, after asking."""
    settings = configuration.settings(options)
    host = context.working_host(options, settings.operation_timeout_s)
    if options.all == bool(options.unit):
        print("kata-gpu: cannot release: name units, or say --all", file=sys.stderr)
        return ExitCode.USAGE
    chosen = None if options.all else frozenset(map(_unit, options.unit))
    ledger = node.open_journal(host, settings).ledger
    found = node.make_release(host, settings, ledger, chosen)
    told = withdrawal.look(host, settings) if options.all else NOTHING
    if options.dry_run or not (found.steps or told.items):
        print(output.plain(review.text(found)), end="")
        words.show(told)
        words.lament(told)
        return _released(found, told)
    if not _agreed(found, options, told):
        return ExitCode.FAILED
    with locks.exclusive(host.path(settings.lock)):
        journal = node.open_journal(host, settings)
        if options.all:  # first: until then the scheduler sends pods here
            told = withdrawal.carry_out(host, settings)
            words.report(told)
        found = node.make_release(host, settings, journal.ledger, chosen)
        report = executor.execute(host, found, journal, progress=Progress())
    if report.failures:
        return failed(report)
    return _released(found, told)


def _released(found: Plan, told: Withdrawal) -> int:
    if told.troubles:
        return ExitCode.FAILED
    return ExitCode.REFUSED if found.refusals else ExitCode.OK


def _unit(name: str) -> str:
    try:
        return str(PciAddress.parse(name))
    except ValueError as error:
        raise HostError(f"cannot release {name!r}: {error}") from error


def _agreed(found: Plan, options: argparse.Namespace, told: Withdrawal = NOTHING) -> bool:
    """Print the plan and what Kubernetes was told, and ask unless --yes was given."""
    print(output.plain(review.text(found)), end="")
    words.show(told)
    sys.stdout.flush()
    count = len(found.steps) + len(told.items)
    return consent.agreed(f"take {count} steps?", yes=options.yes)


class Progress:
    """Prints each step when it ends, and on a terminal what runs meanwhile, in one last line."""

    def __init__(self) -> None:
        self._running: dict[int, str] = {}
        self._is_live = sys.stdout.isatty()

    def __call__(self, number: int, step: Step, outcome: Outcome | None) -> None:
        """Be told of a step that starts (no outcome) or has ended."""
        if outcome is None:
            self._running[number] = step.headline
        else:
            del self._running[number]
            self._clear()
            print(self._line(number, outcome), flush=True)
        if self._is_live and self._running:
            self._clear()
            first, *others = self._running.values()
            more = f", and {len(others)} more" if others else ""
            print(output.clipped(f"  …  {first}{more}"), end="", flush=True)

    def _clear(self) -> None:
        if self._is_live:
            print("\r\033[K", end="")

    @staticmethod
    def _line(number: int, outcome: Outcome) -> str:
        word = output.coloured(
            outcome.result.value, "good" if outcome.result is Result.DONE else "bad"
        )
        detail = f": {outcome.detail}" if outcome.detail else ""
        told = output.printable(f"{outcome.step}{detail}")
        return f"{number:3}  {word}  {told} ({outcome.elapsed_s:.2f} s)"


def failed(report: Report) -> int:
    """Say what failed first, and return the status for it."""
    count = len(report.failures)
    first = report.failures[0]
    print(
        f"kata-gpu: {count} step{'s' if count != 1 else ''} failed, first: "
        f"{first.step}: {first.detail}",
        file=sys.stderr,
    )
    return ExitCode.FAILED


def _verdict(found: Plan) -> int:
    if found.steps:
        return ExitCode.CHANGES
    return ExitCode.REFUSED if found.refusals else ExitCode.OK
