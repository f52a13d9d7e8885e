"""The rules of a CDI file as data: what each breaks for which of Kata's runtimes.

Marks as in the reference: ``ran`` was seen with the real library, ``read`` is from its code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.cdi import CdiFault, CdiFile, Scope

Breach = tuple[str, str, str]
"""Rule, place in the document, and what is found there."""

_WRITER: Final = "have it written again by the program it belongs to, or move it away"
_POD: Final = Scope.EVERY_POD
_DEVICE: Final = Scope.DEVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a breach of one rule breaks; None for nothing."""

    go: Scope | None
    rust: Scope | None
    basis: str
    """``ran`` or ``read``, the Go runtime's before that of runtime-rs."""

    source: str
    remedy: str = _WRITER


RULES: Final[Mapping[str, Rule]] = {
    # The file
    "no-file": Rule(
        go=_POD,
        rust=_POD,
        basis="read, read",
        source="spec.go ReadSpec; spec.rs parse_spec",
        remedy="remove it, or put a regular file in its place",
    ),
    "unjudged": Rule(
        go=Scope.UNKNOWN,
        rust=Scope.UNKNOWN,
        basis="read, read",
        source="our own bounds: 1 MiB, no aliases, 64 levels",
        remedy="look at it by hand, as root; have it written plainer, or move it away",
    ),
    "syntax": Rule(
        go=_POD, rust=_POD, basis="ran, read", source="spec.go ParseSpec; spec.rs parse_spec"
    ),
    "json-form": Rule(
        go=None,
        rust=None,
        basis="read, read",
        source="SPEC.md: JSON; both libraries read JSON files as YAML, others need not",
        remedy="name it .yaml, or have it written as JSON",
    ),
    "repeated-key": Rule(
        go=_POD, rust=_POD, basis="read, read", source="yaml.UnmarshalStrict; serde duplicate field"
    ),
    "second-document": Rule(
        go=None,
        rust=_POD,
        basis="read, read",
        source="yaml.UnmarshalStrict reads the first; serde_yaml::from_slice wants one",
        remedy="have each spec in a file of its own",
    ),
    "below-directory": Rule(
        go=Scope.IGNORED,
        rust=None,
        basis="ran, read",
        source="spec-dirs.go SkipDir; spec_dirs.rs traverse_dir",
        remedy="put it into the CDI directory itself, or elsewhere",
    ),
    # The document
    "form": Rule(go=_POD, rust=_POD, basis="ran, read", source="specs-go/config.go; config.rs"),
    "number-for-text": Rule(
        go=None, rust=_POD, basis="read, read", source="sigs.k8s.io/yaml converts; serde does not"
    ),
    "missing-field": Rule(
        go=_POD, rust=_POD, basis="ran, read", source="spec.go validate; config.rs"
    ),
    "missing-devices": Rule(
        go=None, rust=_POD, basis="read, read", source="spec.go 0.6.0; config.rs"
    ),
    "no-devices": Rule(
        go=None,
        rust=_POD,
        basis="ran, read",
        source="spec.rs new_spec: invalid spec, no devices",
        remedy="remove the file instead of emptying it",
    ),
    "unknown-field": Rule(
        go=_POD, rust=_POD, basis="ran, read", source="UnmarshalStrict; deny_unknown_fields"
    ),
    "field-case": Rule(
        go=None, rust=_POD, basis="read, read", source="encoding/json ignores case; serde does not"
    ),
    "newer-field": Rule(
        go=_POD,
        rust=None,
        basis="read, read",
        source="specs-go/config.go 0.6.0 has it not",
        remedy="have it written in version 0.5.0 or 0.6.0 and without it, or move it away",
    ),
    "version": Rule(
        go=_POD, rust=_POD, basis="ran, read", source="version.go and version.rs: released versions"
    ),
    "newer-version": Rule(
        go=_POD,
        rust=None,
        basis="ran, read",
        source="version.go 0.6.0: invalid version",
        remedy="have it written in version 0.5.0 or 0.6.0, or move it away",
    ),
    "field-version": Rule(
        go=_POD,
        rust=_POD,
        basis="ran, read",
        source="version.go and version.rs: minimum required version",
        remedy="have it written in the version that it needs, 0.6.0 at most for the Go runtime",
    ),
    "kind": Rule(go=_POD, rust=_POD, basis="read, read", source="parser.go; parser.rs"),
    "device-name": Rule(go=_POD, rust=_POD, basis="ran, read", source="parser.go; parser.rs"),
    "empty-edits": Rule(
        go=_POD, rust=_POD, basis="ran, read", source="device.go and device.rs: empty device edits"
    ),
    "value": Rule(
        go=_POD, rust=_POD, basis="read, read", source="container-edits.go; container_edits.rs"
    ),
    "no-permissions": Rule(
        go=_POD, rust=None, basis="read, read", source="container-edits.go 0.6.0 does not know it"
    ),
    # Files together
    "twice-in-file": Rule(
        go=_POD, rust=_POD, basis="ran, read", source="spec.go, spec.rs: multiple device"
    ),
    "twice-in-directory": Rule(
        go=_POD,
        rust=_POD,
        basis="ran, read",
        source="cache.go, cache.rs: conflicting device",
        remedy="remove it from all but one of them, by the programs they belong to",
    ),
    "twice-in-directories": Rule(
        go=Scope.AMBIGUOUS,
        rust=Scope.AMBIGUOUS,
        basis="ran, read",
        source="Go: /var/run/cdi overrides /etc/cdi; runtime-rs: the other way round",
        remedy="remove it from all but one of them, by the programs they belong to",
    ),
    # Devices, for Kata
    "node-missing": Rule(
        go=_DEVICE,
        rust=_DEVICE,
        basis="ran, read",
        source="container-edits_unix.go; vfio_device/core.rs",
        remedy="have it written again by the program it belongs to, after devices have moved",
    ),
    "node-no-device": Rule(
        go=_DEVICE,
        rust=_DEVICE,
        basis="ran, read",
        source="container-edits_unix.go: not a device node; vfio_device/core.rs",
        remedy="remove what is in the node's place, and have the device made again",
    ),
    "control-node": Rule(
        go=None,
        rust=_DEVICE,
        basis="ran, read",
        source="sandbox.rs:422 does not leave it out; core.rs:626: Invalid VFIO group path",
        remedy="have only the group's node listed: QEMU opens /dev/vfio/vfio by itself",
    ),
    "container-path": Rule(
        go=_DEVICE,
        rust=None,
        basis="read, read",
        source="device/manager/utils.go:28 passes over /dev/vfio/vfio*; container.go:1388",
        remedy="have it written with the same path in the container as on the host",
    ),
    "group-name": Rule(
        go=None,
        rust=_DEVICE,
        basis="read, read",
        source="vfio_device/core.rs:626: the name must be a number",
        remedy="have it written with /dev/vfio/GROUP or /dev/vfio/devices/vfioN",
    ),
    "shared-edits": Rule(
        go=None,
        rust=Scope.IGNORED,
        basis="ran, read",
        source="pod-resources-rs/src/lib.rs:37: device-level deviceNodes alone",
        remedy="have the nodes listed in each device",
    ),
}


def fault(rule: str, file: CdiFile, where: str, reason: str) -> CdiFault:
    """Return the breach of *rule* at *where* in *file*, for the runtimes that read the file."""
    broken = RULES[rule]
    return CdiFault(
        file=file.path,
        where=where,
        rule=rule,
        reason=reason,
        go=broken.go if Runtime.GO in file.readers or rule == "below-directory" else None,
        rust=broken.rust if Runtime.RUST in file.readers else None,
        remedy=broken.remedy,
    )
