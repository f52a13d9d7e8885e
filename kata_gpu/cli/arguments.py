"""What the verbs of the command line are made of: parsers, and the options that several take."""

import argparse
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.cli.output import FORMATS

if TYPE_CHECKING:
    from kata_gpu.model.pci import PciAddress

Verb = Callable[[argparse.Namespace], int]

_FORMAT: Final = "table and wide, which tells more, are for people; json and yaml for programs"
_POD_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


class _Help(argparse.HelpFormatter):
    """argparse makes one for each argument, and asks shutil for the width each time."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, width=_width(), **options)


class _ExamplesHelp(_Help):
    """Help whose epilog keeps its lines, and whose description does not."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("for example:"):
            return "".join(f"{indent}{line}" for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


class OverviewHelp(_Help, argparse.RawDescriptionHelpFormatter):
    """Help whose epilog keeps its lines."""


@functools.cache
def _width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns - 2
    except (OSError, ValueError):  # no terminal
        return 98


class Parser(argparse.ArgumentParser):
    """argparse, less its exit status 2, which says "there are changes" here."""

    def error(self, message: str) -> NoReturn:
        """End with the exit status of wrong usage."""
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: cannot understand this: {message}\n")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def group(verbs: Verbs, name: str, summary: str, description: str, epilog: str) -> Verbs:
    """Add a verb that is nothing without one of those below it, and return these."""
    parser = verbs.add_parser(
        name, help=summary, description=description, epilog=epilog, formatter_class=OverviewHelp
    )
    return parser.add_subparsers(
        title="verbs", metavar="VERB", required=True, prog=f"kata-gpu {name}"
    )


def verb(
    verbs: Verbs,
    name: str,
    module: str,
    summary: str,
    description: str,
    function: str | None = None,
    *,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """Add the verb *name*, which is *function* of a module of this room, or of its own name."""
    form = _Help if epilog is None else _ExamplesHelp
    parser = verbs.add_parser(
        name, help=summary, description=description, epilog=epilog, formatter_class=form
    )

    def call(options: argparse.Namespace) -> int:
        work: Verb = getattr(importlib.import_module(f"kata_gpu.cli.{module}"), function or name)
        return work(options)

    parser.set_defaults(verb=call, log_level=None)
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="log every detail")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where the host's file system is mounted (default: /)",
    )
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="the agent's settings (default: /etc/kata-gpu/agent.toml, if it is there)",
    )


def address(text: str) -> "PciAddress":
    """Return the PCI address; argparse says what is wrong with any other text."""
    from kata_gpu.model.pci import PciAddress  # noqa: PLC0415 - for the verbs that take one

    try:
        return PciAddress.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def subject(text: str) -> "PciAddress | None":
    """Return the device that is asked about; None when a pod is."""
    return None if text == "pod" else address(text)


def pod(text: str) -> tuple[str, str]:
    """Return namespace and name."""
    namespace, slash, name = text.partition("/")
    if not (slash and _POD_NAME.fullmatch(namespace) and _POD_NAME.fullmatch(name)):
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is no pod: write NAMESPACE/NAME, as in ml/train-0"
        )
    return namespace, name


def add_blueprint(parser: argparse.ArgumentParser) -> None:
    """Let the blueprint be another file."""
    parser.add_argument(
        "--blueprint",
        type=Path,
        metavar="FILE",
        help="what the node should be (default: from the settings)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Let the form of what is printed be chosen."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help=_FORMAT)


def add_consent(parser: argparse.ArgumentParser) -> None:
    """Let the question be answered beforehand."""
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
