"""The link by which Kata is led to who knows a pod's devices, and whether somebody is there."""

from dataclasses import replace

from kata_gpu.host import Host, detour, listeners, paths
from kata_gpu.model.node_facts import AskedLink


def read(host: Host, path: str, *, kubelet: str, is_wanted: bool) -> AskedLink:
    """Return what is at *path*; where it leads is dialled, and nothing is said there.

    Raises:
        HostError: a folder on the way may not be searched.
    """
    at = host.path(path)
    found = AskedLink(path=path, kubelet=kubelet, is_wanted=is_wanted, is_there=paths.is_there(at))
    if not at.is_symlink():
        return found
    target = paths.link(at)
    there = host.path(target)
    return replace(
        found,
        target=target,
        leads_to_agent=detour.is_own_socket(target.rpartition("/")[2]),
        is_target_there=paths.is_there(there),
        is_served=listeners.is_served(there),
    )
