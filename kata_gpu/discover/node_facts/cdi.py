"""All CDI specs of the node, whoever wrote them: one bad file fails every pod.

Only what several readers agree on is taken from them. Files of others are read and never
changed.

Source: Container Device Interface pkg/cdi: files that end in ``.json`` or ``.yaml`` are
specs, hidden ones too, and folders below are not looked into.
"""

from collections.abc import Iterable
from typing import Any, Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files, paths
from kata_gpu.model.node_facts import BrokenCdiFile, CdiFacts, CdiFile, UnreadCdiFile

_DIRECTORIES: Final = ("/etc/cdi", "/var/run/cdi")
_SUFFIXES: Final = (".json", ".yaml")
_MAX_BYTES: Final = 1 << 20
_MAX_DEPTH: Final = 64


def read(host: Host, ours: str) -> CdiFacts:
    """Return the specs in the folders that readers know, and in *ours*."""
    found: list[CdiFile | BrokenCdiFile | UnreadCdiFile] = []
    leftovers = []
    for path in _paths(host, (*_DIRECTORIES, ours)):
        if path.endswith(_SUFFIXES):
            found.append(_file(host, path))
        else:
            leftovers.append(path)
    return CdiFacts(files=tuple(found), leftovers=tuple(leftovers))


def _paths(host: Host, directories: Iterable[str]) -> Iterable[str]:
    """Yield every file of the folders, each folder once whatever its names are."""
    seen = set()
    for directory in directories:
        real = files.resolve(directory, root=host.root)
        if real is None or real in seen:
            continue
        seen.add(real)
        for name in paths.names(host.path(real)):
            found = paths.status(host.path(f"{real}/{name}"))
            if found is None or not found.is_directory:
                yield f"{directory}/{name}"


def _file(host: Host, path: str) -> CdiFile | BrokenCdiFile | UnreadCdiFile:
    try:
        return _spec(host, path, _parsed(path, _content(host, path)))
    except HostError as error:
        return UnreadCdiFile(path=path, reason=str(error))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return BrokenCdiFile(path=path, reason=_reason(error))


def _content(host: Host, path: str) -> str:
    directory, _, name = path.rpartition("/")
    at = host.path(f"{files.resolve(directory, root=host.root)}/{name}")
    found = paths.status(at)
    if found is None or not found.is_file:
        raise ValueError("it is no file")
    return files.read(at, max_bytes=_MAX_BYTES) or ""


def _reason(error: Exception) -> str:
    match error:
        case KeyError():
            return f"key {error} is missing"
        case ValueError():
            return " ".join(str(error).split())
        case _:
            return "it has not the form of a CDI spec"


def _parsed(path: str, content: str) -> Any:
    if not path.endswith(".json"):
        return _parsed_yaml(path, content)
    import json  # noqa: PLC0415 - for who has a spec

    return json.loads(content)


def _parsed_yaml(path: str, content: str) -> Any:
    """Return what YAML *content* says, unless it is made to grow when it is read."""
    import yaml  # noqa: PLC0415 - most nodes have no spec in YAML

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
                raise HostError(f"cannot judge {path}: it uses aliases, or is nested too deeply")
        return yaml.load(content, Loader=loader)  # noqa: S506 - a safe loader, in C where it is
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _spec(host: Host, path: str, spec: Any) -> CdiFile:
    devices = spec["devices"]
    edits = [spec.get("containerEdits") or {}, *(device["containerEdits"] for device in devices)]
    nodes = [node for edit in edits for node in edit.get("deviceNodes") or ()]
    return CdiFile(
        path=path,
        version=_word(spec["cdiVersion"]),
        kind=_word(spec["kind"]),
        devices=tuple(_word(device["name"]) for device in devices),
        missing_nodes=tuple(_missing(host, nodes)),
    )


def _missing(host: Host, nodes: Iterable[Any]) -> Iterable[str]:
    for path in dict.fromkeys(_word(node.get("hostPath") or node["path"]) for node in nodes):
        found = paths.status(host.path(path)) if "\0" not in path else None
        if found is None or not found.is_device:
            yield path


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
