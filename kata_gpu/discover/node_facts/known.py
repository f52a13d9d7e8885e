"""Where a fact that cannot be read becomes an unknown one."""

from collections.abc import Callable
from typing import TypeVar

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files
from kata_gpu.model.node_facts import Unknown

T = TypeVar("T")


def known(read: Callable[[], T]) -> T | Unknown:
    """Return what *read* returns, or why the host or the fact's own form forbids it."""
    try:
        return read()
    except (HostError, ValueError) as error:
        return Unknown(reason=str(error))


def text(host: Host, path: str) -> str:
    """Return the text of a file that every host has; HostError when this one has it not."""
    found = files.read(host.path(path))
    if found is None:
        raise HostError(f"cannot read {path}: it does not exist; is this the host's root?")
    return found
