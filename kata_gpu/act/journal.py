"""The ledger on disk: one JSON file, written ahead of every change.

Atomic and durable (temporary, fsync, rename, fsync of the directory), with a schema version
and a checksum. What cannot be read is never replaced by an empty ledger: the originals in
it are the only way back.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError, LedgerError
from kata_gpu.host import files
from kata_gpu.model.ledger import SCHEMA, Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Binding, PciAddress

_MODE: Final = 0o600
_DRIVER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # it is written to sysfs again
_REMEDY: Final = (
    "nothing is changed until it can be read: restore it from a backup, or move it away "
    "after you have given the devices back by hand"
)


class Journal:
    """The ledger's file, and its content as last saved or read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = _read(path)
        self._is_on_disk = True

    def save(self, ledger: Ledger) -> None:
        """Make *ledger* durable; nothing is written when it is so already.

        Raises:
            HostError: it could not be. The old one stays in force here. On disk it does too,
                but for a failure of the last fsync: the next save writes in any case.
        """
        if ledger == self.ledger and self._is_on_disk:
            return
        body = _body(ledger)
        _require_readable(body)
        document = {"schema": SCHEMA, "sha256": _checksum(body), "ledger": body}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        self._is_on_disk = False
        files.replace(self.path, text, staging=self.path.parent, mode=_MODE)
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
        if checks_out and schema == SCHEMA:
            return _ledger(body)
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
        _ledger(body)
    except ValueError as error:
        raise HostError(f"cannot note it in the ledger: {error}") from error


def _checksum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _body(ledger: Ledger) -> dict[str, Any]:
    return {
        "units": [
            {
                "unit": entry.unit,
                "stage": entry.stage.value,
                "functions": [
                    {
                        "address": str(function.address),
                        "vendor": f"{function.vendor:04x}",
                        "device": f"{function.device:04x}",
                        "driver": function.original.driver,
                        "override": function.original.override,
                    }
                    for function in entry.functions
                ],
            }
            for entry in ledger.entries
        ],
        "files": list(ledger.files),
    }


def _ledger(body: dict[str, Any]) -> Ledger:
    return Ledger(
        entries=tuple(
            LedgerEntry(
                unit=str(PciAddress.parse(entry["unit"])),
                stage=Stage(entry["stage"]),
                functions=tuple(_function(function) for function in entry["functions"]),
            )
            for entry in body["units"]
        ),
        files=tuple(_absolute(path) for path in body["files"]),
    )


def _function(function: dict[str, Any]) -> OriginalFunction:
    return OriginalFunction(
        address=PciAddress.parse(function["address"]),
        vendor=int(function["vendor"], 16),
        device=int(function["device"], 16),
        original=Binding(
            driver=_driver(function["driver"]), override=_driver(function["override"])
        ),
    )


def _driver(name: Any) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not _DRIVER.fullmatch(name):
        raise ValueError(f"not a driver's name: {name!r}")
    return name


def _absolute(path: Any) -> str:
    if (
        not isinstance(path, str)
        or not path.startswith("/")
        or not path.isprintable()
        or ".." in path.split("/")
    ):
        raise ValueError(f"not an absolute path: {path!r}")
    return path
