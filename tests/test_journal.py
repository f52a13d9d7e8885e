"""The ledger is what was saved, or it is refused: never something else, never empty."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, LedgerError
from kata_gpu.model.ledger import SCHEMA, Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Binding, PciAddress

ENTRY: Final = LedgerEntry(
    unit="0000:01:00.0",
    stage=Stage.BOUND,
    functions=(
        OriginalFunction(
            address=PciAddress(0, 1, 0, 0),
            vendor=0x10DE,
            device=0x2330,
            original=Binding(driver="nvidia", override=None),
        ),
    ),
)
LEDGER: Final = Ledger(entries=(ENTRY,), files=("/var/run/cdi/kata-gpu-a.b-c.json",))

_names = st.text(
    st.characters(codec="utf-8", exclude_characters="/.", exclude_categories=("C", "Z")), min_size=1
)
_drivers = st.none() | st.text("azAZ09_.+-", max_size=63).map("n{}".format)
_addresses = st.builds(
    PciAddress,
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)
_functions = st.builds(
    OriginalFunction,
    address=_addresses,
    vendor=st.integers(0, 0xFFFF),
    device=st.integers(0, 0xFFFF),
    original=st.builds(Binding, driver=_drivers, override=_drivers),
)
_entries = st.builds(
    LedgerEntry,
    unit=_addresses.map(str),
    stage=st.sampled_from(Stage),
    functions=st.lists(_functions, max_size=3).map(tuple),
)
_ledgers = st.builds(
    Ledger,
    entries=st.lists(_entries, max_size=3).map(tuple),
    files=st.lists(_names.map(lambda name: f"/etc/{name}"), max_size=3).map(tuple),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/ledger.json"


@pytest.fixture
def saved(path: Path) -> bytes:
    """A ledger on disk."""
    Journal(path).save(LEDGER)
    return path.read_bytes()


def write_with_its_checksum(path: Path, body: Any, *, schema: object = SCHEMA) -> None:
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"schema": schema, "sha256": checksum, "ledger": body}))


def trusted(path: Path) -> Ledger | None:
    """Return the ledger at *path*; None when it is refused."""
    try:
        return Journal(path).ledger
    except LedgerError:
        return None


def body_with(**changes: object) -> dict[str, Any]:
    """Return a ledger's body in which one function has other values."""
    function = {
        "address": "0000:01:00.0",
        "vendor": "10de",
        "device": "2330",
        "driver": "nvidia",
        "override": None,
    }
    unit = {"unit": "0000:01:00.0", "stage": "bound", "functions": [{**function, **changes}]}
    return {"units": [unit], "files": []}


def test_without_a_file_the_ledger_is_empty_and_none_is_made(path: Path) -> None:
    assert Journal(path).ledger == Ledger()
    assert not path.exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ledger=_ledgers)
def test_what_is_saved_is_what_is_read(path: Path, ledger: Ledger) -> None:
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.save(ledger)
    assert journal.ledger == ledger
    assert Journal(path).ledger == ledger


def test_only_its_owner_can_read_it(path: Path, saved: bytes) -> None:
    assert saved
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_equal_ledger_is_not_written_again(path: Path, saved: bytes) -> None:
    journal = Journal(path)
    inode = path.stat().st_ino
    journal.save(LEDGER)
    assert path.stat().st_ino == inode
    assert path.read_bytes() == saved


def test_a_ledger_that_cannot_be_written_is_not_believed(path: Path, saved: bytes) -> None:
    journal = Journal(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(HostError, match=r"cannot write .*ledger.json"):
        journal.save(Ledger())
    assert journal.ledger == LEDGER
    assert saved


def test_what_could_not_be_read_again_is_not_written(path: Path, saved: bytes) -> None:
    odd = replace(ENTRY.functions[0], original=Binding(driver=None, override="../odd"))
    with pytest.raises(HostError, match="cannot note it in the ledger: not a driver's name"):
        Journal(path).save(Ledger(entries=(replace(ENTRY, functions=(odd,)),)))
    assert path.read_bytes() == saved


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80], ids=["bit-0", "case", "bit-7"])
def test_no_byte_can_change_unnoticed(path: Path, saved: bytes, flip: int) -> None:
    for position in range(len(saved)):
        damaged = bytearray(saved)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        assert trusted(path) in {LEDGER, None}, f"byte {position}"


def test_no_end_can_be_missing_unnoticed(path: Path, saved: bytes) -> None:
    for length in range(len(saved) - 1):
        path.write_bytes(saved[:length])
        with pytest.raises(LedgerError, match="cannot trust the ledger"):
            Journal(path)
    assert saved.endswith(b"\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b'{"schema": 1, "sha256": "", "ledger": {}}',
        b"[" * 100_000,
        b"9" * 5000,
    ],
    ids=["empty", "null", "list", "object", "bytes", "wrong-checksum", "deep", "huge"],
)
def test_a_file_that_is_no_ledger_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"cannot trust the ledger.*restore it from a backup"):
        Journal(path)
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(LedgerError, match="Is a directory"):
        Journal(path)


def test_a_ledger_of_a_newer_agent_is_refused_with_its_schema(path: Path) -> None:
    write_with_its_checksum(path, {"something": "new"}, schema=SCHEMA + 1)
    with pytest.raises(LedgerError, match=rf"has schema {SCHEMA + 1} and this agent knows up to"):
        Journal(path)


@pytest.mark.parametrize("schema", [0, -1, "1", None, [1]], ids=str)
def test_a_schema_that_never_was_is_refused(path: Path, schema: object) -> None:
    write_with_its_checksum(path, body_with(), schema=schema)
    with pytest.raises(LedgerError, match="cannot"):
        Journal(path)


def test_a_correct_checksum_over_a_plain_body_is_accepted(path: Path) -> None:
    write_with_its_checksum(path, body_with())
    assert Journal(path).ledger == Ledger(entries=(ENTRY,))


@pytest.mark.parametrize("field", ["driver", "override"])
@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../../etc", "a/b", ".hidden", "€", "a\n", 5, ["nvidia"]]
)
def test_hostile_driver_names_are_refused(path: Path, field: str, name: object) -> None:
    write_with_its_checksum(path, body_with(**{field: name}))
    with pytest.raises(LedgerError, match="not a driver's name"):
        Journal(path)


@pytest.mark.parametrize(
    "changes",
    [{"address": "../0000:01:00.0"}, {"address": 5}, {"vendor": "xyz"}, {"device": None}],
    ids=["address", "number", "vendor", "device"],
)
def test_functions_that_cannot_be_are_refused(path: Path, changes: dict[str, object]) -> None:
    write_with_its_checksum(path, body_with(**changes))
    with pytest.raises(LedgerError, match="cannot trust the ledger"):
        Journal(path)


@pytest.mark.parametrize(
    "file", ["etc/passwd", "/var/../etc/passwd", "/a\0b", "/\ud800", "", 7, None]
)
def test_hostile_file_names_are_refused(path: Path, file: object) -> None:
    write_with_its_checksum(path, {"units": [], "files": [file]})
    with pytest.raises(LedgerError, match="not an absolute path"):
        Journal(path)


@pytest.mark.parametrize("change", [{"unit": "gpu"}, {"stage": "lost"}, {"functions": None}])
def test_units_that_cannot_be_are_refused(path: Path, change: dict[str, object]) -> None:
    body = body_with()
    body["units"][0].update(change)
    write_with_its_checksum(path, body)
    with pytest.raises(LedgerError, match="cannot trust the ledger"):
        Journal(path)
