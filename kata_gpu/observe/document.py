"""Frozen values as JSON-able documents: the one place that knows how each is written.

Keys are the field names; addresses, ids, times and enumerations are text; what is
unknown is null.
"""

import dataclasses
from datetime import datetime
from enum import Enum
from typing import Any

from kata_gpu.model.pci import Identity, PciAddress, PciFunction


def document(value: Any) -> Any:
    """Return *value* as JSON's own types."""
    match value:
        case tuple() | list():
            return [document(item) for item in value]
        case dict():
            return {str(key): document(item) for key, item in value.items()}
        case PciAddress() | Enum():
            return str(value.value if isinstance(value, Enum) else value)
        case datetime():
            return value.isoformat(timespec="milliseconds")
        case _ if dataclasses.is_dataclass(value):
            return _record(value)
        case _:
            return value


def _record(value: Any) -> dict[str, Any]:
    match value:
        case Identity():
            return {
                "address": str(value.address),
                "vendor": f"{value.vendor:04x}",
                "device": f"{value.device:04x}",
                "class": value.class_hex,
            }
        case PciFunction():
            fields = _fields(value)
            fields.update(
                subsystem_vendor=f"{value.subsystem_vendor:04x}",
                subsystem_device=f"{value.subsystem_device:04x}",
                revision=f"{value.revision:02x}",
            )
            return {**fields.pop("identity"), **fields}
        case _:
            return _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: document(getattr(value, field.name)) for field in dataclasses.fields(value)}
