"""``kata-gpu run``: the daemon."""

import argparse

from kata_gpu.cli import configuration
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.settings.reading import Reading


def run(options: argparse.Namespace) -> int:
    """Hold the node to the blueprint until a signal ends it."""
    files = configuration.files(options)
    with Reading(files) as reading:
        from kata_gpu.cli import serving  # noqa: PLC0415 - while another process reads the files

        serving.serve(options, files, reading)
    return ExitCode.OK
