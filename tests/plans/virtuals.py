"""Scenarios of SR-IOV: virtual functions that a pool asks for, and those that were there."""

from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.plans.blueprints import REST_TO_HOST, blueprint, host, passthrough
from tests.plans.node import Node, scenario

TWO: Final = """
[[pool]]
name = "slices"
mode = "passthrough"
resource = "intel.com/vgpu"
virtual_functions = 2
select = [{ vendor = "8086" }]
"""

THREE: Final = TWO.replace("= 2", "= 3")
FIRST: Final = "0000:01:00.1"


def flex(root: Path, *, vfs: int = 0) -> Node:
    """Return a node with a Flex 140, which has *vfs* virtual functions by somebody else's hand."""
    return Node(nodes.sriov(root, vfs=vfs))


def ours(root: Path) -> Node:
    """Return a node whose Flex 140 has two virtual functions that we made and bound."""
    node = flex(root)
    node.apply(blueprint(TWO))
    return node


def made(root: Path) -> Node:
    """Return a node whose Flex 140 has two virtual functions that we made, and no more."""
    node = flex(root)
    node.carry_out(node.plan(blueprint(TWO)))
    return node


# Made


@scenario
def virtuals_are_made(root: Path) -> tuple[Node, Plan]:
    """They are made first; the units follow in the next pass. The physical one is none."""
    node = flex(root)
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_that_were_made_are_bound(root: Path) -> tuple[Node, Plan]:
    """They are units like any other."""
    node = made(root)
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_in_order(root: Path) -> tuple[Node, Plan]:
    """Made, bound and offered: there is nothing to do."""
    node = ours(root)
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_are_the_units_of_the_parents_pool(root: Path) -> tuple[Node, Plan]:
    """No other pool gets one, though it names it, and is the first."""
    node = made(root)
    return node, node.plan(blueprint(host("one", FIRST), TWO, REST_TO_HOST))


@scenario
def virtuals_count_for_the_limit(root: Path) -> tuple[Node, Plan]:
    """Those past the limit are nobody's: they do not fall through."""
    node = made(root)
    one = TWO.replace("select", "max_units = 1\nselect")
    return node, node.plan(blueprint(one, passthrough("others", "0000:01:00.2")))


@scenario
def virtuals_of_an_ignored_parent(root: Path) -> tuple[Node, Plan]:
    """Where the first pool that selects the parent asks for none they are functions as others."""
    node = flex(root, vfs=1)
    return node, node.plan(blueprint(host("stays", nodes.GPU), TWO))


@scenario
def virtuals_vanished(root: Path) -> tuple[Node, Plan]:
    """A reboot or somebody took ours away: they are made again, autoprobe's origin unchanged."""
    node = ours(root)
    for virtual in (FIRST, "0000:01:00.2"):
        node.drive(virtual, None)
    node.store(nodes.GPU, "sriov_numvfs", "0")
    return node, node.plan(blueprint(TWO))


# There already


@scenario
def virtuals_by_another_hand_are_used(root: Path) -> tuple[Node, Plan]:
    """As many as are asked for: they are bound, and not ours to remove."""
    node = flex(root, vfs=2)
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_by_another_hand_stay_after_a_release(root: Path) -> tuple[Node, Plan]:
    """To release their parent is to give them back and leave them there."""
    node = flex(root, vfs=2)
    node.apply(blueprint(TWO))
    return node, node.release(nodes.GPU)


@scenario
def virtuals_by_another_hand_of_another_number(root: Path) -> tuple[Node, Plan]:
    """What somebody else made is not taken away, and none of them is bound."""
    node = flex(root, vfs=1)
    return node, node.plan(blueprint(TWO))


# Another number


@scenario
def virtuals_of_another_number(root: Path) -> tuple[Node, Plan]:
    """Ours that nobody has go first, then the new number comes."""
    node = made(root)
    return node, node.plan(blueprint(THREE))


@scenario
def virtuals_of_another_number_while_bound(root: Path) -> tuple[Node, Plan]:
    """What is bound and offered stays so until an admin releases it."""
    node = ours(root)
    return node, node.plan(blueprint(THREE))


@scenario
def virtuals_of_another_number_while_one_has_a_driver(root: Path) -> tuple[Node, Plan]:
    """A driver that somebody gave to one of ours means that it is used."""
    node = made(root)
    node.kernel.run(("modprobe", "--", "pci-stub"), timeout_s=3)
    node.store(FIRST, "driver_override", "pci-stub")
    node.kernel.write("bus/pci/drivers/pci-stub/bind", FIRST)
    return node, node.plan(blueprint(THREE))


@scenario
def virtuals_whose_number_somebody_changed(root: Path) -> tuple[Node, Plan]:
    """We made two; now it has one, so that is not ours."""
    node = made(root)
    node.store(nodes.GPU, "sriov_numvfs", "0")
    node.store(nodes.GPU, "sriov_numvfs", "1")
    return node, node.plan(blueprint(TWO))


# Refused


@scenario
def virtuals_more_than_there_can_be(root: Path) -> tuple[Node, Plan]:
    """The device says how many it can have."""
    node = flex(root)
    return node, node.plan(blueprint(TWO.replace("= 2", "= 32")))


@scenario
def virtuals_without_a_driver(root: Path) -> tuple[Node, Plan]:
    """Only the host driver makes them."""
    node = flex(root)
    node.drive(nodes.GPU, None)
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_of_a_unit_of_ours(root: Path) -> tuple[Node, Plan]:
    """What was passed through as a whole goes back first."""
    node = flex(root)
    node.apply(blueprint(passthrough("whole", nodes.GPU)))
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_of_a_foreign_unit(root: Path) -> tuple[Node, Plan]:
    """What another tool bound to VFIO goes back by that tool."""
    node = flex(root)
    node.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    node.store(nodes.GPU, "driver_override", "vfio-pci")
    node.drive(nodes.GPU, "vfio-pci")
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_of_what_has_no_sriov(root: Path) -> tuple[Node, Plan]:
    """It is not passed through as a whole instead."""
    node = Node(nodes.single_gpu(root))
    return node, node.plan(blueprint(TWO.replace("8086", "10de")))


@scenario
def virtuals_of_a_storage_controller(root: Path) -> tuple[Node, Plan]:
    """Its pool is refused before anything is made."""
    node = flex(root)
    node.kernel.add_device(
        "0000:02:00.0",
        vendor=0x1B36,
        device=0x0010,
        class_code=0x010802,
        driver="nvme",
        parent="0000:00:02.0",
        total_vfs=4,
    )
    disks = TWO.replace('{ vendor = "8086" }', '{ class = "0108" }, { vendor = "8086" }')
    return node, node.plan(blueprint(disks))


@scenario
def virtuals_of_the_boot_display(root: Path) -> tuple[Node, Plan]:
    """It stays where it is, with the console; what it has may go."""
    node = Node(nodes.bare(root))
    node.kernel.add_device(
        nodes.GPU,
        vendor=0x8086,
        device=0x56C0,
        class_code=0x030000,
        driver="xe",
        boot_vga=True,
        total_vfs=7,
    )
    return node, node.plan(blueprint(TWO))


@scenario
def virtuals_failed(root: Path) -> tuple[Node, Plan]:
    """What could not be made is not tried again at once."""
    node = flex(root)
    failed = {nodes.GPU: "cannot write '2' to sriov_numvfs: Cannot allocate memory"}
    return node, node.plan(blueprint(TWO), failed=failed)


# Given back


@scenario
def release_of_virtuals(root: Path) -> tuple[Node, Plan]:
    """With everything go the virtual functions that we made, after they were given back."""
    node = ours(root)
    return node, node.release()


@scenario
def release_of_the_parent_of_virtuals(root: Path) -> tuple[Node, Plan]:
    """To release the physical function is to release all that it has."""
    node = ours(root)
    return node, node.release(nodes.GPU)


@scenario
def release_of_one_virtual(root: Path) -> tuple[Node, Plan]:
    """One that is given back stays there, as the others do."""
    node = ours(root)
    return node, node.release(FIRST)


@scenario
def release_of_virtuals_whose_number_somebody_changed(root: Path) -> tuple[Node, Plan]:
    """We made two and there is one: it is not ours to remove."""
    node, _ = virtuals_whose_number_somebody_changed(root)
    return node, node.release()


@scenario
def virtuals_that_no_pool_asks_for(root: Path) -> tuple[Node, Plan]:
    """They are left alone, as units are that no pool selects."""
    node = ours(root)
    return node, node.plan(blueprint())


@scenario
def virtuals_whose_parent_vanished(root: Path) -> tuple[Node, Plan]:
    """What was before we came stays in the ledger."""
    node = ours(root)
    node.kernel.unplug(nodes.GPU)
    return node, node.plan(blueprint(TWO))


@scenario
def release_of_virtuals_whose_parent_vanished(root: Path) -> tuple[Node, Plan]:
    """There is nothing to remove, so they are forgotten."""
    node = ours(root)
    node.kernel.unplug(nodes.GPU)
    return node, node.release()


@scenario
def removal_of_virtuals_interrupted(root: Path) -> tuple[Node, Plan]:
    """A kill after the last one had gone left autoprobe off: that is finished."""
    node = made(root)
    with node.killed_at("sriov_drivers_autoprobe"):
        node.carry_out(node.release())
    return node, node.plan(blueprint())
