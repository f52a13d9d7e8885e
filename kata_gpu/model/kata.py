"""Kata's configuration on a node: the files as they lie, and what a runtime makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

from kata_gpu.model.blueprint import Runtime

Key = tuple[str, ...]
"""Where a value is: ``("hypervisor", "qemu", "kernel")``."""

ABSENT_FILE = "absent-file"
"""The rule on files that the configuration names: what is absent to us need not be so to a shim
that sees more of the host.
"""


class EntryKind(StrEnum):
    """What lies in ``config.d``: each runtime takes some kinds and chokes on others."""

    FILE = "file"
    LINK = "link"
    DIRECTORY = "directory"
    OTHER = "other"
    """A FIFO, a socket or a device; never opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of ``config.d``."""

    name: str
    kind: EntryKind
    text: str | None
    """Of a regular file, also of one behind a link; None when there is none to be had."""

    reason: str | None = None
    """Why there is no text; None when there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One base file with everything beside it that a runtime reads."""

    path: str
    """The real base file, behind all links."""

    text: str | None
    reason: str | None = None
    """Why there is no text; None when there is."""

    entries: tuple[Entry, ...] = ()
    unlisted: str | None = None
    """Why ``config.d`` could not be listed whole; None when it was, or when it is not there."""

    absent: frozenset[str] = frozenset()
    """Paths of a kernel, an image or the like that the texts name and where no file is."""

    @property
    def directory(self) -> str:
        """The folder of the drop-ins."""
        return f"{self.path.rpartition('/')[0]}/config.d"

    def with_drop_in(self, name: str, text: str) -> Self:
        """Return it with one more regular file, in place of what had that name."""
        entry = Entry(name=name, kind=EntryKind.FILE, text=text)
        return replace(self, entries=(*self.without(name).entries, entry))

    def without(self, name: str) -> Self:
        """Return it without the entry of that name."""
        return replace(self, entries=tuple(e for e in self.entries if e.name != name))

    def before(self, name: str) -> Self:
        """Return it with the entries alone that a runtime reads before that name."""
        limit = name_bytes(name)
        entries = tuple(e for e in self.entries if name_bytes(e.name) < limit)
        return replace(self, entries=entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value that counts, and the file it came from."""

    value: Any
    """A scalar of TOML, or a tuple for an array."""

    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something in the files that a runtime refuses, changes or ignores."""

    file: str
    key: str | None
    """Dotted; None when the whole file is meant."""

    rule: str
    """A word that stays what it is: ``unknown-key``, ``wrong-type`` …"""

    is_fatal: bool
    """Whether the runtime starts no pod with it."""

    reason: str

    def __str__(self) -> str:
        where = self.file if self.key is None else f"{self.file}: {self.key}"
        return f"{where}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """What a runtime makes of a base file and its drop-ins."""

    runtime: Runtime
    settings: Mapping[Key, Setting]
    hypervisors: tuple[str, ...]
    """The hypervisor tables, in the order in which they appear."""

    faults: tuple[Fault, ...]

    @property
    def fatal(self) -> tuple[Fault, ...]:
        """The faults with which the runtime starts no pod."""
        return tuple(fault for fault in self.faults if fault.is_fatal)

    @property
    def hypervisor(self) -> str | None:
        """The hypervisor that counts; None when the files do not say."""
        named = self.value("runtime", "hypervisor_name")
        if self.runtime is Runtime.RUST and isinstance(named, str):
            return named
        return self.hypervisors[0] if len(self.hypervisors) == 1 else None

    def value(self, *key: str) -> Any:
        """Return a value; None where no file sets it."""
        found = self.settings.get(key)
        return None if found is None else found.value

    def of_hypervisor(self, name: str) -> Any:
        """Return a value of the hypervisor that counts; None where no file sets it."""
        return None if self.hypervisor is None else self.value("hypervisor", self.hypervisor, name)


class Tee(StrEnum):
    """The trusted environment that a handler's guests run in."""

    SNP = "snp"
    TDX = "tdx"
    OTHER = "other"
    """``confidential_guest`` is set, and nothing says for which."""

    NONE = "none"


class Provenance(StrEnum):
    """How a base file came to the node."""

    KATA_DEPLOY = "kata-deploy"
    CUSTOM = "custom"
    """A custom runtime of kata-deploy's chart."""

    DISTRIBUTION = "distribution"
    BLUEPRINT = "blueprint"
    """It lies where nobody installs one, and the blueprint names it."""

    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledFile:
    """A base file as it was found on the node."""

    name: str
    """The handler's, by where the file lies."""

    config: str
    """The path it was found at."""

    provenance: Provenance
    version: str | None
    """Of the installation; None when it does not say."""

    configuration: Configuration
    declared: Runtime | None = None
    """The blueprint's word on whose file it is; None where the blueprint does not name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A Kata handler of this node, as a person asks for it."""

    name: str
    runtime: Runtime
    hypervisor: str | None
    """None when the files do not say, or say two."""

    base: str
    """The real base file."""

    config: str
    version: str | None
    installed: Provenance
    tee: Tee
    in_blueprint: bool
    problems: tuple[str, ...]


def name_bytes(name: str) -> bytes:
    """Return what both runtimes sort entries by."""
    return name.encode("utf-8", "surrogateescape")
