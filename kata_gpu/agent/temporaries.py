"""Half-written files that a killed agent left, wherever files of ours are made or moved to.

The ledger names every file before it is written for the first time, and what is in quarantine
says where it was; so nobody need know whose folder it is.
"""

import logging
from collections.abc import Iterator

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files
from kata_gpu.model.inventory import quarantined_path
from kata_gpu.model.ledger import Ledger
from kata_gpu.settings.agent import Settings

log = logging.getLogger(__name__)


def find(host: Host, settings: Settings, ledger: Ledger) -> Iterator[str]:
    """Yield their paths."""
    for directory in _near(host, settings, ledger):
        for name in files.names(host.path(directory)):
            if name.startswith(files.TEMPORARY):
                yield f"{directory}/{name}"


def sweep(host: Host, settings: Settings, ledger: Ledger) -> None:
    """Remove them; one that cannot be removed harms nobody, and is told. The lock is held."""
    for path in find(host, settings, ledger):
        try:
            files.remove(host.path(path), follow=True)
        except HostError as error:
            log.warning("%s", error)
        else:
            log.warning("removed %s, which a killed agent left", path)


def _near(host: Host, settings: Settings, ledger: Ledger) -> tuple[str, ...]:
    """Return the folders of the files, and those above, where drop-ins are made."""
    found = [settings.state_directory, settings.cdi_directory, settings.quarantine]
    if settings.kubernetes is not None and settings.kubernetes.features_directory is not None:
        found.append(settings.kubernetes.features_directory)
    set_aside = map(quarantined_path, files.names(host.path(settings.quarantine)))
    for path in (*ledger.files, *set_aside):
        folder = path.rpartition("/")[0]
        found += [folder, folder.rpartition("/")[0]]
    return tuple(path for path in dict.fromkeys(found) if path)
