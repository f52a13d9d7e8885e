"""What the options say about where the host is."""

import argparse
from pathlib import Path

from kata_gpu.host import Host


def host(options: argparse.Namespace) -> Host:
    """Return the host at --root."""
    root: Path = options.root
    return Host.at(root.absolute())


def working_host(options: argparse.Namespace, timeout_s: float) -> Host:
    """Return the host at --root, to be changed; to be called before any thread starts."""
    root: Path = options.root
    return Host.at(root.absolute(), timeout_s=timeout_s, threads=True)
