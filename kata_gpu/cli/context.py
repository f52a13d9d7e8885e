"""What the options say about where the host is."""

import argparse
from pathlib import Path

from kata_gpu.host import Host


def host(options: argparse.Namespace) -> Host:
    """Return the host at --root."""
    root: Path = options.root
    return Host.at(root.absolute())
