"""Foreign files that were moved out of the way, each by the name that says where it was."""

from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files, paths
from kata_gpu.model.inventory import SetAside, quarantined_path

_PREFIX: Final = "%2F"


def read(host: Host, directory: str) -> tuple[SetAside, ...]:
    """Return what *directory* keeps; names that say no path are somebody else's."""
    names = files.names(host.path(directory))
    return tuple(_look(host, directory, name) for name in names if name.startswith(_PREFIX))


def _look(host: Host, directory: str, name: str) -> SetAside:
    was, kept = quarantined_path(name), f"{directory}/{name}"
    folder, _, last = was.rpartition("/")
    is_half_done, is_taken = False, False
    try:
        real = files.resolve(folder, root=host.root)
        if real is not None:
            place = host.path(f"{real}/{last}")
            is_taken = paths.is_there(place)
            is_half_done = is_taken and files.is_moved(place, host.path(kept))
    except HostError:
        is_taken = True
    return SetAside(path=was, kept=kept, is_half_done=is_half_done, is_taken=is_taken)
