"""``kata-gpu uninstall``: give everything back, and leave nothing of ours on the node."""

import argparse
from collections.abc import Iterable

from kata_gpu.act import executor
from kata_gpu.agent import node, removal, temporaries, withdrawal
from kata_gpu.agent.withdrawal import Withdrawal
from kata_gpu.cli import configuration, consent, context, output
from kata_gpu.cli import withdrawal as words
from kata_gpu.cli.change import Progress, failed
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.host import Host, locks
from kata_gpu.model.plan import Plan, RemoveFile
from kata_gpu.plan import review
from kata_gpu.plan.runtime import spot
from kata_gpu.settings.agent import Settings


def uninstall(options: argparse.Namespace) -> int:
    """Show what goes, ask, and have it go; refuse all of it while a unit is held."""
    settings = configuration.settings(options)
    host = context.working_host(options, settings.operation_timeout_s)
    ledger = node.open_journal(host, settings).ledger
    found = node.make_release(host, settings, ledger, None)
    left = removal.remains(host, settings, ledger)
    folders = (*ledger.directories, *removal.directories(host, settings))
    told = withdrawal.look(host, settings)
    if not found.steps and not left and not folders and not told.items:
        print("nothing of kata-gpu is on this node")
        words.lament(told)
        return _ended(told)
    _show(found, left, folders)
    words.show(told)
    if found.refusals:
        return _refused()
    if options.dry_run:
        words.lament(told)
        return _ended(told)
    if not consent.agreed("remove kata-gpu from this node?", yes=options.yes):
        return ExitCode.FAILED
    with locks.exclusive(host.path(settings.lock)):
        return carry_out(host, settings)


def carry_out(host: Host, settings: Settings) -> int:
    """Look again, and have everything go; the lock is held by who calls."""
    journal = node.open_journal(host, settings)
    known = journal.ledger
    found = node.make_release(host, settings, known, None)
    if found.refusals:
        _show(found, (), ())
        return _refused()
    told = withdrawal.carry_out(host, settings)  # first: until then the scheduler sends pods here
    words.report(told)
    temporaries.sweep(host, settings, known)  # so that the folders which we made can go
    removal.sweep(host, settings)
    report = executor.execute(host, found, journal, progress=Progress())
    if report.failures:
        return failed(report)
    removal.finish(host, settings, journal, known)
    print("kata-gpu is gone from this node, but for its configuration and its package")
    removed = {step.path for step in found.steps if isinstance(step, RemoveFile)}
    if any(path.rpartition("/")[2] in {spot.NAME, spot.CRIO_NAME} for path in removed):
        print("the container runtime knows our handlers until it is restarted")
    return _ended(told)


def _show(found: Plan, left: Iterable[str], folders: Iterable[str]) -> None:
    print(output.plain(review.text(found)), end="")
    for path in left:
        print(output.printable(f"then remove {path}"))
    for path in sorted(set(folders), reverse=True):  # the deepest first, as they go
        print(output.printable(f"then remove {path}, if it is empty"))


def _ended(told: Withdrawal) -> int:
    return ExitCode.FAILED if told.troubles else ExitCode.OK


def _refused() -> int:
    print("nothing was changed: not all of it can be given back")
    return ExitCode.REFUSED
