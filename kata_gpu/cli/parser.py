"""The words of the command line, and what each is good for.

Verbs are imported when they run: ``kata-gpu status`` must not pay for what ``run`` needs.
"""

import argparse
import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from kata_gpu import __version__
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.cli.output import FORMATS

if TYPE_CHECKING:
    from kata_gpu.model.pci import PciAddress

_EPILOG: Final = """\
a first look at a node:
  kata-gpu doctor                    is this node fit for passthrough, and if not, what to do
  kata-gpu inventory                 what is here, and what may be passed through
  kata-gpu plan                      what the blueprint would change, and why
  kata-gpu apply --dry-run           the same, at the place where it would be done
  kata-gpu apply                     do it, after asking
  kata-gpu status                    what the running agent says
  kata-gpu explain 0000:41:00.0      why is this GPU not available, and what to do
  kata-gpu runtime check             which handler of containerd or CRI-O leads where
  kata-gpu release --all             give everything back
  kata-gpu uninstall --dry-run       what would be removed with the agent

files: /etc/kata-gpu/agent.toml (optional), /etc/kata-gpu/blueprint.toml
exit status: 0 in order or done, 1 failed, 2 plan has steps, 3 refused, unfit or not available,
64 wrong usage
"""

Verb = Callable[[argparse.Namespace], int]


class _Help(argparse.HelpFormatter):
    """argparse makes one for each argument, and asks shutil for the width each time."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, width=_width(), **options)


class _OverviewHelp(_Help, argparse.RawDescriptionHelpFormatter):
    """Help whose epilog keeps its lines."""


@functools.cache
def _width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns - 2
    except (OSError, ValueError):  # no terminal
        return 98


class _Parser(argparse.ArgumentParser):
    """argparse, less its exit status 2, which says "there are changes" here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: cannot understand this: {message}\n")


_Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"


def build(asked: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line; of the verb *asked* alone, if there is such a one.

    Making all of them takes longer than some verbs do.
    """
    parser = _Parser(
        prog="kata-gpu",
        description="Give whole GPUs of this node to Kata pod VMs, and give them back.",
        epilog=_EPILOG,
        formatter_class=_OverviewHelp,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # prog is given, or argparse formats a usage to find it out, for which it imports shutil
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, prog=parser.prog)
    for name, add in _VERBS.items():
        if asked not in _VERBS or asked == name:
            add(verbs, name)
    return parser


def _add_inventory(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "inventory",
        "show GPUs, their company and their IOMMU groups",
        "Read sysfs once and show every GPU, NVSwitch, companion function and bridge above "
        "them, with the verdict whether its IOMMU group may be given to a VM. Changes nothing "
        "and needs no blueprint and no agent.",
    )
    parser.add_argument("--all", action="store_true", help="show every PCI function")
    _add_output(parser)


def _add_doctor(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "doctor",
        "tell whether this node is fit for GPU passthrough, and what to do",
        "Check the whole node: IOMMU, VFIO, kernel settings, privileges, folders, CDI specs, and "
        "who else moves devices. Each check is ok, info, warning or error, with why it matters "
        "and what to do. Changes nothing; needs no blueprint and no agent. Exits 0 when no check "
        "is an error, 3 when one is; warnings do not count.",
    )
    parser.add_argument(
        "--only",
        type=lambda ids: ids.split(","),
        metavar="ID[,ID]",
        help="these checks alone; their ids are in the output and do not change",
    )
    _add_output(parser)


def _add_status(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "status",
        "show what the running agent says",
        "Ask the agent on its status socket. The same as JSON: "
        "curl --unix-socket /run/kata-gpu/status.sock http://localhost/v1/status",
    )
    parser.add_argument("--socket", type=Path, help="the agent's socket (default: from agent.toml)")
    _add_output(parser)


def _add_explain(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "explain",
        "tell why a GPU is not available, and what to do",
        "Say of one device what it is, which unit and pool it belongs to, what is in the way, who "
        "has it, what was done to it, and what makes it available. Asks the agent, and looks "
        "itself where none runs; changes nothing. Exits 0 when it can be had, is had, or is "
        "where the blueprint wants it, 3 when not.",
    )
    parser.add_argument(
        "device",
        type=_address,
        metavar="UNIT|ADDRESS",
        help="PCI address of a unit or of any function near it, as in 0000:41:00.0",
    )
    _add_blueprint(parser)
    _add_output(parser)


def _add_clear(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "clear",
        "take units out of quarantine",
        "Show what is known against each unit, ask, and let pods have it again: on your word "
        "that nothing of its last user is left in it. Asks the agent, and does it itself where "
        "none runs.",
    )
    parser.add_argument(
        "unit", nargs="+", type=_address, metavar="UNIT", help="a unit's PCI address"
    )
    _add_consent(parser)


def _add_plan(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "change",
        "show what the blueprint would change, and why",
        "Compare the node with the blueprint and print every step. Changes nothing. Exits 0 "
        "when there is nothing to do, 2 when there is, 3 when something is refused and there "
        "is nothing else to do.",
    )
    _add_blueprint(parser)
    _add_output(parser)


def _add_apply(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "change",
        "make the node what the blueprint says",
        "Print the plan, ask, and take its steps; each is verified, and undone if it fails. A "
        "device that somebody uses is not taken. Refused while the agent runs, which does this "
        "by itself.",
    )
    parser.set_defaults(log_level="CRITICAL")  # it prints each step and why it failed
    _add_blueprint(parser)
    _add_consent(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def _add_release(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "change",
        "give devices back to the driver they came from",
        "Withdraw units from the CDI spec, return their functions to the drivers the ledger "
        "remembers, and clear the overrides; with --all also remove every file that is ours. The "
        "address of a physical function stands for its virtual ones; those that we made are "
        "removed, as they are with --all. "
        "Needs no blueprint. Stop the agent first, or it binds them again.",
    )
    parser.set_defaults(log_level="CRITICAL")
    parser.add_argument(
        "unit", nargs="*", metavar="UNIT", help="PCI address of a unit, or of a parent of units"
    )
    parser.add_argument("--all", action="store_true", help="every unit, and all our files")
    _add_consent(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def _add_uninstall(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "uninstall",
        "give everything back, and leave nothing of kata-gpu on the node",
        "Give every unit back as release --all does, and remove every file of ours, the folders "
        "that were made for them if nothing else is in them, and last the ledger. Refused as a "
        "whole while somebody has a unit, and while an agent runs. What you wrote, in "
        "/etc/kata-gpu, stays. Example: kata-gpu uninstall --dry-run",
    )
    parser.set_defaults(log_level="CRITICAL")
    _add_consent(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would go, and stop")


def _add_runtime(verbs: _Verbs, name: str) -> None:
    parser = verbs.add_parser(
        name,
        help="show how containerd or CRI-O is wired to Kata, and render the cluster's classes",
        description="kata-gpu runtime check tells which handler leads where; kata-gpu runtime "
        "render prints the RuntimeClasses and DeviceClasses that go with the blueprint.",
        formatter_class=_Help,
    )
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, prog=f"kata-gpu {name}"
    )
    check = _verb(
        actions,
        "check",
        "runtime",
        "tell which handler leads where, and what is wrong",
        "Read the container runtime's configuration as it does, and show each Kata handler: the "
        "file that has the last word on it, its shim, its base file, its RuntimeClass; what hides "
        "what, what the blueprint misses, and what must be restarted. With -o wide also the "
        "tables of our own handlers, to be added by hand where no drop-in can be. Changes nothing. "
        "Exits 3 when something is wrong or refused. Example: kata-gpu runtime check -o wide",
    )
    _add_blueprint(check)
    _add_output(check)
    render = _verb(
        actions,
        "render",
        "runtime",
        "print RuntimeClasses and DeviceClasses for the blueprint",
        "Print the RuntimeClass of each handler and the DeviceClasses as YAML, for kubectl apply. "
        "Example: kata-gpu runtime render | kubectl apply -f -",
    )
    _add_blueprint(render)
    render.add_argument(
        "--directory", type=Path, metavar="DIR", help="write a file for each class there instead"
    )


def _add_run(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "run",
        "hold the node to the blueprint (the daemon)",
        "Apply the blueprint, watch for changes, repair them, and answer on the status socket, "
        "until SIGTERM, which unbinds nothing. SIGHUP reads the blueprint again.",
    )
    parser.set_defaults(log_level="INFO")
    _add_blueprint(parser)


def _add_completion(verbs: _Verbs, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "completion",
        "print a completion script for your shell",
        "For bash: source <(kata-gpu completion bash)",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _verb(
    verbs: _Verbs,
    name: str,
    module: str,
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=description, formatter_class=_Help)

    def call(options: argparse.Namespace) -> int:
        verb: Verb = getattr(importlib.import_module(f"kata_gpu.cli.{module}"), name)
        return verb(options)

    parser.set_defaults(verb=call, log_level=None)
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
    return parser


def _address(text: str) -> "PciAddress":
    from kata_gpu.model.pci import PciAddress  # noqa: PLC0415 - for the verbs that take one

    try:
        return PciAddress.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_blueprint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--blueprint",
        type=Path,
        metavar="FILE",
        help="what the node should be (default: from the settings)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print it")


def _add_consent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


_VERBS: Final = {
    "inventory": _add_inventory,
    "doctor": _add_doctor,
    "status": _add_status,
    "explain": _add_explain,
    "plan": _add_plan,
    "apply": _add_apply,
    "release": _add_release,
    "clear": _add_clear,
    "runtime": _add_runtime,
    "uninstall": _add_uninstall,
    "run": _add_run,
    "completion": _add_completion,
}
