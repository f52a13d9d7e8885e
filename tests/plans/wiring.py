"""Scenarios of the container runtime: the drop-in that wires our handlers, and its restart."""

from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.kernel.systemd import Systemd
from tests.plans.blueprints import GPUS, blueprint
from tests.plans.files import GO, GO_CONFIG
from tests.plans.node import Node, scenario

OWN: Final = '[[runtime.handler]]\nname = "kata-gpu"\nbase = "kata-go"\n'
RESTARTING: Final = '[runtime]\nrestart = "when-changed"\n'
IMPORTING: Final = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
CRI_V2: Final = '[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "pause"\n'


def with_containerd(root: Path, main: str) -> Node:
    """Return a node with one GPU, Kata, and a containerd that runs."""
    node = Node(nodes.single_gpu(root))
    node.put(GO_CONFIG, "[hypervisor.qemu]\n")
    node.put("/etc/containerd/config.toml", main)
    node.systemd = Systemd(node.kernel)
    node.systemd.install("containerd.service")
    node.kernel.on_run = node.systemd.run
    return node


@scenario
def handler_of_ours_is_wired(root: Path) -> tuple[Node, Plan]:
    """Who restarts containerd is told to."""
    node = with_containerd(root, f"version = 3\n{IMPORTING}")
    return node, node.plan(blueprint(GPUS, GO, OWN))


@scenario
def handler_of_ours_is_wired_and_read(root: Path) -> tuple[Node, Plan]:
    """The restart comes last, and only once the file is written."""
    node = with_containerd(root, f"version = 3\n{IMPORTING}")
    return node, node.plan(blueprint(GPUS, GO, RESTARTING, OWN))


@scenario
def handler_of_ours_is_wired_and_was_not_read(root: Path) -> tuple[Node, Plan]:
    """Nothing is written, and what runs is older than the file."""
    node = with_containerd(root, f"version = 3\n{IMPORTING}")
    node.apply(blueprint(GPUS, GO, OWN))
    return node, node.plan(blueprint(GPUS, GO, RESTARTING, OWN))


@scenario
def handler_of_ours_would_do_harm(root: Path) -> tuple[Node, Plan]:
    """containerd 1 would replace other people's settings; the GPU is published all the same."""
    node = with_containerd(root, f"version = 2\n{IMPORTING}{CRI_V2}")
    return node, node.plan(blueprint(GPUS, GO, OWN))


@scenario
def handler_of_ours_left_the_blueprint(root: Path) -> tuple[Node, Plan]:
    """Its drop-in goes."""
    node = with_containerd(root, f"version = 3\n{IMPORTING}")
    node.apply(blueprint(GPUS, GO, OWN))
    return node, node.plan(blueprint(GPUS, GO))


@scenario
def handler_of_ours_was_changed_by_hand(root: Path) -> tuple[Node, Plan]:
    """A file of ours is ours: it is replaced, and read anew."""
    node = with_containerd(root, f"version = 3\n{IMPORTING}")
    node.apply(blueprint(GPUS, GO, RESTARTING, OWN))
    node.put("/etc/containerd/conf.d/kata-gpu.toml", "version = 3\n")
    return node, node.plan(blueprint(GPUS, GO, RESTARTING, OWN))
