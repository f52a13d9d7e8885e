"""The command line as a whole; its verbs are in `verbs`."""

import argparse
from typing import Final

from kata_gpu import __version__
from kata_gpu.cli import arguments
from kata_gpu.cli.verbs import VERBS

_EPILOG: Final = """\
a first look at a node:
  kata-gpu doctor                    is this node fit for passthrough, and if not, what to do
  kata-gpu inventory                 what is here, and what may be passed through
  kata-gpu plan                      what the blueprint would change, and why
  kata-gpu apply --dry-run           the same, at the place where it would be done
  kata-gpu apply                     do it, after asking
  kata-gpu status                    what the running agent says
  kata-gpu cdi validate              which CDI file stops every pod
  kata-gpu explain pod ml/train-0    why does this pod not get its GPU
  kata-gpu explain 0000:41:00.0      why is this GPU not available, and what to do
  kata-gpu kata list                 which Kata handlers are here
  kata-gpu runtime check             which handler of containerd or CRI-O leads where
  kata-gpu simulate p.yaml --cluster would Kubernetes place these pods, and if not, why not
  kata-gpu release --all             give everything back
  kata-gpu uninstall --dry-run       what would be removed with the agent

files: /etc/kata-gpu/agent.toml (optional), /etc/kata-gpu/blueprint.toml
exit status: 0 in order or done, 1 failed, 2 plan has steps, 3 refused, unfit or not available,
64 wrong usage
"""


def build(asked: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line; of the verb *asked* alone, if there is such a one.

    Making all of them takes longer than some verbs do.
    """
    parser = arguments.Parser(
        prog="kata-gpu",
        description="Give whole GPUs of this node to Kata pod VMs, and give them back.",
        epilog=_EPILOG,
        formatter_class=arguments.OverviewHelp,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # prog is given, or argparse formats a usage to find it out, for which it imports shutil
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, prog=parser.prog)
    for name, add in VERBS.items():
        if asked not in VERBS or asked == name:
            add(verbs, name)
    return parser
