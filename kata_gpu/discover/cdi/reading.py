"""Look through the CDI directories as both of Kata's libraries do.

Source: Container Device Interface pkg/cdi/spec-dirs.go: files that end in ``.json`` or
``.yaml`` are specs, hidden ones too, and folders below are not looked into; src/spec_dirs.rs of
the Rust crate looks into them, and follows links on the way.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from kata_gpu.discover.cdi.parsing import parse
from kata_gpu.errors import HostError
from kata_gpu.host import Host, files, paths
from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.cdi import (
    CdiBroken,
    CdiDocument,
    CdiFile,
    CdiSpecs,
    CdiUnjudged,
    NodeKind,
    device_nodes,
    host_path,
    members,
)

DIRECTORIES: Final = ("/etc/cdi", "/var/run/cdi")
_SUFFIXES: Final = (".json", ".yaml")
_MAX_BYTES: Final = 1 << 20
_MAX_DEPTH: Final = 8
_MAX_FILES: Final = 1024
_MAX_ENTRIES: Final = 2048  # folders too: links to the folder they lie in multiply with each level
_MAX_NODES: Final = 4096
_MAX_PROBLEMS: Final = 16
_BOTH: Final = tuple(Runtime)


def read(host: Host, ours: str) -> CdiSpecs:
    """Return what lies in the directories that readers know, and in *ours*."""
    found: list[CdiFile] = []
    leftovers: list[str] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for directory in dict.fromkeys((*DIRECTORIES, ours)):
        try:
            real = files.resolve(directory, root=host.root)
            if real is None or seen.setdefault(real, directory) != directory:
                continue
            look = _Look(host, directory, found, leftovers)
            look.through(directory, real, 0)
            problems += look.problems
        except HostError as error:
            problems.append(str(error))
    specs = _with_nodes(host, found, leftovers, problems)
    return replace(specs, ours=_name_of(host, ours, seen))


def _name_of(host: Host, ours: str, seen: Mapping[str, str]) -> str:
    """Return the name by which *ours* was looked through: it may be a link to another."""
    try:
        return seen.get(files.resolve(ours, root=host.root) or "", ours)
    except HostError:
        return ours


def read_files(host: Host, named: Iterable[str]) -> CdiSpecs:
    """Return the files that are named, wherever they are."""
    found = []
    for path in dict.fromkeys(named):
        directory = path.rpartition("/")[0] or "/"
        found.append(CdiFile(path=path, directory=directory, content=_content(host, path)))
    return _with_nodes(host, found, (), ())


class _Look:
    """One directory, and what is below it."""

    def __init__(
        self, host: Host, directory: str, found: list[CdiFile], leftovers: list[str]
    ) -> None:
        self.problems: list[str] = []
        self._host = host
        self._directory = directory
        self._found = found
        self._leftovers = leftovers
        self._entries = 0

    def through(self, folder: str, real: str, depth: int) -> None:
        """Add what *folder*, which really is *real*, holds."""
        try:
            names = paths.names(self._host.path(real))
        except HostError as error:
            self._complain(str(error))
            return
        for name in names:
            excess = self._excess()
            if excess is not None:
                self._not_all(excess)
                return
            self._entries += 1
            self._entry(f"{folder}/{name}", f"{real}/{name}", name, depth)

    def _complain(self, problem: str) -> None:
        """Tell a problem, but no more of them than somebody reads."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)

    def _not_all(self, excess: str) -> None:
        """Tell that the rest is not looked at; once, for each level comes by here."""
        problem = f"cannot look at all of {self._directory}: it has more than {excess}"
        if problem not in self.problems:
            self.problems.append(problem)

    def _excess(self) -> str | None:
        """Return what there is too much of; None while there is not."""
        if len(self._found) + len(self._leftovers) >= _MAX_FILES:
            return f"{_MAX_FILES} files"
        if self._entries >= _MAX_ENTRIES:
            return f"{_MAX_ENTRIES} entries, or links that lead in a circle"
        return None

    def _entry(self, path: str, real: str, name: str, depth: int) -> None:
        try:
            target = files.resolve(real, root=self._host.root)
            status = None if target is None else paths.status(self._host.path(target))
        except HostError:
            target, status = None, None
        is_spec = name.endswith(_SUFFIXES)
        if status is not None and status.is_directory and target is not None:
            self._folder(path, target, depth, is_link=is_spec and target != real)
        elif is_spec:
            self._found.append(
                CdiFile(
                    path=path,
                    directory=self._directory,
                    content=_content(self._host, real),
                    readers=_readers(name, depth),
                )
            )
        elif not depth:
            self._leftovers.append(path)

    def _folder(self, path: str, target: str, depth: int, *, is_link: bool) -> None:
        if is_link and not depth:
            self._found.append(
                CdiFile(
                    path=path,
                    directory=self._directory,
                    content=CdiBroken(reason="it is a link to a folder", is_file=False),
                    readers=(Runtime.GO,),
                )
            )
        if depth >= _MAX_DEPTH:
            self._complain(f"cannot look into {path}: it is more than {_MAX_DEPTH} deep")
        else:
            self.through(path, target, depth + 1)


def _readers(name: str, depth: int) -> tuple[Runtime, ...]:
    if depth:
        return (Runtime.RUST,)
    return (Runtime.GO,) if name in _SUFFIXES else _BOTH  # to Rust such a name has no extension


def _content(host: Host, path: str) -> CdiDocument | CdiBroken | CdiUnjudged:
    try:
        real = files.resolve(path, root=host.root)
        if real is None:
            return CdiBroken(reason="it is a link to nothing, or has gone", is_file=False)
        at = host.path(real)
        status = paths.status(at)
        if status is None or not status.is_file:
            return CdiBroken(reason="it is no file", is_file=False)
        return parse(path, files.read_plain(at, max_bytes=_MAX_BYTES))
    except HostError as error:
        return CdiUnjudged(reason=str(error))


def _with_nodes(
    host: Host, found: Iterable[CdiFile], leftovers: Iterable[str], problems: Iterable[str]
) -> CdiSpecs:
    found = tuple(found)
    return CdiSpecs(
        files=found,
        leftovers=tuple(leftovers),
        nodes=MappingProxyType(_nodes(host, found)),
        problems=tuple(problems),
    )


def _nodes(host: Host, found: Iterable[CdiFile]) -> dict[str, NodeKind]:
    """Return what is at each host path, for as many as anybody could mean."""
    kinds: dict[str, NodeKind] = {}
    for file in found:
        if isinstance(file.content, CdiDocument):
            for path in _named(file.content.tree):
                if len(kinds) >= _MAX_NODES:
                    return kinds
                if path not in kinds:
                    kinds[path] = _kind(host, path)
    return kinds


def _named(tree: Any) -> Iterator[str]:
    """Yield the host paths of device nodes in a document of any form."""
    if not isinstance(tree, Mapping):
        return
    for holder in (tree, *(device for _, device in members(tree.get("devices")))):
        yield from filter(None, (host_path(node) for _, node in device_nodes(holder)))


def _kind(host: Host, path: str) -> NodeKind:
    if "\0" in path or not path.startswith("/"):
        return NodeKind.MISSING
    try:
        found = paths.status(host.path(path))
    except (HostError, ValueError):
        return NodeKind.MISSING
    if found is None:
        return NodeKind.MISSING
    return NodeKind.DEVICE if found.is_device else NodeKind.OTHER
