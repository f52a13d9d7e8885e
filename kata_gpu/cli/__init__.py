"""The ``kata-gpu`` command: parse, one call, print. The only room that exits."""

import errno
import gc
import os
import sys
from collections.abc import Sequence
from typing import Final, Never

from kata_gpu.cli import parser
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import KataGpuError

_UNWRITTEN: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
"""What a file says that standard output goes to and that cannot be written to."""


def main(argv: Sequence[str] | None = None) -> Never:
    """Run the command line and exit with its status."""
    os.umask(os.umask(0) | 0o022)  # before a folder is made: it is root's to write to
    gc.disable()  # a verb makes what it prints and ends; only the daemon has use for a collector
    status = _status(argv)
    gc.freeze()  # and at the exit there is nothing to look through
    sys.exit(status)


def _status(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    options = parser.build(words[0] if words else None).parse_args(words)
    _log_to_stderr("DEBUG" if options.verbose else options.log_level)
    try:
        status = int(options.verb(options))
        sys.stdout.flush()  # here a reader that has gone can still be told from an error
    except KataGpuError as error:
        from kata_gpu.cli import output  # noqa: PLC0415 - most end without

        print(output.plain(f"kata-gpu: {error}{_advice(error)}"), file=sys.stderr)
        return ExitCode.FAILED
    except BrokenPipeError:  # the reader has seen enough
        _print_no_more()
        return ExitCode.FAILED
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            raise
        print(f"kata-gpu: cannot write all that it has to say: {error.strerror}", file=sys.stderr)
        _print_no_more()
        return ExitCode.FAILED
    except KeyboardInterrupt:
        print("kata-gpu: interrupted", file=sys.stderr)
        return ExitCode.FAILED
    else:
        return status


def _print_no_more() -> None:
    """Have what is not written yet go nowhere, or Python says at the exit that it cannot be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _advice(error: BaseException) -> str:
    """Return what to do about what another user could; the kernel's word for it is no help."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    return "; run it as root" if cause is not None and os.geteuid() else ""


def _log_to_stderr(level: str | None) -> None:
    """Log as the journal likes it under systemd, with times elsewhere; None logs nothing."""
    if level is None:
        return
    import logging  # noqa: PLC0415 - looking at a node does not need it

    from kata_gpu.cli.log_lines import OneLine  # noqa: PLC0415 - as logging

    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(f"{stamp}%(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
