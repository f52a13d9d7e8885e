"""``kata-gpu clear``: take units out of quarantine, on an admin's word that they are clean."""

import argparse
from collections.abc import Iterable

from kata_gpu.act.journal import Journal
from kata_gpu.agent import node
from kata_gpu.cli import configuration, consent, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import HostError, UnservedError
from kata_gpu.host import Host, locks
from kata_gpu.model.ledger import Ledger, LedgerEntry
from kata_gpu.observe import client
from kata_gpu.settings.agent import Settings

_ANSWER_TIMEOUT_S = 60.0
"""The agent answers when the turn that it is in has ended."""


def clear(options: argparse.Namespace) -> int:
    """Show what is known against each unit, ask, and clear them one by one."""
    host, settings = context.host(options), configuration.settings(options)
    units = [str(address) for address in dict.fromkeys(options.unit)]
    ledger = Journal(host.path(settings.ledger)).ledger
    for entry in _quarantined(ledger, units):
        print("\n".join(map(output.printable, _evidence(entry))), flush=True)
    count = f"{len(units)} unit{'' if len(units) == 1 else 's'}"
    if not consent.agreed(f"clear {count}, whatever its last user left in it?", yes=options.yes):
        return ExitCode.FAILED
    for unit in units:
        print(output.printable(_clear(host, settings, unit)), flush=True)
    return ExitCode.OK


def _quarantined(ledger: Ledger, units: Iterable[str]) -> list[LedgerEntry]:
    """Return the entries of *units*; HostError if there is one that is not in quarantine."""
    kept = {entry.unit: entry for entry in ledger.entries if entry.quarantine is not None}
    strangers = [unit for unit in units if unit not in kept]
    if strangers:
        raise HostError(
            f"cannot clear {', '.join(strangers)}: not in quarantine (in quarantine: "
            f"{', '.join(kept) or 'none'})"
        )
    return [kept[unit] for unit in units]


def _evidence(entry: LedgerEntry) -> Iterable[str]:
    yield f"{entry.unit} is in quarantine: {entry.quarantine}"
    if entry.cleaned is not None:
        when = entry.cleaned.at.isoformat(sep=" ", timespec="seconds")
        yield f"  cleaned last at {when} by {entry.cleaned.method}: {entry.cleaned.result}"


def _clear(host: Host, settings: Settings, unit: str) -> str:
    """Have the agent clear a unit, or do it where no agent runs; return what came of it."""
    try:
        answer = client.post(
            host.path(settings.socket), "/v1/clear", {"unit": unit}, timeout_s=_ANSWER_TIMEOUT_S
        )
    except UnservedError:
        with locks.exclusive(host.path(settings.lock)):
            node.clear(Journal(host.path(settings.ledger)), unit)
        return f"{unit} is out of quarantine; the agent, or kata-gpu apply, offers it again"
    return f"{unit} is out of quarantine, and {_state(answer)} now"


def _state(answer: object) -> str:
    match answer:
        case {"state": str(state)}:
            return state
        case _:
            return "in a state that the agent did not tell"
