r"""Which of VFIO's modules can be loaded, and what modprobe.d says about them.

Source: modprobe.d(5): files end in ``.conf``; one in a directory named earlier hides one of
the same name in a later; a line ends with ``\`` to go on; ``-`` and ``_`` are the same.
"""

from collections.abc import Iterable
from typing import Final

from kata_gpu.discover.node_facts.known import known, text
from kata_gpu.host import Host, files, paths
from kata_gpu.model.node_facts import ModuleFacts, ModuleRule

VFIO_MODULES: Final = ("vfio", "vfio_iommu_type1", "vfio_pci_core", "vfio_pci")
_DIRECTORIES: Final = (
    *("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d"),
    *("/usr/lib/modprobe.d", "/lib/modprobe.d"),
)
_VERBS: Final = frozenset({"blacklist", "install", "options"})
_MODULE: Final = 2
_LISTS_MAX_BYTES: Final = 64 << 20


def read(host: Host) -> ModuleFacts:
    """Return what modprobe would go by."""
    release = known(lambda: text(host, "/proc/sys/kernel/osrelease").strip())
    name = release if isinstance(release, str) else "unknown"
    folder = f"/lib/modules/{name}"
    return ModuleFacts(
        release=name,
        has_folder=known(lambda: bool(paths.names(host.path(folder))))
        if isinstance(release, str)
        else release,
        loadable=known(lambda: _loadable(host, folder)),
        loaded=known(lambda: frozenset(host.sysfs.names("module"))),
        rules=known(lambda: tuple(_rules(host))),
    )


def _loadable(host: Host, folder: str) -> frozenset[str]:
    """Return those of VFIO that are built in, or in the list of files that modprobe reads."""
    found: set[str] = set()
    for name in ("modules.builtin", "modules.dep"):
        listed = files.read(host.path(f"{folder}/{name}"), max_bytes=_LISTS_MAX_BYTES) or ""
        for line in listed.splitlines():
            path = line.partition(":")[0]
            found.add(path.rpartition("/")[2].partition(".ko")[0].replace("-", "_"))
    return frozenset(found & set(VFIO_MODULES))


def _rules(host: Host) -> Iterable[ModuleRule]:
    for path in _files(host):
        content = files.read(host.path(path)) or ""
        for line in content.replace("\\\n", " ").splitlines():
            words = line.split(None, _MODULE)
            if len(words) < _MODULE or words[0] not in _VERBS:
                continue
            module = words[1].replace("-", "_")
            if module in VFIO_MODULES:
                rest = words[_MODULE] if len(words) > _MODULE else ""
                yield ModuleRule(file=path, verb=words[0], module=module, rest=rest)


def _files(host: Host) -> tuple[str, ...]:
    """Return the files that count, in the order of their names."""
    chosen: dict[str, str] = {}
    for directory in _DIRECTORIES:
        for name in paths.names(host.path(directory)):
            path = f"{directory}/{name}"
            if name.endswith(".conf") and name not in chosen and _is_file(host, path):
                chosen[name] = path
    return tuple(chosen[name] for name in sorted(chosen))


def _is_file(host: Host, path: str) -> bool:
    found = paths.status(host.path(path))
    return found is not None and found.is_file
