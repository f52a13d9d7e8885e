"""The command line of the lab."""

import argparse
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tests.lab import accelerator, machine, setup, terminal, tree
from tests.lab.errors import LabError, SetupNeededError
from tests.lab.topologies import TOPOLOGIES
from tests.lab.topology import Topology

_DEFAULT_TIMEOUT_S: Final = 600.0

_SHELL: Final = (
    *("env", f"TERM={os.environ.get('TERM', 'linux')}", "PS1=lab:\\w# "),
    *("bash", "--norc", "--noprofile", "-i"),
)

_DESCRIPTION: Final = """\
A virtual machine with a real Debian kernel, an emulated IOMMU and emulated GPUs, in which
the node agent can be tried and tested. No GPU, no KVM and no root are needed, except root
to install packages that are missing.

The guest's root is this machine's own, read-only under a writable overlay that is thrown
away: the checkout and its virtual environment are inside, at the same paths, as they are.
"""
_EPILOG: Final = """\
examples:
  scripts/lab setup                              get what the lab needs
  scripts/lab topology                           list the machines there are
  scripts/lab topology node                      show one: devices, bridges, IOMMU groups
  scripts/lab shell                              look around in it
  scripts/lab run -- lspci -nnk                  run one command in it
  scripts/lab run --topology switch -- .venv/bin/python -m kata_gpu --help
  pytest -m lab                                  run the tests that need it

exit status: that of the command (run); 0 done; 1 the lab failed; 2 wrong usage;
124 the command was ended by the deadline; 125 not set up.

environment: KATA_GPU_LAB_CACHE (kernels; default ~/.cache/kata-gpu/lab), KATA_GPU_LAB_YES=1
(as --yes), KATA_GPU_LAB_KERNEL (as --kernel), KATA_GPU_LAB_ACCEL (tcg or kvm, not probed).
"""


class ExitCode(IntEnum):
    """The statuses of the lab's own."""

    DONE = 0
    FAILED = 1
    DEADLINE = 124
    NOT_SET_UP = 125
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class _Deadline:
    """The end of a command's time."""

    at_s: float

    def passed(self) -> bool:
        return time.monotonic() >= self.at_s


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(_dispatch(options))
    except SetupNeededError as error:
        setup.say(str(error))
        return ExitCode.NOT_SET_UP
    except LabError as error:
        setup.say(str(error))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        setup.say("interrupted")
        return ExitCode.INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = argparse.ArgumentParser(add_help=False)
    wanted.add_argument("--yes", action="store_true", help="install and download without asking")
    wanted.add_argument(
        "--kernel",
        metavar="PACKAGE",
        default=os.environ.get("KATA_GPU_LAB_KERNEL"),
        help="a kernel package, such as one of backports (default: what linux-image-amd64 needs)",
    )
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument(
        "--topology",
        default="node",
        choices=sorted(TOPOLOGIES),
        metavar="NAME",
        help="which machine (default: node; see: scripts/lab topology)",
    )
    verbs.add_parser("setup", parents=[wanted], help="install and download what the lab needs")
    verbs.add_parser("shell", parents=[wanted, chosen], help="a root shell in a guest")
    run = verbs.add_parser("run", parents=[wanted, chosen], help="run a command in a guest")
    run.add_argument(
        "--timeout",
        type=float,
        default=_DEFAULT_TIMEOUT_S,
        metavar="S",
        help="end the guest after this many seconds (default: 600)",
    )
    run.add_argument("command", nargs="+", metavar="CMD", help="the command and its arguments")
    show = verbs.add_parser("topology", help="list the machines there are, or show one")
    show.add_argument("name", nargs="?", choices=sorted(TOPOLOGIES), metavar="NAME")
    verbs.add_parser("clean", help="remove the cache of kernels")
    return parser


def _dispatch(options: argparse.Namespace) -> int:
    match options.verb:
        case "topology":
            _print_topology(options.name)
        case "clean":
            setup.clean()
        case "setup":
            kernel = setup.prepare(_wanted(options))
            setup.say(f"kernel {kernel.release}, {accelerator.choose(kernel, setup.cache())}")
        case "shell":
            return _shell(TOPOLOGIES[options.topology], _wanted(options))
        case "run":
            return _run(options)
    return ExitCode.DONE


def _wanted(options: argparse.Namespace) -> setup.Wanted:
    agreed = options.yes or setup.Wanted.from_environment().agreed
    return setup.Wanted(kernel_package=options.kernel, agreed=agreed)


def _print_topology(name: str | None) -> None:
    if name is not None:
        sys.stdout.write(tree.render(TOPOLOGIES[name]))
        return
    for topology in TOPOLOGIES.values():
        sys.stdout.write(f"{topology.name:14} {topology.summary}\n")


def _shell(topology: Topology, wanted: setup.Wanted) -> int:
    if not sys.stdin.isatty():
        raise LabError("cannot open a shell: this is no terminal; use: scripts/lab run -- CMD")
    kernel = setup.prepare(wanted)
    accelerated = accelerator.choose(kernel, setup.cache())
    setup.say(f"booting {topology.name} with {kernel.release} under {accelerated} …")
    with machine.booted_with_retry(topology, kernel, accelerated) as guest:
        size = shutil.get_terminal_size()
        shell = machine.in_checkout(topology, shlex.join(_SHELL))
        terminal.connect(guest.become_terminal(shell, size.lines, size.columns))
    return ExitCode.DONE


def _run(options: argparse.Namespace) -> int:
    topology = TOPOLOGIES[options.topology]
    kernel = setup.prepare(_wanted(options))
    accelerated = accelerator.choose(kernel, setup.cache())
    setup.say(f"booting {topology.name} with {kernel.release} under {accelerated} …")
    started = time.monotonic()
    with machine.booted_with_retry(topology, kernel, accelerated) as guest:
        setup.say(f"ready after {time.monotonic() - started:.1f} s")
        job = guest.start(machine.in_checkout(topology, shlex.join(options.command)))
        deadline = _Deadline(time.monotonic() + options.timeout)
        status = None
        with job.following(sys.stdout) as follow:
            while status is None and not deadline.passed():
                status = guest.status(job)
                follow()
        if status is None:
            setup.say(f"the command ran for {options.timeout:g} s and was ended")
            setup.say(machine.tail(guest.console()))
            return ExitCode.DEADLINE
    return status
