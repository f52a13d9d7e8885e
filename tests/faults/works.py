"""Work for the subject: functions of a module, since they are sent by name."""

from dataclasses import dataclass
from pathlib import Path

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError
from kata_gpu.host import files, locks
from kata_gpu.model.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a journal believed around a save."""

    error: HostError | None
    before: Ledger
    believed: Ledger
    on_disk_at_last: Ledger


def replace(path: Path, content: str, staging: Path) -> None:
    """Replace a file."""
    files.replace(path, content, staging=staging)


def save(path: Path, ledger: Ledger) -> Saved:
    """Save *ledger* over the one at *path*; if that is refused, save the old one again."""
    journal = Journal(path)
    before, error = journal.ledger, None
    try:
        journal.update(lambda _: ledger)
    except HostError as refused:
        error = refused
    believed = journal.ledger
    journal.update(lambda _: believed)
    return Saved(
        error=error, before=before, believed=believed, on_disk_at_last=Journal(path).ledger
    )


def lock(path: Path) -> None:
    """Take a lock and give it back."""
    with locks.exclusive(path):
        return
