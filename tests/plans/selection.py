"""Scenarios of which units a blueprint gets: pools, limits, and what is in the way."""

from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.plans.blueprints import (
    AT_LEAST_THREE,
    AT_MOST_TWO,
    GPUS,
    ONE_PAIR,
    REST_TO_HOST,
    SWITCHES,
    blueprint,
    host,
    ignore,
    passthrough,
)
from tests.plans.node import Node, scenario

H100: Final = 0x2330
GEFORCE: Final = 0x1E04


def add_h100(kernel: FakeKernel, address: str, *, group: int | None = None) -> None:
    """Add one more H100, on its host driver."""
    kernel.add_device(
        address, vendor=0x10DE, device=H100, class_code=0x030200, driver="nvidia", group=group
    )


def add_network_card(kernel: FakeKernel, address: str, *, group: int) -> None:
    """Add a network card that no driver holds."""
    kernel.add_device(address, vendor=0x8086, device=0x10D3, class_code=0x020000, group=group)


def gpu_and_network_card(root: Path) -> FakeKernel:
    """Return a node with a GPU and a network card behind one PCI bridge, in its group."""
    kernel = nodes.bare(root)
    kernel.add_port("0000:01:00.0", group=1)
    add_h100(kernel, nodes.BRIDGED[0], group=1)
    add_network_card(kernel, nodes.BRIDGED[1], group=1)
    return kernel


@scenario
def single_gpu_on_its_host_driver(root: Path) -> tuple[Node, Plan]:
    """The module is loaded, the GPU moved, the CDI spec written, in that order."""
    node = Node(nodes.single_gpu(root))
    return node, node.plan(blueprint(GPUS))


@scenario
def vfio_pci_is_loaded(root: Path) -> tuple[Node, Plan]:
    """A module that is there is not loaded again."""
    node = Node(nodes.single_gpu(root))
    node.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    return node, node.plan(blueprint(GPUS))


@scenario
def gpu_with_audio(root: Path) -> tuple[Node, Plan]:
    """The audio function of the card goes with its GPU, though no pool names it."""
    node = Node(nodes.gpu_with_audio(root))
    return node, node.plan(blueprint(GPUS))


@scenario
def three_vendors(root: Path) -> tuple[Node, Plan]:
    """Each pool has its own resource, and so its own CDI spec."""
    node = Node(nodes.three_vendors(root))
    amd = passthrough("amd", nodes.AMD_GPU, resource="amd.com/pgpu")
    intel = passthrough("intel", nodes.INTEL_GPU, resource="intel.com/pgpu")
    return node, node.plan(blueprint(GPUS, amd, intel))


@scenario
def blueprint_without_pools(root: Path) -> tuple[Node, Plan]:
    """What no pool selects is left alone."""
    node = Node(nodes.single_gpu(root))
    return node, node.plan(blueprint())


@scenario
def bridge_pair_with_a_stranger(root: Path) -> tuple[Node, Plan]:
    """A network card that no pool names keeps its group on the host."""
    node = Node(gpu_and_network_card(root))
    return node, node.plan(blueprint(GPUS))


@scenario
def bridge_pair_named_by_address(root: Path) -> tuple[Node, Plan]:
    """With both named the pair goes as one unit, called after the GPU; the bridge stays."""
    node = Node(gpu_and_network_card(root))
    return node, node.plan(blueprint(passthrough("pair", *reversed(nodes.BRIDGED))))


@scenario
def bridge_pair_with_the_stranger_ignored(root: Path) -> tuple[Node, Plan]:
    """To be ignored by name is not to be given away."""
    node = Node(gpu_and_network_card(root))
    return node, node.plan(blueprint(ignore("network", nodes.BRIDGED[1]), GPUS))


@scenario
def bridge_pair_of_gpus(root: Path) -> tuple[Node, Plan]:
    """Two GPUs of one group are one unit."""
    node = Node(nodes.bridge_pair(root))
    return node, node.plan(blueprint(GPUS))


@scenario
def modes_that_differ_in_one_group(root: Path) -> tuple[Node, Plan]:
    """Two GPUs of one group cannot go two ways."""
    node = Node(nodes.bridge_pair(root))
    pools = passthrough("one", nodes.BRIDGED[0]), host("other", nodes.BRIDGED[1])
    return node, node.plan(blueprint(*pools))


@scenario
def hgx_with_its_switch(root: Path) -> tuple[Node, Plan]:
    """GPUs by vendor, the NVSwitch by its class in a pool of its own."""
    node = Node(nodes.hgx(root))
    return node, node.plan(blueprint(GPUS, SWITCHES))


@scenario
def limit_overflows_to_the_next_pool(root: Path) -> tuple[Node, Plan]:
    """The first two by address go; the next pool keeps the others on the host."""
    node = Node(nodes.hgx(root))
    return node, node.plan(blueprint(AT_MOST_TWO, REST_TO_HOST))


@scenario
def limit_keeps_what_is_ours(root: Path) -> tuple[Node, Plan]:
    """The last GPU is ours already, so it counts before the first."""
    node = Node(nodes.hgx(root))
    node.apply(blueprint(passthrough("gpus", nodes.HGX_GPUS[3])))
    return node, node.plan(blueprint(AT_MOST_TWO, REST_TO_HOST))


@scenario
def limit_lowered_below_what_is_ours(root: Path) -> tuple[Node, Plan]:
    """What no longer fits overflows to the host pool, so it is given back."""
    node = Node(nodes.hgx(root))
    node.apply(blueprint(GPUS))
    return node, node.plan(blueprint(AT_MOST_TWO, REST_TO_HOST))


@scenario
def limit_overflows_by_whole_groups(root: Path) -> tuple[Node, Plan]:
    """All GPUs of the second group overflow together: its pools do not disagree."""
    kernel = nodes.bridge_pair(root)
    kernel.add_port("0000:03:00.0", group=3)
    for address in ("0000:04:01.0", "0000:04:02.0"):
        add_h100(kernel, address, group=3)
    node = Node(kernel)
    return node, node.plan(blueprint(ONE_PAIR, REST_TO_HOST))


@scenario
def too_few_units(root: Path) -> tuple[Node, Plan]:
    """Fewer units than the pool expects are worth a warning, and are passed through."""
    node = Node(nodes.single_gpu(root))
    return node, node.plan(blueprint(AT_LEAST_THREE))


@scenario
def first_pool_wins(root: Path) -> tuple[Node, Plan]:
    """A GPU that two pools select belongs to the one that comes first."""
    node = Node(nodes.hgx(root))
    special = passthrough("special", nodes.HGX_GPUS[1], resource="nvidia.com/special")
    return node, node.plan(blueprint(special, GPUS))


@scenario
def ignore_before_passthrough(root: Path) -> tuple[Node, Plan]:
    """What an earlier pool ignores no later one gets."""
    node = Node(nodes.hgx(root))
    return node, node.plan(blueprint(ignore("mine", *nodes.HGX_GPUS[:3]), GPUS))


@scenario
def boot_display_refused(root: Path) -> tuple[Node, Plan]:
    """The pool that selects the console is refused whole; other pools go on."""
    kernel = nodes.boot_display(root)
    add_h100(kernel, "0000:05:00.0")
    add_h100(kernel, "0000:06:00.0")
    node = Node(kernel)
    sound = passthrough("sound", "0000:05:00.0", resource="nvidia.com/special")
    return node, node.plan(blueprint(sound, GPUS))


@scenario
def storage_controller_selected(root: Path) -> tuple[Node, Plan]:
    """No pool may select a disk, by address neither."""
    node = Node(nodes.storage_in_group(root))
    return node, node.plan(blueprint(passthrough("all", nodes.GPU, nodes.DISK)))


@scenario
def storage_in_the_group(root: Path) -> tuple[Node, Plan]:
    """A GPU that shares its group with a disk stays."""
    node = Node(nodes.storage_in_group(root))
    return node, node.plan(blueprint(GPUS))


@scenario
def no_iommu(root: Path) -> tuple[Node, Plan]:
    """Without an IOMMU nothing can be passed through."""
    node = Node(nodes.no_iommu(root))
    return node, node.plan(blueprint(GPUS))


@scenario
def iommu_does_not_translate_for_it(root: Path) -> tuple[Node, Plan]:
    """An IOMMU that leaves one GPU out says so of that GPU alone."""
    kernel = nodes.single_gpu(root)
    kernel.add_device(
        "0000:02:00.0", vendor=0x10DE, device=H100, class_code=0x030200, translated=False
    )
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def no_interrupt_remapping(root: Path) -> tuple[Node, Plan]:
    """VFIO would refuse the group when a VM starts; so it is refused now."""
    kernel = FakeKernel(root, interrupt_remapping=False)
    kernel.add_driver("nvidia", ids=[(0x10DE, H100)])
    add_h100(kernel, nodes.GPU)
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def unsafe_interrupts_allowed(root: Path) -> tuple[Node, Plan]:
    """An admin who allowed unsafe interrupts has decided."""
    kernel = FakeKernel(root, interrupt_remapping=False, unsafe_interrupts=True)
    kernel.add_driver("nvidia", ids=[(0x10DE, H100)])
    kernel.add_driver("vfio-pci", vfio=True, loaded=False)
    add_h100(kernel, nodes.GPU)
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def firmware_demands_a_direct_mapping(root: Path) -> tuple[Node, Plan]:
    """The kernel would refuse the group to every guest."""
    kernel = nodes.gpu_with_audio(root)
    kernel.tree.reserve_direct(1)
    node = Node(kernel)
    return node, node.plan(blueprint(GPUS))


@scenario
def physical_function_with_virtual_functions(root: Path) -> tuple[Node, Plan]:
    """The owner of virtual functions in use stays; they are units of their own."""
    node = Node(nodes.sriov(root, vfs=2))
    pool = GPUS.replace("10de", "8086").replace("nvidia", "intel")
    return node, node.plan(blueprint(pool))
