"""``kata-gpu completion``: a script that teaches the shell our words."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import shtab

from kata_gpu.cli import parser
from kata_gpu.cli.exit_code import ExitCode

_DIRECTORY: Final = "DIR"
"""What an argument is called, in its help, that takes a folder."""


def completion(options: argparse.Namespace) -> int:
    """Print the completion script of one shell."""
    whole = parser.build()
    for action in _actions(whole):
        if action.type is Path:  # shtab completes no path unless it is told
            is_folder = action.metavar == _DIRECTORY
            vars(action)["complete"] = shtab.DIRECTORY if is_folder else shtab.FILE
    print(shtab.complete(whole, shell=options.shell))
    return ExitCode.OK


def _actions(found: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all verbs below it."""
    for action in found._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
