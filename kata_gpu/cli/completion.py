"""``kata-gpu completion``: a script that teaches the shell our words."""

import argparse

import shtab

from kata_gpu.cli import parser
from kata_gpu.cli.exit_code import ExitCode


def completion(options: argparse.Namespace) -> int:
    """Print the completion script of one shell."""
    print(shtab.complete(parser.build(), shell=options.shell))
    return ExitCode.OK
