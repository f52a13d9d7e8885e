"""The ledger is what was saved, or it is refused: never something else, never empty."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, LedgerError
from kata_gpu.model.confidential import CcMode
from kata_gpu.model.ledger import (
    SCHEMA,
    Cleaning,
    Ledger,
    LedgerEntry,
    MadeVirtuals,
    OriginalFunction,
    Stage,
)
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
OF_0_1: Final = """\
{
  "schema": 1,
  "sha256": "fd952cf652770836b39dd5838425173bcc26ac71674733d07272eae7043bc1c8",
  "ledger": {
    "units": [
      {
        "unit": "0000:01:00.0",
        "stage": "bound",
        "functions": [
          {
            "address": "0000:01:00.0",
            "vendor": "10de",
            "device": "2330",
            "driver": "nvidia",
            "override": null
          }
        ]
      }
    ],
    "files": [
      "/var/run/cdi/kata-gpu-a.b-c.json"
    ]
  }
}
"""

_names = st.text(
    st.characters(codec="utf-8", exclude_characters="/.", exclude_categories=("C", "Z")), min_size=1
)
_drivers = st.none() | st.text("azAZ09_.+-", max_size=63).map("n{}".format)
_texts = st.none() | st.text(st.characters(exclude_categories=("C", "Z")), max_size=20)
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
    slot=_texts,
    serial=_texts,
    target=_drivers,
    memory_bytes=st.none() | st.integers(1, 1 << 50),
)
_entries = st.builds(
    LedgerEntry,
    unit=_addresses.map(str),
    stage=st.sampled_from(Stage),
    functions=st.lists(_functions, max_size=3).map(tuple),
    is_used=st.booleans(),
    cleaned=st.none()
    | st.builds(
        Cleaning,
        at=st.datetimes(timezones=st.just(UTC)),
        method=st.text("az/, .0123", max_size=20),
        result=st.text("az/, .0123", max_size=20),
    ),
    quarantine=_texts,
    had_persistence=st.booleans(),
    cc_mode=st.none() | st.sampled_from(CcMode),
    cc_unread=_texts,
    woken=st.lists(_addresses, max_size=2).map(tuple),
)
_ledgers = st.builds(
    Ledger,
    entries=st.lists(_entries, max_size=3).map(tuple),
    files=st.lists(_names.map(lambda name: f"/etc/{name}"), max_size=3).map(tuple),
    virtuals=st.lists(
        st.builds(
            MadeVirtuals,
            parent=_addresses,
            count=st.integers(1, 256),
            had_autoprobe=st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
    services=st.lists(st.text("az09@._-", max_size=9).map("n{}".format), max_size=2).map(tuple),
    directories=st.lists(_names.map(lambda name: f"/run/{name}"), max_size=2).map(tuple),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/ledger.json"


@pytest.fixture
def saved(path: Path) -> bytes:
    """A ledger on disk."""
    Journal(path).update(lambda _: LEDGER)
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
        "slot": None,
        "serial": None,
        "target": None,
    }
    unit = {
        "unit": "0000:01:00.0",
        "stage": "bound",
        "functions": [{**function, **changes}],
        "is_used": False,
        "cleaned": None,
        "quarantine": None,
        "had_persistence": False,
    }
    return {"units": [unit], "files": [], "virtuals": [], "services": []}


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
    journal.update(lambda _: ledger)
    assert journal.ledger == ledger
    assert Journal(path).ledger == ledger


def test_only_its_owner_can_read_it(path: Path, saved: bytes) -> None:
    assert saved
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_equal_ledger_is_not_written_again(path: Path, saved: bytes) -> None:
    journal = Journal(path)
    inode = path.stat().st_ino
    journal.update(lambda _: LEDGER)
    assert path.stat().st_ino == inode
    assert path.read_bytes() == saved


def test_a_ledger_that_cannot_be_written_is_not_believed(path: Path, saved: bytes) -> None:
    journal = Journal(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(HostError, match=r"cannot write .*ledger.json"):
        journal.update(lambda _: Ledger())
    assert journal.ledger == LEDGER
    assert saved


def test_what_could_not_be_read_again_is_not_written(path: Path, saved: bytes) -> None:
    odd = replace(ENTRY.functions[0], original=Binding(driver=None, override="../odd"))
    with pytest.raises(HostError, match="cannot note it in the ledger: not a driver's name"):
        Journal(path).update(lambda _: Ledger(entries=(replace(ENTRY, functions=(odd,)),)))
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


def test_a_ledger_of_the_last_release_is_read_and_then_written_as_of_now(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(OF_0_1)
    journal = Journal(path)
    assert journal.ledger == LEDGER
    journal.update(lambda ledger: ledger.with_service("nvidia-persistenced.service"))
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert Journal(path).ledger == replace(LEDGER, services=("nvidia-persistenced.service",))


def test_a_ledger_of_0_2_knows_of_no_folders(path: Path) -> None:
    Journal(path).update(lambda _: LEDGER)
    body = json.loads(path.read_text())["ledger"]
    del body["directories"]
    write_with_its_checksum(path, body)
    assert Journal(path).ledger == LEDGER


@pytest.mark.parametrize(
    "change",
    [
        {"services": ["-force"]},
        {"services": ["../evil"]},
        {"services": None},
        {"virtuals": [{"parent": "0000:01:00.0", "count": 0, "had_autoprobe": True}]},
        {"virtuals": [{"parent": "0000:01:00.0", "count": True, "had_autoprobe": True}]},
        {"virtuals": [{"parent": "x", "count": 1, "had_autoprobe": True}]},
        {"virtuals": [{"parent": "0000:01:00.0", "count": 1, "had_autoprobe": 1}]},
    ],
    ids=str,
)
def test_virtuals_and_services_that_cannot_be_are_refused(
    path: Path, change: dict[str, object]
) -> None:
    write_with_its_checksum(path, {**body_with(), **change})
    with pytest.raises(LedgerError, match="cannot trust the ledger"):
        Journal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"is_used": 1},
        {"quarantine": 5},
        {"quarantine": "x" * 5000},
        {"cleaned": {"at": "2026-01-01T00:00:00", "method": "flr", "result": "ok"}},
        {"cleaned": {"at": 5, "method": "flr", "result": "ok"}},
        {"had_persistence": None},
        {"cc_mode": "secret"},
        {"cc_mode": 1},
        {"cc_unread": "a\nb"},
        {"woken": ["gpu"]},
        {"woken": None},
    ],
    ids=lambda change: str(change)[:40],
)
def test_states_that_cannot_be_are_refused(path: Path, change: dict[str, object]) -> None:
    body = body_with()
    body["units"][0].update(change)
    write_with_its_checksum(path, body)
    with pytest.raises(LedgerError, match="cannot trust the ledger"):
        Journal(path)


def test_a_ledger_of_before_modes_were_read_knows_of_none(path: Path) -> None:
    write_with_its_checksum(path, body_with())
    (found,) = Journal(path).ledger.entries
    assert (found.cc_mode, found.cc_unread, found.woken) == (None, None, ())
    assert found.functions[0].memory_bytes is None


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
    [
        {"address": "../0000:01:00.0"},
        {"address": 5},
        {"vendor": "xyz"},
        {"device": None},
        {"memory_bytes": "80"},
        {"memory_bytes": 0},
    ],
    ids=["address", "number", "vendor", "device", "memory", "no memory"],
)
def test_functions_that_cannot_be_are_refused(path: Path, changes: dict[str, object]) -> None:
    write_with_its_checksum(path, body_with(**changes))
    with pytest.raises(LedgerError, match="cannot trust the ledger"):
        Journal(path)


@pytest.mark.parametrize(
    "file", ["etc/passwd", "/var/../etc/passwd", "/a\0b", "/\ud800", "", 7, None]
)
def test_hostile_file_names_are_refused(path: Path, file: object) -> None:
    write_with_its_checksum(path, {**body_with(), "files": [file]})
    with pytest.raises(LedgerError, match="not an absolute path"):
        Journal(path)


@pytest.mark.parametrize("change", [{"unit": "gpu"}, {"stage": "lost"}, {"functions": None}])
def test_units_that_cannot_be_are_refused(path: Path, change: dict[str, object]) -> None:
    body = body_with()
    body["units"][0].update(change)
    write_with_its_checksum(path, body)
    with pytest.raises(LedgerError, match="cannot trust the ledger"):
        Journal(path)
