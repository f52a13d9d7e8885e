"""``kata-gpu metrics``: the running agent's metrics, for Prometheus by way of node_exporter."""

import argparse
from pathlib import Path

from kata_gpu.cli import status
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.host import files
from kata_gpu.observe import client


def metrics(options: argparse.Namespace) -> int:
    """Print the metrics, or replace a file by them; without an agent the file stays as it is."""
    text = client.get_text(status.socket(options), "/metrics")
    if options.output is None:
        print(text, end="")
    else:
        path: Path = options.output.absolute()
        files.replace(path, text, staging=path.parent)
    return ExitCode.OK
