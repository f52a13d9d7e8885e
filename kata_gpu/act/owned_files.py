"""Files that are wholly ours, and the folders that had to be made for them."""

import logging
from collections.abc import Iterable

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, VerificationError
from kata_gpu.host import Host, files
from kata_gpu.model.plan import WriteFile

log = logging.getLogger(__name__)


def write(host: Host, step: WriteFile, journal: Journal) -> None:
    """Note in the ledger what will be ours, write the file, and verify; idempotent.

    Raises:
        HostError, VerificationError: it is not written, or not as it should be; the ledger names
            it, so that it is written or removed later.
    """
    made = tuple(_missing(host, (step.path.rpartition("/")[0], step.staging)))
    journal.update(lambda ledger: ledger.with_file(step.path).with_directories(made))
    path = host.path(step.path)
    files.replace(path, step.content, staging=host.path(step.staging))
    if files.read(path) != step.content:
        raise VerificationError(f"cannot write {step.path}: it reads back otherwise")


def remove(host: Host, path: str, journal: Journal) -> None:
    """Remove the file and forget it, and after the last one the folders; idempotent.

    Raises:
        HostError: it is there; the ledger still names it.
    """
    files.remove(host.path(path))
    if set(journal.ledger.files) <= {path}:
        _remove_directories(host, journal)  # first: what the ledger still names is done again
        journal.update(lambda ledger: ledger.without_file(path).without_directories())
    else:
        journal.update(lambda ledger: ledger.without_file(path))


def remove_directories(host: Host, journal: Journal) -> None:
    """Remove the folders that we made, and forget them; what holds anything is somebody's."""
    _remove_directories(host, journal)
    journal.update(lambda ledger: ledger.without_directories())


def _remove_directories(host: Host, journal: Journal) -> None:
    for directory in sorted(journal.ledger.directories, reverse=True):  # the deepest first
        try:
            files.remove_empty(host.path(directory))
        except HostError as error:
            log.warning("%s", error)


def _missing(host: Host, directories: Iterable[str]) -> Iterable[str]:
    for directory in directories:
        path = directory
        while path and not host.path(path).exists():
            yield path
            path = path.rpartition("/")[0]
