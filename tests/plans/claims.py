"""Scenarios of units that are bound when a claim for them comes, and go back after it."""

from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.plans.blueprints import GPUS, SWITCHES, blueprint
from tests.plans.files import GO, GO_CONFIG
from tests.plans.node import Node, scenario
from tests.plans.services import STOPPING

ON_CLAIM: Final = GPUS + 'offer = "dra"\nbind = "on-claim"\n'
CLAIMED: Final = blueprint(ON_CLAIM)
FREED: Final = blueprint(ON_CLAIM + STOPPING)


def waiting(node: Node) -> Node:
    """Return a node whose units no claim asks for."""
    node.claimed = frozenset()
    return node


def claimed(root: Path, text: str = CLAIMED) -> Node:
    """Return a node of four GPUs, one of which a claim has got."""
    node = Node(nodes.hgx(root))
    node.claimed = frozenset({nodes.HGX_GPUS[1]})
    node.apply(text)
    return node


def claimed_alone(root: Path) -> Node:
    """Return a node whose only GPU a claim had, and has no more."""
    node = Node(nodes.single_gpu(root))
    node.claimed = frozenset({nodes.GPU})
    node.apply(CLAIMED)
    return waiting(node)


@scenario
def unclaimed_units(root: Path) -> tuple[Node, Plan]:
    """They are where they belong: on their host drivers."""
    node = waiting(Node(nodes.hgx(root)))
    return node, node.plan(CLAIMED)


@scenario
def unclaimed_units_have_their_root_ports(root: Path) -> tuple[Node, Plan]:
    """The drop-in counts them as if they were claimed: no claim changes it."""
    node = waiting(Node(nodes.eight_gpus(root)))
    node.put(GO_CONFIG, "[hypervisor.qemu]\n")
    return node, node.plan(blueprint(ON_CLAIM, GO))


@scenario
def unclaimed_unit_on_vfio_by_another_hand(root: Path) -> tuple[Node, Plan]:
    """It is said before a claim comes."""
    node = waiting(Node(nodes.single_gpu(root)))
    node.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    node.store(nodes.GPU, "driver_override", "vfio-pci")
    node.drive(nodes.GPU, "vfio-pci")
    return node, node.plan(CLAIMED)


@scenario
def unclaimed_unit_with_a_disk_in_its_group(root: Path) -> tuple[Node, Plan]:
    """What no claim could have is refused before one comes."""
    node = waiting(Node(nodes.storage_in_group(root)))
    return node, node.plan(CLAIMED)


@scenario
def claim_comes(root: Path) -> tuple[Node, Plan]:
    """Its unit is bound and published; the others stay where they are."""
    node = Node(nodes.hgx(root))
    node.claimed = frozenset({nodes.HGX_GPUS[1]})
    return node, node.plan(CLAIMED)


@scenario
def claim_comes_beside_another(root: Path) -> tuple[Node, Plan]:
    """What the first has is not touched."""
    node = claimed(root)
    node.claimed = frozenset(nodes.HGX_GPUS[:2])
    return node, node.plan(CLAIMED)


@scenario
def claim_comes_beside_a_pool_that_is_always_bound(root: Path) -> tuple[Node, Plan]:
    """Each pool has its own time."""
    node = Node(nodes.hgx(root))
    node.claimed = frozenset({nodes.HGX_GPUS[1]})
    return node, node.plan(blueprint(SWITCHES, ON_CLAIM))


@scenario
def claim_comes_for_a_unit_that_is_refused(root: Path) -> tuple[Node, Plan]:
    """A claim is no reason to take what must stay."""
    node = Node(nodes.storage_in_group(root))
    node.claimed = frozenset({nodes.GPU})
    return node, node.plan(CLAIMED)


@scenario
def claim_comes_for_a_unit_that_somebody_computes_on(root: Path) -> tuple[Node, Plan]:
    """It waits until they are gone."""
    node = Node(nodes.single_gpu(root))
    node.claimed = frozenset({nodes.GPU})
    node.hold(nodes.GPU, "python3", "/dev/nvidia0")
    return node, node.plan(CLAIMED)


@scenario
def claim_outlives_the_agent(root: Path) -> tuple[Node, Plan]:
    """The next agent knows of it, and has nothing to do."""
    node = claimed(root)
    return node, node.plan(CLAIMED)


@scenario
def claims_that_nobody_knows_of(root: Path) -> tuple[Node, Plan]:
    """What is bound stays bound, and nothing is bound."""
    node = claimed(root)
    node.claimed = None
    return node, node.plan(CLAIMED)


@scenario
def claim_goes(root: Path) -> tuple[Node, Plan]:
    """Its unit leaves the CDI spec first, and goes back to its host driver."""
    node = claimed(root)
    return waiting(node), node.plan(CLAIMED)


@scenario
def claim_goes_and_another_comes(root: Path) -> tuple[Node, Plan]:
    """In one pass, each unit in its own lane."""
    node = claimed(root)
    node.claimed = frozenset({nodes.HGX_GPUS[2]})
    return node, node.plan(CLAIMED)


@scenario
def claim_goes_after_its_vm(root: Path) -> tuple[Node, Plan]:
    """What its tenant left is cleared away before the host gets it: it goes back in the next."""
    node = claimed_alone(root)
    node.know(is_used=True)
    return node, node.plan(CLAIMED)


@scenario
def claim_goes_and_a_gpu_cannot_be_read(root: Path) -> tuple[Node, Plan]:
    """The unit is not clean with a GPU that is not reset, and waits until it can be."""
    node = Node(nodes.bridge_pair(root))
    node.claimed = frozenset({nodes.BRIDGED[0]})
    node.apply(CLAIMED)
    node.know(nodes.BRIDGED[0], is_used=True)
    node.kernel.unreadable(nodes.BRIDGED[1], "numa_node")
    return waiting(node), node.plan(CLAIMED)


@scenario
def claim_goes_while_its_vm_runs(root: Path) -> tuple[Node, Plan]:
    """No pod is given it any more, and nobody takes it from the VM."""
    node = claimed_alone(root)
    node.know(is_used=True)
    node.hold(nodes.GPU, "qemu-system-x86", "/dev/vfio/1")
    return node, node.plan(CLAIMED)


@scenario
def claim_goes_and_nothing_resets_the_gpu(root: Path) -> tuple[Node, Plan]:
    """Nobody gets what cannot be cleaned, the host neither."""
    kernel = nodes.bare(root)
    kernel.add_device(
        nodes.GPU,
        vendor=0x10DE,
        device=0x2330,
        class_code=0x030200,
        driver="nvidia",
        reset_methods=(),
    )
    node = Node(kernel)
    node.claimed = frozenset({nodes.GPU})
    node.apply(CLAIMED)
    node.know(is_used=True)
    return waiting(node), node.plan(CLAIMED)


@scenario
def claim_went_and_left_a_quarantine(root: Path) -> tuple[Node, Plan]:
    """It stays in it, whether a claim asks for it or not."""
    node = claimed_alone(root)
    node.know(is_used=True, quarantine="after its reset its BARs read ffffffff")
    return node, node.plan(CLAIMED)


@scenario
def claim_went_when_its_bind_was_interrupted(root: Path) -> tuple[Node, Plan]:
    """The next agent takes the way back from wherever it is."""
    node = Node(nodes.gpu_with_audio(root))
    node.claimed = frozenset({nodes.GPU})
    plan = node.plan(CLAIMED)
    with node.killed_at("bind"):
        node.carry_out(plan)
    return waiting(node), node.plan(CLAIMED)


@scenario
def claim_stops_services(root: Path) -> tuple[Node, Plan]:
    """They run until the first claim of their pool comes."""
    node = Node(nodes.hgx(root))
    node.claimed = frozenset({nodes.HGX_GPUS[1]})
    return node, node.plan(FREED)


@scenario
def claim_goes_and_services_start_again(root: Path) -> tuple[Node, Plan]:
    """No unit of their pool is ours any more."""
    node = claimed(root, FREED)
    return waiting(node), node.plan(FREED)


@scenario
def claim_goes_and_services_wait_for_another(root: Path) -> tuple[Node, Plan]:
    """A claim has a unit of their pool still."""
    node = Node(nodes.hgx(root))
    node.claimed = frozenset(nodes.HGX_GPUS[:2])
    node.apply(FREED)
    node.claimed = frozenset({nodes.HGX_GPUS[0]})
    return node, node.plan(FREED)
