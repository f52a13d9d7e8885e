"""The ``kata-gpu`` command: parse, one call, print. The only room that exits."""

import os
import sys
from collections.abc import Sequence
from typing import Never

from kata_gpu.cli import parser
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import KataGpuError


def main(argv: Sequence[str] | None = None) -> Never:
    """Run the command line and exit with its status."""
    sys.exit(_status(argv))


def _status(argv: Sequence[str] | None) -> int:
    options = parser.build().parse_args(argv)
    _log_to_stderr("DEBUG" if options.verbose else options.log_level)
    try:
        status = int(options.verb(options))
        sys.stdout.flush()  # here a reader that has gone can still be told from an error
    except KataGpuError as error:
        print(f"kata-gpu: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except KeyboardInterrupt:
        print("kata-gpu: interrupted", file=sys.stderr)
        return ExitCode.FAILED
    else:
        return status


def _log_to_stderr(level: str | None) -> None:
    """Log as the journal likes it under systemd, with times elsewhere; None logs nothing."""
    if level is None:
        return
    import logging  # noqa: PLC0415 - looking at a node does not need it

    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=level, format=f"{stamp}%(levelname)s %(message)s", stream=sys.stderr)
