"""The verbs of the command line that have verbs below them."""

from pathlib import Path
from typing import Final

from kata_gpu.cli import arguments
from kata_gpu.cli.arguments import Verbs

_CDI_EPILOG: Final = """\
for example:
  kata-gpu cdi validate                        every file that a runtime reads
  kata-gpu cdi validate ./nvidia.yaml          one file, before it is put there
  kata-gpu cdi validate --runtime go -o json   for a program, on a node without runtime-rs
  kata-gpu cdi list                            who offers which device, and who wins
"""


def add_kata(verbs: Verbs, name: str) -> None:
    """Add ``kata-gpu kata``: Kata's handlers."""
    below = arguments.group(
        verbs,
        name,
        "show Kata's handlers, and what configuration counts for each",
        "Find Kata's installations, and merge a handler's base file with the drop-ins in its\n"
        "config.d as its runtime does. Changes nothing and needs no agent.",
        "examples:\n"
        "  kata-gpu kata list -o wide\n"
        "  kata-gpu kata show kata-qemu-nvidia-gpu --origin",
    )
    listing = arguments.verb(
        below,
        "list",
        "kata",
        "show every handler of this node",
        "Show every base file that is installed, behind links each once: its runtime by what it "
        "holds, its version where the installation says it, whether its guests are confidential, "
        "and whether the blueprint configures it. Exits 3 when the files of one are such that its "
        "runtime would start no pod.",
        function="list_",
    )
    arguments.add_blueprint(listing)
    arguments.add_output(listing)
    show = arguments.verb(
        below,
        "show",
        "kata",
        "show what counts for one handler",
        "Print a handler's effective configuration: the base file and all of config.d, merged as "
        "its runtime merges them. What it refuses, changes or ignores is told on standard error. "
        "Exits 3 when it would start no pod. For example: "
        "kata-gpu kata show kata-qemu-nvidia-gpu --origin",
    )
    show.add_argument("handler", metavar="HANDLER|PATH", help="its name, or its base file's path")
    show.add_argument("--origin", action="store_true", help="say of each value which file it is of")
    arguments.add_blueprint(show)
    arguments.add_output(show)


def add_cdi(verbs: Verbs, name: str) -> None:
    """Add ``kata-gpu cdi``: CDI files."""
    below = arguments.group(
        verbs,
        name,
        "tell whether Kata's runtimes can read this node's CDI files",
        "Look at CDI files, whoever wrote them: one that a Kata runtime refuses stops\n"
        "every pod that asks for a GPU, and nothing on the node says which it was. Changes\n"
        "nothing and needs no blueprint and no agent.",
        _CDI_EPILOG,
    )
    validate = arguments.verb(
        below,
        "validate",
        "cdi",
        "tell every fault of CDI files, and what it breaks",
        "Hold each file against the CDI specification and against what Kata's Go runtime and "
        "runtime-rs take of it. Each fault has its file, its place in the document, its rule, and "
        "whether it stops every pod of a runtime or breaks one device. Exits 0 when all is fine, "
        "3 when a runtime refuses something, or the specification does.",
    )
    validate.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="a CDI file (default: all of /etc/cdi, /var/run/cdi and the agent's cdi_directory)",
    )
    validate.add_argument(
        "--runtime", choices=("go", "rust"), help="leave out what only the other one minds"
    )
    arguments.add_output(validate)
    listing = arguments.verb(
        below,
        "list",
        "cdi",
        "show every device that CDI files name",
        "Show each device with its file and device nodes, which of these are missing, whether it "
        "is ours, and whether a pod of the Go runtime and of runtime-rs gets it from that file: "
        "they search /etc/cdi and /var/run/cdi in opposite order. Exits 3 when a file stops every "
        "pod of a runtime, and names it.",
        function="list_",
    )
    arguments.add_output(listing)


def add_runtime(verbs: Verbs, name: str) -> None:
    """Add ``kata-gpu runtime``: the container runtime."""
    actions = arguments.group(
        verbs,
        name,
        "show how containerd or CRI-O is wired to Kata, and render the cluster's classes",
        "Neither changes anything on the node, nor needs an agent.",
        "examples:\n"
        "  kata-gpu runtime check             which handler leads where, and what is wrong\n"
        "  kata-gpu runtime render            the RuntimeClasses that go with the blueprint",
    )
    check = arguments.verb(
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
    arguments.add_blueprint(check)
    arguments.add_output(check)
    render = arguments.verb(
        actions,
        "render",
        "runtime",
        "print RuntimeClasses and DeviceClasses for the blueprint",
        "Print the RuntimeClass of each handler and the DeviceClasses as YAML, for kubectl apply. "
        "Example: kata-gpu runtime render | kubectl apply -f -",
    )
    arguments.add_blueprint(render)
    render.add_argument(
        "--directory", type=Path, metavar="DIR", help="write a file for each class there instead"
    )
