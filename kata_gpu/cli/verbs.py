"""The verbs of the command line, and what each is good for.

They are imported when they run: ``kata-gpu status`` must not pay for what ``run`` needs.
"""

from pathlib import Path
from typing import Final

from kata_gpu.cli import arguments, groups
from kata_gpu.cli.arguments import Verbs

_SIMULATE_EPILOG: Final = """\
for example:
  kata-gpu inventory -o json > node-1.json               on the node
  kata-gpu simulate pod.yaml classes.yaml --inventory node-1.json node-2.json
  kubectl get resourceslices,deviceclasses -o json > cluster.json
  kata-gpu simulate deployment.yaml cluster.json -o wide
  kata-gpu simulate gang.yaml --cluster
"""

_COMPLETION_EPILOG: Final = """\
for example:
  source <(kata-gpu completion bash)         in ~/.bashrc
  eval "$(kata-gpu completion zsh)"          in ~/.zshrc, after compinit
  kata-gpu completion fish | source          in ~/.config/fish/config.fish
  kata-gpu completion tcsh > ~/.kata-gpu     and in ~/.tcshrc: source ~/.kata-gpu
"""


def _add_inventory(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "inventory",
        "show GPUs, their company and their IOMMU groups",
        "Read sysfs once and show every GPU, NVSwitch, companion function and bridge above "
        "them, with the verdict whether its IOMMU group may be given to a VM. Changes nothing "
        "and needs no blueprint and no agent. Example: kata-gpu inventory --all -o wide",
    )
    parser.add_argument("--all", action="store_true", help="show every PCI function")
    arguments.add_output(parser)


def _add_doctor(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "doctor",
        "tell whether this node is fit for GPU passthrough, and what to do",
        "Check the whole node: IOMMU, VFIO, kernel settings, privileges, folders, CDI specs, and "
        "who else moves devices. Each check is ok, info, warning or error, with why it matters "
        "and what to do. Changes nothing; needs no blueprint and no agent. Exits 0 when no check "
        "is an error, 3 when one is; warnings do not count. Example: "
        "kata-gpu doctor --only iommu,vfio-nodes",
    )
    parser.add_argument(
        "--only",
        type=lambda ids: ids.split(","),
        metavar="ID[,ID]",
        help="these checks alone; their ids are in the output and do not change",
    )
    arguments.add_output(parser)


def _add_status(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "status",
        "show what the running agent says",
        "Ask the agent on its status socket. The same as JSON: "
        "curl --unix-socket /run/kata-gpu/status.sock http://localhost/v1/status",
    )
    parser.add_argument("--socket", type=Path, help="the agent's socket (default: from agent.toml)")
    arguments.add_output(parser)


def _add_metrics(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "metrics",
        "print the running agent's metrics for Prometheus",
        "Ask the agent on its status socket, where Prometheus itself cannot. For node_exporter's "
        "textfile collector: kata-gpu metrics --output /var/lib/node_exporter/kata-gpu.prom",
    )
    parser.add_argument("--socket", type=Path, help="the agent's socket (default: from agent.toml)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="replace FILE in one step, and print nothing"
    )


def _add_explain(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "explain",
        "tell why a GPU is not available, or a pod has none, and what to do",
        "Say of one device what it is, which unit and pool it belongs to, what is in the way, who "
        "has it, what was done to it, and what makes it available. Asks the agent, and looks "
        "itself where none runs; changes nothing. Exits 0 when it can be had, is had, or is "
        "where the blueprint wants it, 3 when not. Of a pod (kata-gpu explain pod ml/train-0) it "
        "says what kubelet gave it, what both of Kata's runtimes make of that, and which known "
        "failure the journal tells; it exits 3 when something keeps the pod from its devices.",
    )
    parser.add_argument(
        "device",
        type=arguments.subject,
        metavar="UNIT|ADDRESS|pod",
        help="PCI address of a unit or of any function near it, as in 0000:41:00.0; or the word "
        "pod, and then which",
    )
    parser.add_argument(
        "pod",
        nargs="?",
        type=arguments.pod,
        metavar="NAMESPACE/NAME",
        help="the pod, as in ml/train-0",
    )
    arguments.add_blueprint(parser)
    arguments.add_output(parser)


def _add_clear(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "clear",
        "take units out of quarantine",
        "Show what is known against each unit, ask, and let pods have it again: on your word "
        "that nothing of its last user is left in it. Asks the agent, and does it itself where "
        "none runs. Example: kata-gpu clear 0000:41:00.0",
    )
    parser.add_argument(
        "unit", nargs="+", type=arguments.address, metavar="UNIT", help="a unit's PCI address"
    )
    arguments.add_consent(parser)


def _add_plan(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "change",
        "show what the blueprint would change, and why",
        "Compare the node with the blueprint and print every step. Changes nothing. Exits 0 "
        "when there is nothing to do, 2 when there is, 3 when something is refused and there "
        "is nothing else to do. Example: kata-gpu plan --blueprint new.toml",
    )
    arguments.add_blueprint(parser)
    arguments.add_output(parser)


def _add_apply(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "change",
        "make the node what the blueprint says",
        "Print the plan, ask, and take its steps; each is verified, and undone if it fails. A "
        "device that somebody uses is not taken. Refused while the agent runs, which does this "
        "by itself. With --dry-run it exits as plan does.",
    )
    parser.set_defaults(log_level="CRITICAL")  # it prints each step and why it failed
    arguments.add_blueprint(parser)
    arguments.add_consent(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def _add_release(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "change",
        "give devices back to the driver they came from",
        "Withdraw units from the CDI spec, return their functions to the drivers the ledger "
        "remembers, and clear the overrides; with --all also remove every file that is ours, and "
        "take back the ResourceSlices and labels of this node, where the settings have a cluster. "
        "The "
        "address of a physical function stands for its virtual ones; those that we made are "
        "removed, as they are with --all. "
        "Needs no blueprint. Refused while the agent runs, which would bind them again. Example: "
        "kata-gpu release 0000:41:00.0 --dry-run",
    )
    parser.set_defaults(log_level="CRITICAL")
    parser.add_argument(
        "unit", nargs="*", metavar="UNIT", help="PCI address of a unit, or of a parent of units"
    )
    parser.add_argument("--all", action="store_true", help="every unit, and all our files")
    arguments.add_consent(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def _add_uninstall(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "uninstall",
        "give everything back, and leave nothing of kata-gpu on the node",
        "Give every unit back as release --all does, and remove every file of ours, the folders "
        "that were made for them if nothing else is in them, and last the ledger. Refused as a "
        "whole while somebody has a unit, and while an agent runs. What the cluster was told of "
        "this node is taken back first. What you wrote, in /etc/kata-gpu, stays. Example: "
        "kata-gpu uninstall --dry-run",
    )
    parser.set_defaults(log_level="CRITICAL")
    arguments.add_consent(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would go, and stop")


def _add_run(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "run",
        "hold the node to the blueprint (the daemon)",
        "Apply the blueprint, watch for changes, repair them, and answer on the status socket, "
        "until SIGTERM, which unbinds nothing. SIGHUP reads the blueprint again.",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="begin when the agent that holds the node has ended, in place of an error; for a "
        "DaemonSet whose new pod starts before the old one ends",
    )
    parser.set_defaults(log_level="INFO")
    arguments.add_blueprint(parser)


def _add_simulate(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "simulate",
        "tell whether Kubernetes would place pods, claims and gangs, and what is in the way",
        "Read pods, what makes pods, ResourceClaims and their templates, PodGroups and Queues, "
        "and nodes as ResourceSlices, Node objects or inventories of this command, and place one "
        "after another as the scheduler does: CEL selectors, counts, firstAvailable, constraints, "
        "counters, taints, gangs, and shares of queues. Says of each refusal which device fails "
        "which condition. Changes nothing and needs no agent. Exits 0 when all is placed, 3 when "
        "something is refused or undecided.",
        epilog=_SIMULATE_EPILOG,
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="Kubernetes objects in YAML or JSON, requests and nodes in any order",
    )
    parser.add_argument(
        "--inventory",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="SNAPSHOT",
        help="a node: what kata-gpu inventory -o json printed there, or its ResourceSlices; an "
        "inventory's node is called as the file is, without its suffix",
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="ask the cluster of your kubeconfig for nodes, slices, classes, and what is taken",
    )
    parser.add_argument(
        "--blueprint",
        type=Path,
        metavar="FILE",
        help="which pools the inventories' nodes have, and how these are offered (default: every "
        "GPU and switch, through DRA)",
    )
    arguments.add_output(parser)


def _add_completion(verbs: Verbs, name: str) -> None:
    parser = arguments.verb(
        verbs,
        name,
        "completion",
        "print a completion script for your shell",
        "Print a script that has the shell complete verbs, options and files.",
        epilog=_COMPLETION_EPILOG,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"))


VERBS: Final = {
    "inventory": _add_inventory,
    "doctor": _add_doctor,
    "explain": _add_explain,
    "status": _add_status,
    "metrics": _add_metrics,
    "plan": _add_plan,
    "apply": _add_apply,
    "release": _add_release,
    "clear": _add_clear,
    "run": _add_run,
    "kata": groups.add_kata,
    "cdi": groups.add_cdi,
    "runtime": groups.add_runtime,
    "uninstall": _add_uninstall,
    "simulate": _add_simulate,
    "completion": _add_completion,
}
