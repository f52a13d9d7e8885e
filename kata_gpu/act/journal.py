"""The ledger on disk: one JSON file, written ahead of every change.

Atomic and durable (temporary, fsync, rename, fsync of the directory), with a schema version
and a checksum. What cannot be read is never replaced by an empty ledger: the originals in
it are the only way back.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kata_gpu.act import ledger_form
from kata_gpu.errors import HostError, LedgerError
from kata_gpu.host import files
from kata_gpu.model.ledger import SCHEMA, Ledger

_MODE: Final = 0o600
_REMEDY: Final = (
    "nothing is changed until it can be read: restore it from a backup, or move it away "
    "after you have given the devices back by hand"
)


class Journal:
    """The ledger's file, and its content as last saved or read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = _read(path)
        self._turn = threading.Lock()
        self._is_on_disk = True

    def update(self, change: Callable[[Ledger], Ledger]) -> None:
        """Make what *change* makes of the ledger durable; nothing is written when it is so.

        Lanes may call it at once: the changes are made one after the other.

        Raises:
            HostError: it could not be. The old one stays in force here. On disk it does too,
                but for a failure of the last fsync: the next update writes in any case.
        """
        with self._turn:
            self._save(change(self.ledger))

    def amend(self, unit: str, **changes: Any) -> None:
        """Change what is known of a unit that is ours; of one that is not, nothing is."""

        def change(ledger: Ledger) -> Ledger:
            entry = ledger.entry(unit)
            return ledger if entry is None else ledger.with_entry(replace(entry, **changes))

        self.update(change)

    def _save(self, ledger: Ledger) -> None:
        if ledger == self.ledger and self._is_on_disk:
            return
        body = ledger_form.body(ledger)
        _require_readable(body)
        document = {"schema": SCHEMA, "sha256": _checksum(body), "ledger": body}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        self._is_on_disk = False
        # an admin may have put the state elsewhere by a link
        files.replace(self.path, text, staging=self.path.parent, mode=_MODE, follow=True)
        self.ledger, self._is_on_disk = ledger, True


def _read(path: Path) -> Ledger:
    """Return the ledger at *path*, an empty one when there is none.

    Raises:
        LedgerError: it is damaged, or of a newer schema than this agent's.
    """
    try:
        text = files.read(path)
    except HostError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        raise LedgerError(f"cannot trust the ledger: {error}; {_REMEDY}") from error
    if text is None:
        return Ledger()
    try:
        document = json.loads(text)
        schema, body = document["schema"], document["ledger"]
        checks_out = document["sha256"] == _checksum(body)
        if checks_out and schema in ledger_form.SCHEMAS:
            return ledger_form.ledger(body, schema=schema)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerError(f"cannot trust the ledger {path}: {error!r}; {_REMEDY}") from error
    if isinstance(schema, int) and schema > SCHEMA:
        raise LedgerError(
            f"cannot use the ledger {path}: it has schema {schema} and this agent knows up to "
            f"{SCHEMA}; install the newer agent again"
        )
    raise LedgerError(
        f"cannot trust the ledger {path}: its checksum does not match its content; {_REMEDY}"
    )


def _require_readable(body: dict[str, Any]) -> None:
    """Raise HostError for a ledger that we would refuse to read: it would lock the node."""
    try:
        ledger_form.ledger(body, schema=SCHEMA)
    except ValueError as error:
        raise HostError(f"cannot note it in the ledger: {error}") from error


def _checksum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
