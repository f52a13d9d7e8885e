"""The ledger as JSON's own types, and back; every value is checked on its way in.

Schema 1 is what 0.1 wrote: no identity but the ids, no cleaning, no virtual functions and no
services.
"""

import re
from datetime import datetime
from typing import Any, Final

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
from kata_gpu.model.text import printable

SCHEMAS: Final = (SCHEMA - 1, SCHEMA)
"""What can be read; the last is what is written."""

_DRIVER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # it is written to sysfs again
_SERVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9@:._\\-]{0,254}")  # systemd.unit(5)
_TEXT_MAX: Final = 4096
_ADDED_TO_UNITS: Final = {
    "is_used": False,
    "cleaned": None,
    "quarantine": None,
    "had_persistence": False,
}


def body(ledger: Ledger) -> dict[str, Any]:
    """Return *ledger* in the present schema."""
    return {
        "units": [_unit(entry) for entry in ledger.entries],
        "files": list(ledger.files),
        "virtuals": [
            {
                "parent": str(made.parent),
                "count": made.count,
                "had_autoprobe": made.had_autoprobe,
            }
            for made in ledger.virtuals
        ],
        "services": list(ledger.services),
        "directories": list(ledger.directories),
    }


def ledger(body: dict[str, Any], *, schema: int) -> Ledger:
    """Return the ledger that *body* is in *schema*; any Python error says that it is none."""
    if schema < SCHEMA:
        body = _migrated(body)
    return Ledger(
        entries=tuple(_entry(unit) for unit in body["units"]),
        files=tuple(_absolute(path) for path in body["files"]),
        virtuals=tuple(
            MadeVirtuals(
                parent=PciAddress.parse(made["parent"]),
                count=_count(made["count"]),
                had_autoprobe=_flag(made["had_autoprobe"]),
            )
            for made in body["virtuals"]
        ),
        services=tuple(_name(service) for service in body["services"]),
        directories=tuple(_absolute(path) for path in body.get("directories", [])),  # since 0.3
    )


def _migrated(body: dict[str, Any]) -> dict[str, Any]:
    units = [
        {
            **_ADDED_TO_UNITS,
            **unit,
            "functions": [
                {"slot": None, "serial": None, "target": None, **f} for f in unit["functions"]
            ],
        }
        for unit in body["units"]
    ]
    return {"virtuals": [], "services": [], **body, "units": units}


def _unit(entry: LedgerEntry) -> dict[str, Any]:
    cleaned = entry.cleaned
    return {
        "unit": entry.unit,
        "stage": entry.stage.value,
        "functions": [
            {
                "address": str(function.address),
                "vendor": f"{function.vendor:04x}",
                "device": f"{function.device:04x}",
                "driver": function.original.driver,
                "override": function.original.override,
                "slot": function.slot,
                "serial": function.serial,
                "target": function.target,
                "memory_bytes": function.memory_bytes,
            }
            for function in entry.functions
        ],
        "is_used": entry.is_used,
        "cleaned": cleaned
        and {
            "at": cleaned.at.isoformat(),
            "method": _plain(cleaned.method),
            "result": _plain(cleaned.result),
        },
        "quarantine": entry.quarantine and _plain(entry.quarantine),
        "had_persistence": entry.had_persistence,
        "cc_mode": entry.cc_mode and entry.cc_mode.value,
        "cc_unread": entry.cc_unread and _plain(entry.cc_unread),
        "woken": [str(address) for address in entry.woken],
    }


def _plain(text: str) -> str:
    """Return a reason as it may be read again: a kernel's or device's word may be in it."""
    return printable(text)[:_TEXT_MAX]


def _entry(unit: dict[str, Any]) -> LedgerEntry:
    cleaned, mode = unit["cleaned"], unit.get("cc_mode")
    return LedgerEntry(
        unit=str(PciAddress.parse(unit["unit"])),
        stage=Stage(unit["stage"]),
        functions=tuple(_function(function) for function in unit["functions"]),
        is_used=_flag(unit["is_used"]),
        cleaned=None if cleaned is None else _cleaning(cleaned),
        quarantine=_text(unit["quarantine"]),
        had_persistence=_flag(unit["had_persistence"]),
        cc_mode=None if mode is None else CcMode(mode),  # this and what follows since 0.4
        cc_unread=_text(unit.get("cc_unread")),
        woken=tuple(PciAddress.parse(address) for address in unit.get("woken", [])),
    )


def _cleaning(cleaned: dict[str, Any]) -> Cleaning:
    at = datetime.fromisoformat(cleaned["at"])
    if at.tzinfo is None:
        raise ValueError(f"not a time with its zone: {cleaned['at']!r}")
    return Cleaning(
        at=at, method=_text(cleaned["method"]) or "", result=_text(cleaned["result"]) or ""
    )


def _function(function: dict[str, Any]) -> OriginalFunction:
    return OriginalFunction(
        address=PciAddress.parse(function["address"]),
        vendor=int(function["vendor"], 16),
        device=int(function["device"], 16),
        original=Binding(
            driver=_driver(function["driver"]), override=_driver(function["override"])
        ),
        slot=_text(function["slot"]),
        serial=_text(function["serial"]),
        target=_driver(function["target"]),
        memory_bytes=_size(function.get("memory_bytes")),  # since 0.4
    )


def _driver(name: Any) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not _DRIVER.fullmatch(name):
        raise ValueError(f"not a driver's name: {name!r}")
    return name


def _name(service: Any) -> str:
    if not isinstance(service, str) or not _SERVICE.fullmatch(service):
        raise ValueError(f"not a service's name: {service!r}")
    return service


def _absolute(path: Any) -> str:
    if (
        not isinstance(path, str)
        or not path.startswith("/")
        or not path.isprintable()
        or ".." in path.split("/")
    ):
        raise ValueError(f"not an absolute path: {path!r}")
    return path


def _text(text: Any) -> str | None:
    if text is not None and not (
        isinstance(text, str) and len(text) <= _TEXT_MAX and text.isprintable()
    ):
        raise ValueError(f"not a text: {text!r:.80}")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"neither true nor false: {value!r:.80}")  # noqa: TRY004 - one error
    return value


def _size(value: Any) -> int | None:
    return None if value is None else _count(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"not a count: {value!r:.80}")
    return value
