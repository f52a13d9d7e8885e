"""Foreign files that were moved out of the way, each by the name that says where it was."""

from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files
from kata_gpu.model.inventory import SetAside

_PREFIX: Final = "%2F"


def read(host: Host, directory: str) -> tuple[SetAside, ...]:
    """Return what *directory* keeps; names that say no path are somebody else's."""
    return tuple(
        SetAside(
            path=path(name),
            kept=f"{directory}/{name}",
            is_half_done=_is_half_done(host, path(name), f"{directory}/{name}"),
        )
        for name in files.names(host.path(directory))
        if name.startswith(_PREFIX)
    )


def path(name: str) -> str:
    """Return the path that *name* says; the opposite of `plan.quarantine.name`."""
    return name.replace("%2F", "/").replace("%25", "%")


def _is_half_done(host: Host, was: str, kept: str) -> bool:
    folder, _, last = was.rpartition("/")
    try:
        real = files.resolve(folder, root=host.root)
    except HostError:
        return False
    return real is not None and files.is_moved(host.path(f"{real}/{last}"), host.path(kept))
