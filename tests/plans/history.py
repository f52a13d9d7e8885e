"""Scenarios of what happened before: ours and foreign, drift, interruptions, releases."""

from pathlib import Path

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.plans.blueprints import (
    GPUS,
    REST_TO_HOST,
    blueprint,
    host,
    ignore,
    passthrough,
)
from tests.plans.node import Node, scenario
from tests.plans.selection import GEFORCE, add_h100, add_network_card


def bound(root: Path) -> Node:
    """Return a node whose only GPU is ours."""
    node = Node(nodes.single_gpu(root))
    node.apply(blueprint(GPUS))
    return node


def exchange_card(node: Node) -> None:
    """Put another model in the slot of the GPU."""
    node.kernel.unplug(nodes.GPU)
    node.kernel.add_device(
        nodes.GPU, vendor=0x10DE, device=GEFORCE, class_code=0x030000, driver="nvidia"
    )


@scenario
def node_in_order(root: Path) -> tuple[Node, Plan]:
    """A node that is as its blueprint says has nothing to do."""
    node = bound(root)
    return node, node.plan(blueprint(GPUS))


@scenario
def host_mode_gives_back(root: Path) -> tuple[Node, Plan]:
    """A unit that the blueprint now wants on the host leaves the CDI spec first."""
    node = Node(nodes.hgx(root))
    node.apply(blueprint(GPUS))
    return node, node.plan(blueprint(host("back", nodes.HGX_GPUS[0]), GPUS))


@scenario
def host_mode_by_another_name(root: Path) -> tuple[Node, Plan]:
    """A unit is given back too when the pool selects a function of it that was not before."""
    node = Node(nodes.bridge_pair(root))
    node.apply(blueprint(passthrough("second", nodes.BRIDGED[1])))
    return node, node.plan(blueprint(host("back", *nodes.BRIDGED)))


@scenario
def ignored_by_another_name(root: Path) -> tuple[Node, Plan]:
    """It is named as the ledger has it where the pool selects another function of it first."""
    node = Node(nodes.bridge_pair(root))
    node.apply(blueprint(passthrough("second", nodes.BRIDGED[1])))
    return node, node.plan(blueprint(ignore("mine", *nodes.BRIDGED)))


@scenario
def host_mode_with_an_unread_companion(root: Path) -> tuple[Node, Plan]:
    """What is there and cannot be read is not forgotten: nothing else knows its way back."""
    node = Node(nodes.gpu_with_audio(root))
    node.apply(blueprint(GPUS))
    node.kernel.unreadable(nodes.AUDIO, "numa_node")
    return node, node.plan(blueprint(REST_TO_HOST))


@scenario
def release_of_an_unread_unit(root: Path) -> tuple[Node, Plan]:
    """Nor is a whole unit, as one that is gone from the bus would be."""
    node = bound(root)
    node.kernel.unreadable(nodes.GPU, "numa_node")
    return node, node.release()


@scenario
def unread_unit_that_no_pool_selects(root: Path) -> tuple[Node, Plan]:
    """It is not said to be gone."""
    node = bound(root)
    node.kernel.unreadable(nodes.GPU, "numa_node")
    return node, node.plan(blueprint(REST_TO_HOST))


@scenario
def host_mode_on_a_foreign_unit(root: Path) -> tuple[Node, Plan]:
    """Where somebody else bound it nobody knows the way back."""
    node = Node(nodes.single_gpu(root))
    node.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    node.store(nodes.GPU, "driver_override", "vfio-pci")
    node.drive(nodes.GPU, "vfio-pci")
    return node, node.plan(blueprint(REST_TO_HOST))


@scenario
def ignored_unit_that_is_ours(root: Path) -> tuple[Node, Plan]:
    """To ignore is to leave alone: it is offered no more, and stays bound."""
    node = bound(root)
    return node, node.plan(blueprint(ignore("mine", nodes.GPU)))


@scenario
def foreign_unit_on_vfio(root: Path) -> tuple[Node, Plan]:
    """What somebody else bound to VFIO is theirs."""
    node = Node(nodes.single_gpu(root))
    node.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    node.store(nodes.GPU, "driver_override", "vfio-pci")
    node.drive(nodes.GPU, "vfio-pci")
    return node, node.plan(blueprint(GPUS))


@scenario
def foreign_unit_adopted_by_address(root: Path) -> tuple[Node, Plan]:
    """Named by its address it becomes ours; on release it stays on VFIO."""
    node, _ = foreign_unit_on_vfio(root)
    return node, node.plan(blueprint(passthrough("adopted", nodes.GPU)))


@scenario
def foreign_unit_adopted_without_override(root: Path) -> tuple[Node, Plan]:
    """One that was bound by its id gets the override that keeps other drivers off."""
    node = Node(nodes.single_gpu(root))
    node.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    node.kernel.write("bus/pci/drivers/vfio-pci/new_id", "10de 2330")
    node.drive(nodes.GPU, "vfio-pci")
    return node, node.plan(blueprint(passthrough("adopted", nodes.GPU)))


@scenario
def pool_selects_our_unit_no_more(root: Path) -> tuple[Node, Plan]:
    """A unit that no pool selects is withdrawn from users, not from VFIO."""
    node = bound(root)
    return node, node.plan(blueprint(passthrough("gpus", "0000:99:00.0")))


@scenario
def pool_is_refused_after_its_units_were_bound(root: Path) -> tuple[Node, Plan]:
    """A console that turns up later takes its whole pool out of the offer."""
    node = bound(root)
    node.kernel.add_device(
        "0000:07:00.0", vendor=0x10DE, device=GEFORCE, class_code=0x030000, boot_vga=True
    )
    return node, node.plan(blueprint(GPUS))


@scenario
def our_unit_vanished(root: Path) -> tuple[Node, Plan]:
    """A card that was pulled is not offered; what was there before stays in the ledger."""
    node = Node(nodes.hgx(root))
    node.apply(blueprint(GPUS))
    node.kernel.unplug(nodes.HGX_GPUS[2])
    return node, node.plan(blueprint(GPUS))


@scenario
def network_card_joined_our_group(root: Path) -> tuple[Node, Plan]:
    """A stranger in the group of a unit that is ours takes it out of the offer."""
    node = Node(nodes.gpu_with_audio(root))
    node.apply(blueprint(GPUS))
    add_network_card(node.kernel, "0000:01:00.2", group=1)
    return node, node.plan(blueprint(GPUS))


@scenario
def gpu_joined_our_group(root: Path) -> tuple[Node, Plan]:
    """A unit is what it was when it was bound: one more GPU is not moved behind its back."""
    node = Node(nodes.gpu_with_audio(root))
    node.apply(blueprint(GPUS))
    add_h100(node.kernel, "0000:02:00.0", group=1)
    return node, node.plan(blueprint(GPUS))


@scenario
def drift_override_cleared(root: Path) -> tuple[Node, Plan]:
    """A cleared override is set again, with the driver left in place."""
    node = bound(root)
    node.store(nodes.GPU, "driver_override", "\n")
    return node, node.plan(blueprint(GPUS))


@scenario
def drift_override_cleared_with_iommufd(root: Path) -> tuple[Node, Plan]:
    """The device node stays what it was, so the CDI spec stays too."""
    node = Node(nodes.single_gpu(root, cdevs=True), iommufd=True)
    node.apply(blueprint(GPUS))
    node.store(nodes.GPU, "driver_override", "\n")
    return node, node.plan(blueprint(GPUS))


@scenario
def drift_host_driver_took_it_back(root: Path) -> tuple[Node, Plan]:
    """It is bound again, and its way back is still the one of the first time."""
    node = bound(root)
    node.store(nodes.GPU, "driver_override", "\n")
    node.drive(nodes.GPU, "nvidia")
    return node, node.plan(blueprint(GPUS))


@scenario
def bind_interrupted(root: Path) -> tuple[Node, Plan]:
    """A kill between unbind and bind left it driverless; the bind is finished."""
    node = Node(nodes.gpu_with_audio(root))
    with node.killed_at("bind"):
        node.apply(blueprint(GPUS))
    return node, node.plan(blueprint(GPUS))


@scenario
def release_interrupted(root: Path) -> tuple[Node, Plan]:
    """A release that was begun is finished, whether or not a pool has an opinion."""
    node = bound(root)
    with node.killed_at("bind"):
        node.carry_out(node.release())
    return node, node.plan(blueprint())


@scenario
def release_interrupted_and_wanted_again(root: Path) -> tuple[Node, Plan]:
    """The blueprint has the last word: it is bound again, its originals unchanged."""
    node = bound(root)
    with node.killed_at("bind"):
        node.carry_out(node.release())
    return node, node.plan(blueprint(GPUS))


@scenario
def unit_failed(root: Path) -> tuple[Node, Plan]:
    """A unit that is not to be tried keeps none of the others back."""
    node = Node(nodes.hgx(root))
    failed = {nodes.HGX_GPUS[1]: "cannot bind 0000:44:00.0: Device or resource busy"}
    return node, node.plan(blueprint(GPUS), failed=failed)


@scenario
def release_for_the_host_failed(root: Path) -> tuple[Node, Plan]:
    """A unit that could not be given back is not tried again in the same turn."""
    node = bound(root)
    failed = {nodes.GPU: "cannot move 0000:01:00.0: qemu (pid 4711) has it open"}
    return node, node.plan(blueprint(REST_TO_HOST), failed=failed)


@scenario
def unfinished_release_failed(root: Path) -> tuple[Node, Plan]:
    """Nor is one whose release was begun and failed again."""
    node, _ = release_interrupted(root)
    failed = {nodes.GPU: "cannot bind 0000:01:00.0 to nvidia: No such device"}
    return node, node.plan(blueprint(), failed=failed)


@scenario
def card_exchanged_while_ours(root: Path) -> tuple[Node, Plan]:
    """Another model in the slot is not what was bound."""
    node = bound(root)
    exchange_card(node)
    return node, node.plan(blueprint(GPUS))


@scenario
def release_of_an_exchanged_card(root: Path) -> tuple[Node, Plan]:
    """The way back was another card's, so it is not taken."""
    node = bound(root)
    exchange_card(node)
    return node, node.release(nodes.GPU)


@scenario
def release_of_one_of_four(root: Path) -> tuple[Node, Plan]:
    """The CDI spec is replaced by one without it; files that others need stay."""
    node = Node(nodes.hgx(root))
    node.apply(blueprint(GPUS))
    return node, node.release(nodes.HGX_GPUS[0])


@scenario
def release_of_the_last(root: Path) -> tuple[Node, Plan]:
    """A spec without a device would break runtime-rs, so it goes."""
    node = bound(root)
    return node, node.release(nodes.GPU)


@scenario
def release_of_all(root: Path) -> tuple[Node, Plan]:
    """Every unit, last function first, and every file."""
    node = Node(nodes.gpu_with_audio(root))
    add_h100(node.kernel, "0000:05:00.0")
    node.apply(blueprint(GPUS))
    return node, node.release()


@scenario
def release_of_an_adopted_unit(root: Path) -> tuple[Node, Plan]:
    """It goes back to what it was when it became ours: on VFIO."""
    node, plan = foreign_unit_adopted_by_address(root)
    node.carry_out(plan)
    return node, node.release()


@scenario
def release_of_a_vanished_unit(root: Path) -> tuple[Node, Plan]:
    """There is nothing to move, so it is forgotten."""
    node = bound(root)
    node.kernel.unplug(nodes.GPU)
    return node, node.release(nodes.GPU)


@scenario
def release_with_an_empty_ledger(root: Path) -> tuple[Node, Plan]:
    """What is not ours is not given back."""
    node, _ = foreign_unit_on_vfio(root)
    return node, node.release()


@scenario
def original_driver_was_none(root: Path) -> tuple[Node, Plan]:
    """A function that had no driver is left without one on release."""
    node = Node(nodes.sriov(root, vfs=1))
    virtual = "0000:01:00.1"
    node.apply(blueprint(passthrough("virtual", virtual, resource="intel.com/vgpu")))
    return node, node.release(virtual)
