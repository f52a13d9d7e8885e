"""Ledgers that the fuzzer cannot make: with the right checksum, and what becomes of them."""

import hashlib
import json
from contextlib import suppress
from functools import partial
from pathlib import Path

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError
from kata_gpu.host import files
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.ledger import Ledger


def with_its_checksum(body: bytes, schema: int) -> bytes:
    """Return the document around *body*; *body* itself when it is no JSON to begin with."""
    try:
        parsed = json.loads(body)
        checksum = hashlib.sha256(json.dumps(parsed, sort_keys=True).encode()).hexdigest()
        return json.dumps({"schema": schema, "sha256": checksum, "ledger": parsed}).encode()
    except (ValueError, RecursionError):
        return body


def use(journal: Journal, folder: Path) -> None:
    """Do with a ledger that is trusted what a release does: save it less a part, and write."""
    for path in journal.ledger.files:
        files.remove(folder / path.removeprefix("/"))
        journal.update(partial(Ledger.without_file, path=path))
    sysfs = Sysfs(folder)
    for entry in journal.ledger.entries:
        for function in entry.functions:
            for name in {function.original.driver, function.original.override} - {None}:
                with suppress(HostError):  # there is no such attribute; it is about the name
                    sysfs.write("driver_override", f"{name}\n")
        journal.update(partial(Ledger.without_entry, unit=entry.unit))
    assert Journal(journal.path).ledger == journal.ledger
