"""The handlers that a container runtime has, and which of its files has the last word on each.

containerd 2 merges tables; containerd 1 replaces the whole table of a plugin by that of the next
file. So a handler of an earlier file is gone there once a later one so much as names the plugin.

Source: containerd 1.7 and 2.2, cmd/containerd/server/config/config.go, mergeConfig; k0s,
docs/runtime.md, which merges by itself; CRI-O, pkg/config/config.go.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.model.blueprint import RuntimeKind
from kata_gpu.model.runtime import ContainerRuntime, RuntimeFile

CRI_V2: Final = "io.containerd.grpc.v1.cri"
CRI_V3: Final = "io.containerd.cri.v1.runtime"
_CRI: Final = (CRI_V3, CRI_V2, "cri")
_MERGES_FROM: Final = 2
_VERSION_THAT_MERGES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHandler:
    """A handler as one file has it; what is None is not said there."""

    name: str
    file: str
    shadowed_by: str | None
    """The file that takes it away; None when it is in force."""

    runtime_type: str | None
    shim: str | None
    config: str | None
    snapshotter: str | None


def merges_tables(runtime: ContainerRuntime) -> bool:
    """Tell whether a drop-in may say a part of what a plugin is told; no if nobody knows."""
    if runtime.kind is RuntimeKind.CRIO or runtime.is_managed:
        return True
    if runtime.version is not None:
        return int(runtime.version.split(".", 1)[0]) >= _MERGES_FROM
    version = config_version(runtime)
    return version is not None and version >= _VERSION_THAT_MERGES


def config_version(runtime: ContainerRuntime) -> int | None:
    """Return containerd's configuration version; None without a main file that can be read."""
    main = runtime.main
    return None if main is None else version_of(main)


def version_of(file: RuntimeFile) -> int | None:
    """Return the configuration version that a file is of: 1 where it says none."""
    if file.tables is None:
        return None
    version = file.tables.get("version", 1)
    return version if isinstance(version, int) else None


def found(runtime: ContainerRuntime) -> tuple[FoundHandler, ...]:
    """Return every handler of every file, in the order of reading."""
    last: dict[str, str] = {}
    each = [(file, _of(runtime, file)) for file in runtime.files]
    if not merges_tables(runtime):
        speaking = [file.path for file in runtime.files if has_plugin(file)]
        final = speaking[-1] if speaking else ""
        last = {name: final for file, names in each for name in names if file.path != final}
    else:
        last = {name: file.path for file, names in each for name in names}
    return tuple(
        _handler(file.path, name, table, last.get(name))
        for file, tables in each
        for name, table in tables.items()
    )


def has_plugin(file: RuntimeFile) -> bool:
    """Tell whether a file speaks of containerd's CRI plugin at all."""
    plugins = _table(file.tables or {}, "plugins")
    return any(name in plugins for name in _CRI)


def _of(runtime: ContainerRuntime, file: RuntimeFile) -> Mapping[str, Mapping[str, Any]]:
    tables = file.tables or {}
    if runtime.kind is RuntimeKind.CRIO:
        return _tables_in(_table(tables, "crio", "runtime", "runtimes"))
    merged: dict[str, Mapping[str, Any]] = {}
    for plugin in _CRI:
        merged |= _tables_in(_table(tables, "plugins", plugin, "containerd", "runtimes"))
    return merged


def _handler(file: str, name: str, table: Mapping[str, Any], last: str | None) -> FoundHandler:
    options = _table(table, "options")
    return FoundHandler(
        name=name,
        file=file,
        shadowed_by=last if last not in {None, file} else None,
        runtime_type=_text(table, "runtime_type"),
        shim=_text(table, "runtime_path"),
        config=_text(options, "ConfigPath") or _text(table, "runtime_config_path"),
        snapshotter=_text(table, "snapshotter"),
    )


def _table(tables: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return the table at a path of names; an empty one where there is none."""
    found: Any = tables
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _tables_in(table: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: value for name, value in table.items() if isinstance(value, Mapping)}


def _text(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    return value if isinstance(value, str) and value else None


def named(handlers: Iterable[FoundHandler], name: str) -> tuple[FoundHandler, ...]:
    """Return what the files have under a name, the one in force last."""
    return tuple(sorted((h for h in handlers if h.name == name), key=lambda h: not h.shadowed_by))
