"""The fields of a CDI spec: their form, and the version of the specification that has them.

Source: Container Device Interface SPEC.md and specs-go/config.go; what needs which version is
in pkg/cdi/version.go, and src/version.rs of the Rust crate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from kata_gpu.plan.cdi.libraries import EARLIEST


class Form(Enum):
    """What a field holds."""

    TEXT = auto()
    INTEGER = auto()
    BOOLEAN = auto()
    LIST = auto()
    TABLE = auto()
    LABELS = auto()
    """A mapping of texts to texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key of a table."""

    form: Form
    of: "Form | str | None" = None
    """For a list the form of its members, or the table that each is; for a table its name."""

    is_required: bool = False
    since: str = EARLIEST
    until: str | None = None
    """The first version that has it no more; None while it is there."""


def _text(*, required: bool = False, since: str = EARLIEST) -> Field:
    return Field(form=Form.TEXT, is_required=required, since=since)


def _integer() -> Field:
    return Field(form=Form.INTEGER)


def _list(of: Form | str, *, required: bool = False, since: str = EARLIEST) -> Field:
    return Field(form=Form.LIST, of=of, is_required=required, since=since)


_TEXTS: Final = _list(Form.TEXT)
_LABELS: Final = Field(form=Form.LABELS, since="0.6.0")
_FLAG: Final = Field(form=Form.BOOLEAN, until="1.1.0")

ROOT: Final = "spec"

TABLES: Final[Mapping[str, Mapping[str, Field]]] = {
    ROOT: {
        "cdiVersion": _text(required=True),
        "kind": _text(required=True),
        "annotations": _LABELS,
        "devices": _list("device", required=True),
        "containerEdits": Field(form=Form.TABLE, of="edits"),
    },
    "device": {
        "name": _text(required=True),
        "annotations": _LABELS,
        "containerEdits": Field(form=Form.TABLE, of="edits", is_required=True),
    },
    "edits": {
        "env": _TEXTS,
        "deviceNodes": _list("node"),
        "hooks": _list("hook"),
        "mounts": _list("mount"),
        "intelRdt": Field(form=Form.TABLE, of="rdt", since="0.7.0"),
        "additionalGids": _list(Form.INTEGER, since="0.7.0"),
        "netDevices": _list("net", since="1.1.0"),
    },
    "node": {
        "path": _text(required=True),
        "hostPath": _text(since="0.5.0"),
        "type": _text(),
        "major": _integer(),
        "minor": _integer(),
        "fileMode": _integer(),
        "permissions": _text(),
        "uid": _integer(),
        "gid": _integer(),
    },
    "hook": {
        "hookName": _text(required=True),
        "path": _text(required=True),
        "args": _TEXTS,
        "env": _TEXTS,
        "timeout": _integer(),
    },
    "mount": {
        "hostPath": _text(required=True),
        "containerPath": _text(required=True),
        "type": _text(since="0.4.0"),
        "options": _TEXTS,
    },
    "rdt": {
        "closID": _text(),
        "l3CacheSchema": _text(),
        "memBwSchema": _text(),
        "schemata": _list(Form.TEXT, since="1.1.0"),
        "enableMonitoring": Field(form=Form.BOOLEAN, since="1.1.0"),
        "enableCMT": _FLAG,
        "enableMBM": _FLAG,
    },
    "net": {
        "hostInterfaceName": _text(required=True),
        "name": _text(required=True),
    },
}
