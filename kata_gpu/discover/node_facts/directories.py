"""The folders we write to, and the file systems under them."""

from kata_gpu.discover.node_facts.known import known
from kata_gpu.errors import HostError
from kata_gpu.host import Host, files, paths
from kata_gpu.model.node_facts import Directory, FileSystem

_WRITTEN = ("bus/pci", "devices")
"""What a rebind writes to: either may be a mount of its own in a container."""


def sysfs(host: Host) -> FileSystem:
    """Return the first of the file systems under sysfs that is not sysfs or is read-only."""
    found = [
        paths.file_system(host.sysfs.root / place, proc=host.path("/proc")) for place in _WRITTEN
    ]
    return next((fs for fs in found if fs.kind != "sysfs" or fs.is_read_only), found[0])


def read(host: Host, path: str) -> Directory:
    """Return the folder at *path*, or the nearest one above that exists."""
    existing = files.resolve(path, root=host.root)
    above = path
    while existing is None and above:
        above = above.rpartition("/")[0]
        existing = files.resolve(above or "/", root=host.root)
    at = host.path(existing or "/")
    status = paths.status(at)
    if status is None:
        raise HostError(f"cannot look at {path}: it has gone meanwhile; try again")
    return Directory(
        path=path,
        existing=existing or "/",
        is_directory=status.is_directory,
        owner=status.owner,
        mode=status.mode,
        file_system=known(lambda: paths.file_system(at, proc=host.path("/proc"))),
    )
