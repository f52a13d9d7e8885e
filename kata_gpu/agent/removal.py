"""What of this agent is on a node beside units and published files, and how it goes.

The ledger goes after everything that it names, and the lock after the ledger: a removal that
is killed is finished by the next.
"""

import re
from collections.abc import Iterator
from typing import Final

from kata_gpu.act import owned_files
from kata_gpu.act.journal import Journal
from kata_gpu.agent import temporaries
from kata_gpu.host import Host, detour, files, paths
from kata_gpu.model.kubernetes import DRIVERS
from kata_gpu.model.ledger import Ledger
from kata_gpu.publish.kubelet.device_metadata import FOLDER, DeviceMetadata, is_spec
from kata_gpu.publish.kubelet.prepared import Home
from kata_gpu.settings.agent import Kubernetes, Settings

_OURS: Final = "kata-gpu"
_IN_PLUGINS: Final = re.compile(
    r"checkpoint\.json|serialize\.lock|agent-[^/]+\.lock|dra-[^/]+\.sock|\.kata-gpu-[0-9a-f]+"
)
_IN_REGISTRY: Final = re.compile(rf"({'|'.join(map(re.escape, DRIVERS))})-[^/]+-reg\.sock")
_IN_DEVICE_PLUGINS: Final = re.compile(r"kata-gpu-.+-[0-9a-z]{1,32}\.sock")


def remains(host: Host, settings: Settings, ledger: Ledger) -> tuple[str, ...]:
    """Return what no step of a release removes, in the order in which it goes.

    *ledger* names the files near which a killed agent may have left half-written ones.

    Raises:
        HostError: a folder may not be looked into.
    """
    link = settings.pod_resources_link
    last = (link, f"{link}{detour.LOCK}", settings.socket, settings.ledger, settings.lock)
    found = (path for path in last if paths.is_there(host.path(path)))
    return (
        *temporaries.find(host, settings, ledger),
        *_sockets(host, settings),
        *_near_kubelet(host, settings),
        *_of_claims(host, settings),
        *found,
    )


def sweep(host: Host, settings: Settings) -> None:
    """Remove what workloads may read of their devices; their claims are void with us.

    Before the release, so that the folders which we made can go. HostError: it cannot be removed.
    """
    for driver, directory in zip(DRIVERS, _plugins(settings), strict=True):
        home = Home(driver=driver, pool="", agent="uninstall", directory=host.path(directory))
        DeviceMetadata(home, host.path(settings.cdi_directory), is_wanted=False).sweep({})
        files.remove_empty(home.directory / FOLDER)


def directories(host: Host, settings: Settings) -> tuple[str, ...]:
    """Return the folders that are ours by their place or name, and go if nothing is in them."""
    found = [settings.state_directory, *_plugins(settings)]
    runtime = settings.runtime_directory
    if runtime.rpartition("/")[2].startswith(_OURS):
        found.append(runtime)
    return tuple(path for path in dict.fromkeys(found) if paths.is_there(host.path(path)))


def finish(host: Host, settings: Settings, journal: Journal, known: Ledger) -> None:
    """Remove all that is left after a release of everything; idempotent.

    *known* is the ledger before that release. The lock is held by who calls.

    Raises:
        HostError: something cannot be removed; what comes after it is still there.
    """
    owned_files.remove_directories(host, journal)
    for path in dict.fromkeys((*remains(host, settings, known), settings.lock)):
        files.remove(host.path(path), follow=True)
    for path in directories(host, settings):
        at = host.path(path)
        if not at.is_symlink():  # an admin's, like what it leads to
            files.remove_empty(at)


def _plugins(settings: Settings) -> tuple[str, ...]:
    """Return the folders of the DRA drivers, each named after its own."""
    return tuple(map((settings.kubernetes or Kubernetes()).plugin_directory, DRIVERS))


def _of_claims(host: Host, settings: Settings) -> Iterator[str]:
    """Yield what workloads may read of their devices: the specs that mount it, and the folders."""
    for name in files.names(host.path(settings.cdi_directory)):
        if any(is_spec(name, driver) for driver in DRIVERS):
            yield f"{settings.cdi_directory}/{name}"
    for directory in _plugins(settings):
        if paths.is_there(host.path(f"{directory}/{FOLDER}")):
            yield f"{directory}/{FOLDER}"


def _near_kubelet(host: Host, settings: Settings) -> Iterator[str]:
    """Yield what agents left in kubelet's folders: checkpoints, locks, and dead ones' sockets.

    Claims that are still prepared are void with their driver: no VM has a device of theirs.
    """
    kubelet = (settings.kubernetes or Kubernetes()).kubelet_directory
    places = {
        **dict.fromkeys(_plugins(settings), _IN_PLUGINS),
        f"{kubelet}/plugins_registry": _IN_REGISTRY,
        f"{kubelet}/device-plugins": _IN_DEVICE_PLUGINS,
    }
    for directory, pattern in places.items():
        for name in files.names(host.path(directory)):
            if pattern.fullmatch(name):
                yield f"{directory}/{name}"


def _sockets(host: Host, settings: Settings) -> Iterator[str]:
    """Yield the sockets for Kata that killed agents left."""
    directory = settings.runtime_directory
    for name in files.names(host.path(directory)):
        if detour.is_own_socket(name):
            yield f"{directory}/{name}"
