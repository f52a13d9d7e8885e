"""What the options say about where the host is."""

import argparse
from pathlib import Path

from kata_gpu.errors import HostError
from kata_gpu.host import Host


def host(options: argparse.Namespace) -> Host:
    """Return the host at --root."""
    return Host.at(_root(options))


def working_host(options: argparse.Namespace, timeout_s: float) -> Host:
    """Return the host at --root, to be changed; to be called before any thread starts."""
    return Host.at(_root(options), timeout_s=timeout_s, threads=True)


def _root(options: argparse.Namespace) -> Path:
    """Return --root; HostError where it is no folder, which would look like a node with nothing."""
    root: Path = options.root
    try:
        is_folder = root.is_dir()
    except OSError as error:
        raise HostError(f"cannot look at a host below {root}: {error.strerror}") from error
    if not is_folder:
        raise HostError(
            f"cannot look at a host below {root}: there is no such folder; --root is where the "
            f"host's file system is mounted"
        )
    return root.absolute()
