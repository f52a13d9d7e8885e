"""This run of the kernel, told from all others: what is kept for it alone is void after it."""

from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files

_PATH: Final = "/proc/sys/kernel/random/boot_id"
_MAX_BYTES: Final = 64


def identity(host: Host) -> str:
    """Return a word that no other boot has, of this machine or another; HostError without one."""
    found = (files.read(host.path(_PATH), max_bytes=_MAX_BYTES) or "").strip()
    if not found.isprintable() or not found:
        raise HostError(f"cannot tell this boot from others: {_PATH} holds {found!r}")
    return found
