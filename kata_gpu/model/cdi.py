"""CDI files of a node as they were found, and what is wrong with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from kata_gpu.model.blueprint import Runtime


class Scope(StrEnum):
    """What a fault does to the pods of one runtime."""

    EVERY_POD = "every-pod"
    """No pod that asks for a device starts, whichever device it is."""

    DEVICE = "device"
    """A pod that asks for this device does not start, or is not given it."""

    AMBIGUOUS = "ambiguous"
    """The two runtimes take different files for the same device."""

    IGNORED = "ignored"
    """The runtime does not look at it."""

    UNKNOWN = "unknown"
    """Nobody can tell here."""


class NodeKind(StrEnum):
    """What is at the host path of a device node."""

    DEVICE = "device"
    MISSING = "missing"
    OTHER = "no-device"


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiDocument:
    """What a file says, before anything of it is believed."""

    tree: Any
    """Mappings and tuples of JSON's scalars, immutable."""

    repeated: tuple[str, ...] = ()
    """Places of keys that a mapping has twice; *tree* has the last."""

    is_other_form: bool = False
    """Whether it is YAML in a file whose name says JSON."""

    has_more: bool = False
    """Whether another document follows; *tree* is the first."""


def members(value: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the mappings of a list in a document of any form, each with its number."""
    for number, item in enumerate(value if isinstance(value, tuple) else ()):
        if isinstance(item, Mapping):
            yield number, item


def device_nodes(table: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the device nodes that a spec or a device gives, each with its number."""
    edits = table.get("containerEdits")
    return members(edits.get("deviceNodes") if isinstance(edits, Mapping) else None)


def host_path(node: Mapping[str, Any]) -> str:
    """Return where a node is on the host; empty when it does not say."""
    path = node.get("hostPath") or node.get("path")
    return path if isinstance(path, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiBroken:
    """No reader can make anything of it."""

    reason: str
    is_file: bool = True
    """Whether it is a regular file at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiUnjudged:
    """A reader may make something of it; nobody can tell here."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiFile:
    """One file that some reader takes for a spec."""

    path: str
    directory: str
    """The CDI directory that it is in, or below."""

    content: CdiDocument | CdiBroken | CdiUnjudged
    readers: tuple[Runtime, ...] = tuple(Runtime)
    """The runtimes that look at it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CdiSpecs:
    """All that lies where CDI specs are looked for; each look is one by itself."""

    files: tuple[CdiFile, ...] = field(default=())
    leftovers: tuple[str, ...] = field(default=())
    """Paths of files that no reader takes."""

    nodes: Mapping[str, NodeKind] = field(default_factory=lambda: MappingProxyType({}))
    """What is at each host path that a document names; without those of other hosts."""

    problems: tuple[str, ...] = field(default=())
    """What could not be looked at."""

    ours: str = ""
    """The directory of the agent's own files, by the name that *files* have for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiFault:
    """One breach of one rule."""

    file: str
    where: str
    """Place inside the document, as in ``devices[3].name``; empty for the file as a whole."""

    rule: str
    reason: str
    go: Scope | None
    """What it does to pods of Kata's Go runtime; None for nothing."""

    rust: Scope | None
    """The same of runtime-rs."""

    remedy: str

    @property
    def scopes(self) -> frozenset[Scope]:
        """What it does to pods of any runtime."""
        return frozenset(scope for scope in (self.go, self.rust) if scope is not None)

    @property
    def is_note(self) -> bool:
        """Whether every pod starts all the same, and the specification has nothing against it."""
        return bool(self.scopes) and self.scopes <= {Scope.AMBIGUOUS, Scope.IGNORED}

    @property
    def place(self) -> str:
        """File and place in it."""
        return f"{self.file}: {self.where}" if self.where else self.file

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiDevice:
    """One device that a runtime resolves, as one file has it."""

    name: str
    """``vendor.tld/class=name``."""

    file: str
    number: int
    """Which of the file's devices it is, counted from 0."""

    nodes: tuple[str, ...]
    """Host paths at device level; those of the whole spec are not among them."""

    missing: tuple[str, ...]
    """Nodes that are no devices on this host."""

    is_ours: bool
    go: bool
    """Whether a pod of Kata's Go runtime that asks for it gets it from this file."""

    rust: bool
    """The same of runtime-rs."""
