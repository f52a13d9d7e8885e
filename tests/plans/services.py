"""Scenarios of services of the host that keep GPUs busy."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.plans.blueprints import GPUS, blueprint, host, passthrough
from tests.plans.node import Node, scenario

DAEMON: Final = "nvidia-persistenced.service"
DCGM: Final = "nvidia-dcgm.service"
STOPPING: Final = f'stop_services = ["{DAEMON}", "{DCGM}"]\n'
FREED: Final = blueprint(GPUS + STOPPING)


def bound(root: Path) -> Node:
    """Return a node of four GPUs that are ours, and two services that ran before."""
    node = Node(nodes.hgx(root))
    node.apply(FREED)
    return node


@scenario
def services_are_stopped_first(root: Path) -> tuple[Node, Plan]:
    """Each once, before the first of the pool's GPUs leaves its driver."""
    node = Node(nodes.hgx(root))
    return node, node.plan(FREED)


@scenario
def services_stay_stopped_while_a_unit_is_ours(root: Path) -> tuple[Node, Plan]:
    """A node in order has an empty plan."""
    node = bound(root)
    return node, node.plan(FREED)


@scenario
def services_are_stopped_for_one_pool_and_not_for_another(root: Path) -> tuple[Node, Plan]:
    """Only what the unit's own pool names must stop."""
    node = Node(nodes.three_vendors(root))
    amd = passthrough("amd", nodes.AMD_GPU, resource="amd.com/pgpu")
    return node, node.plan(blueprint(GPUS + f'stop_services = ["{DAEMON}"]\n', amd))


@scenario
def services_start_again_after_the_last_release(root: Path) -> tuple[Node, Plan]:
    """The pool's GPUs go back to the host, and what ran before runs again."""
    node = bound(root)
    return node, node.plan(blueprint(host("gpus", *nodes.HGX_GPUS)))


@scenario
def services_wait_for_the_last_unit_of_the_pool(root: Path) -> tuple[Node, Plan]:
    """Three of four go back: the services stay stopped for the fourth."""
    node = bound(root)
    back = host("back", *nodes.HGX_GPUS[:3])
    return node, node.plan(blueprint(back, GPUS + STOPPING))


@scenario
def services_start_again_after_a_failed_bind(root: Path) -> tuple[Node, Plan]:
    """Nothing of the pool is ours after all."""
    node = Node(nodes.single_gpu(root))
    node.ledger = node.ledger.with_service(DAEMON).with_service(DCGM)
    return node, node.plan(FREED, failed={nodes.GPU: "cannot bind it"})


@scenario
def services_start_again_when_no_pool_names_them(root: Path) -> tuple[Node, Plan]:
    """The key left the blueprint; the GPU stays where it is."""
    node = bound(root)
    return node, node.plan(blueprint(GPUS))


@scenario
def service_that_does_not_start_again(root: Path) -> tuple[Node, Plan]:
    """It is said, and not tried at once."""
    node = Node(nodes.bare(root))
    node.ledger = node.ledger.with_service(DAEMON)
    return node, node.plan(FREED, failed={DAEMON: "cannot start it"})


@scenario
def services_start_again_after_a_release_of_all(root: Path) -> tuple[Node, Plan]:
    """A release needs no blueprint for it: the ledger says what we stopped."""
    node = bound(root)
    return node, node.release()


@scenario
def services_stay_stopped_after_a_release_of_one_of_four(root: Path) -> tuple[Node, Plan]:
    """A release knows no pools, so the last unit decides."""
    node = bound(root)
    return node, node.release(nodes.HGX_GPUS[0])


@scenario
def services_and_a_cleared_override(root: Path) -> tuple[Node, Plan]:
    """Nothing leaves a host driver, so nothing is stopped."""
    node = bound(root)
    node.store(nodes.HGX_GPUS[0], "driver_override", "\n")
    return node, node.plan(FREED)


@scenario
def services_and_a_gpu_that_the_host_took_back(root: Path) -> tuple[Node, Plan]:
    """They are stopped again, whether they run or not."""
    node = bound(root)
    node.store(nodes.HGX_GPUS[0], "driver_override", "\n")
    node.drive(nodes.HGX_GPUS[0], "nvidia")
    node.ledger = replace(node.ledger, services=(DCGM,))
    return node, node.plan(FREED)
