"""Scenarios of pools whose units are to be had together."""

from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.plans.blueprints import GPUS, blueprint
from tests.plans.node import Node, scenario

_SWITCH_TOO: Final = '{ vendor = "10de" }, { vendor = "10de", class = "0680" }'
BOARD: Final = GPUS.replace('{ vendor = "10de" }', _SWITCH_TOO) + 'bundle = "hgx"\nmin_units = 5\n'


def bound(root: Path) -> Node:
    """Return a node whose four GPUs and switch are a bundle."""
    node = Node(nodes.hgx(root))
    node.apply(blueprint(BOARD))
    return node


@scenario
def bundle_of_gpus_and_a_switch(root: Path) -> tuple[Node, Plan]:
    """The device plugin's CDI device of it has the nodes of all."""
    node = Node(nodes.hgx(root))
    return node, node.plan(blueprint(BOARD))


@scenario
def bundle_in_order(root: Path) -> tuple[Node, Plan]:
    """A node in order has an empty plan."""
    node = bound(root)
    return node, node.plan(blueprint(BOARD))


@scenario
def bundle_through_dra(root: Path) -> tuple[Node, Plan]:
    """Nothing in CDI stands for it: the claim gets the devices of its units."""
    node = Node(nodes.hgx(root))
    return node, node.plan(blueprint(BOARD + 'offer = "dra"\n'))


@scenario
def bundle_without_one_that_is_in_use(root: Path) -> tuple[Node, Plan]:
    """It is whole, or it is not there."""
    node = Node(nodes.hgx(root))
    node.hold(nodes.HGX_GPUS[2], "python3", "/dev/nvidia2")
    return node, node.plan(blueprint(BOARD))


@scenario
def bundle_without_one_that_is_gone(root: Path) -> tuple[Node, Plan]:
    """Fewer than the pool asks for are no bundle."""
    node = bound(root)
    node.kernel.unplug(nodes.HGX_GPUS[2])
    return node, node.plan(blueprint(BOARD))


@scenario
def bundle_and_a_unit_after_its_vm(root: Path) -> tuple[Node, Plan]:
    """With the unit that is cleaned the bundle is withdrawn."""
    node = bound(root)
    node.know(nodes.HGX_GPUS[0], is_used=True)
    return node, node.plan(blueprint(BOARD))


@scenario
def bundle_of_which_one_is_asked_back(root: Path) -> tuple[Node, Plan]:
    """A release knows no bundles, and withdraws what gives a node of the unit."""
    node = bound(root)
    return node, node.release(nodes.HGX_GPUS[0])
