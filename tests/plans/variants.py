"""Scenarios of the right driver: VFIO variants that are there, come, break, or are gone."""

from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.plans.blueprints import GPUS, blueprint, passthrough
from tests.plans.node import Node, scenario
from tests.plans.selection import add_h100

MODULE: Final = "nvgrace_gpu_vfio_pci"


def bound_to_vfio_pci(root: Path, *, loaded: bool) -> Node:
    """Return a node whose only GPU we bound before the host had the variant."""
    node = Node(nodes.grace(root, variant=False))
    node.apply(blueprint(GPUS))
    nodes.add_grace_driver(node.kernel, loaded=loaded)
    return node


def bound_to_the_variant(root: Path) -> Node:
    """Return a node whose only GPU is ours, on the variant."""
    node = Node(nodes.grace(root))
    node.apply(blueprint(GPUS))
    return node


@scenario
def variant_is_loaded(root: Path) -> tuple[Node, Plan]:
    """The GPU goes to the driver that was made for it, and vfio-pci is not even loaded."""
    node = Node(nodes.grace(root))
    return node, node.plan(blueprint(GPUS))


@scenario
def variant_is_not_loaded(root: Path) -> tuple[Node, Plan]:
    """Only its module knows what the driver is called, so the first pass does no more."""
    node = Node(nodes.grace(root, loaded=False))
    return node, node.plan(blueprint(GPUS))


@scenario
def variant_was_loaded_by_the_pass_before(root: Path) -> tuple[Node, Plan]:
    """The second pass has the driver's name, and binds to it."""
    node = Node(nodes.grace(root, loaded=False))
    node.carry_out(node.plan(blueprint(GPUS)))
    return node, node.plan(blueprint(GPUS))


@scenario
def variant_is_not_loaded_and_another_gpu_needs_none(root: Path) -> tuple[Node, Plan]:
    """Each unit waits for its own module only."""
    kernel = nodes.grace(root, loaded=False)
    add_h100(kernel, "0000:02:00.0", group=2)
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def variant_for_one_of_two_in_a_group(root: Path) -> tuple[Node, Plan]:
    """Each function goes to the driver that suits it; the group moves as one."""
    kernel = nodes.grace(root)
    add_h100(kernel, nodes.BRIDGED[0], group=1)
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def variant_not_loaded_for_one_of_two_in_a_group(root: Path) -> tuple[Node, Plan]:
    """Nothing of the group moves before all of its drivers are known."""
    kernel = nodes.grace(root, loaded=False)
    add_h100(kernel, nodes.BRIDGED[0], group=1)
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def variant_fails_to_load(root: Path) -> tuple[Node, Plan]:
    """vfio-pci would give a guest a GPU that does not work, so the unit stays where it is."""
    kernel = nodes.grace(root, variant=False)
    kernel.add_module(MODULE, aliases=(nodes.GRACE_ALIAS,), error="Exec format error")
    node = Node(kernel)
    reason = f"cannot run modprobe -- {MODULE}: exit status 1: could not insert it"
    return node, node.plan(blueprint(GPUS), failed={nodes.GPU: reason})


@scenario
def no_modules_alias(root: Path) -> tuple[Node, Plan]:
    """A kernel whose modules say nothing has vfio-pci built in, or to load."""
    kernel = nodes.grace(root)
    (root / "lib/modules/6.1.0-56-amd64/modules.alias").unlink()
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def ours_on_vfio_pci_and_the_variant_came(root: Path) -> tuple[Node, Plan]:
    """The better driver takes it; no pod may be given it meanwhile."""
    node = bound_to_vfio_pci(root, loaded=True)
    return node, node.plan(blueprint(GPUS))


@scenario
def ours_on_vfio_pci_and_the_variant_can_be_loaded(root: Path) -> tuple[Node, Plan]:
    """It is withdrawn while the module loads, and moved in the next pass."""
    node = bound_to_vfio_pci(root, loaded=False)
    return node, node.plan(blueprint(GPUS))


@scenario
def ours_on_the_variant_in_order(root: Path) -> tuple[Node, Plan]:
    """A node that is as its blueprint says has nothing to do."""
    node = bound_to_the_variant(root)
    return node, node.plan(blueprint(GPUS))


@scenario
def ours_on_the_variant_and_modules_alias_is_gone(root: Path) -> tuple[Node, Plan]:
    """A kernel's files may go while it runs; what was made for the GPU keeps it."""
    node = bound_to_the_variant(root)
    (root / "lib/modules/6.1.0-56-amd64/modules.alias").unlink()
    return node, node.plan(blueprint(GPUS))


@scenario
def ours_taken_from_the_variant_to_vfio_pci(root: Path) -> tuple[Node, Plan]:
    """Another hand's vfio-pci is drift like any other."""
    node = bound_to_the_variant(root)
    node.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    node.store(nodes.GPU, "driver_override", "vfio-pci")
    node.drive(nodes.GPU, "vfio-pci")
    return node, node.plan(blueprint(GPUS))


@scenario
def foreign_unit_on_a_variant(root: Path) -> tuple[Node, Plan]:
    """What is on VFIO is told by its VFIO device, not by the driver's name."""
    kernel = nodes.single_gpu(root)
    kernel.add_driver("guest-dma", vfio=True)
    node = Node(kernel)
    node.store(nodes.GPU, "driver_override", "guest-dma")
    node.drive(nodes.GPU, "guest-dma")
    return node, node.plan(blueprint(GPUS))


@scenario
def foreign_unit_on_a_variant_adopted_by_address(root: Path) -> tuple[Node, Plan]:
    """It is adopted as it is: nothing better is known for it."""
    node, _ = foreign_unit_on_a_variant(root)
    return node, node.plan(blueprint(passthrough("adopted", nodes.GPU)))


@scenario
def release_from_the_variant(root: Path) -> tuple[Node, Plan]:
    """The way back is the ledger's, whatever driver it was given."""
    node = bound_to_the_variant(root)
    return node, node.release()
