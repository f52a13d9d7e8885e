"""Scenarios of units that somebody has or had, that hang, or that others keep changing."""

from pathlib import Path

from kata_gpu.model.operation import Operation
from kata_gpu.model.plan import Plan
from kata_gpu.model.restraint import Order
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.plans.blueprints import GPUS, blueprint, passthrough
from tests.plans.history import bound
from tests.plans.node import CDI, Node, scenario

_SPEC = f"{CDI}/kata-gpu-nvidia.com_pgpu.json"


@scenario
def gpu_that_somebody_computes_on(root: Path) -> tuple[Node, Plan]:
    """It waits, and no module is loaded for its sake alone."""
    node = Node(nodes.single_gpu(root))
    node.hold(nodes.GPU, "python3", "/dev/nvidia0")
    return node, node.plan(blueprint(GPUS))


@scenario
def one_of_four_is_held(root: Path) -> tuple[Node, Plan]:
    """The others do not wait for it."""
    node = Node(nodes.hgx(root))
    node.hold(nodes.HGX_GPUS[1], "python3", "/dev/nvidia1")
    return node, node.plan(blueprint(GPUS))


@scenario
def vm_came(root: Path) -> tuple[Node, Plan]:
    """That a VM has it is noted once, and changes nothing else."""
    node = bound(root)
    node.hold(nodes.GPU, "qemu-system-x86", "/dev/vfio/1")
    return node, node.plan(blueprint(GPUS))


@scenario
def vm_has_it_and_the_override_was_cleared(root: Path) -> tuple[Node, Plan]:
    """An override is put back under a running VM: no driver has to let go for that."""
    node = bound(root)
    node.know(is_used=True)
    node.hold(nodes.GPU, "qemu-system-x86", "/dev/vfio/1")
    node.store(nodes.GPU, "driver_override", "\n")
    return node, node.plan(blueprint(GPUS))


@scenario
def vm_has_it_and_is_asked_back(root: Path) -> tuple[Node, Plan]:
    """A release waits, and keeps the file by which the VM was given it."""
    node = bound(root)
    node.know(is_used=True)
    node.hold(nodes.GPU, "qemu-system-x86", "/dev/vfio/1")
    return node, node.release()


@scenario
def vm_went(root: Path) -> tuple[Node, Plan]:
    """It is withdrawn, reset, and offered again, in that order."""
    node = bound(root)
    node.know(is_used=True)
    return node, node.plan(blueprint(GPUS))


@scenario
def vm_went_and_nothing_resets_the_gpu(root: Path) -> tuple[Node, Plan]:
    """Nobody knows what is left in it."""
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
    node.apply(blueprint(GPUS))
    node.know(is_used=True)
    return node, node.plan(blueprint(GPUS))


@scenario
def unit_in_quarantine(root: Path) -> tuple[Node, Plan]:
    """It is not offered, and is not touched."""
    node = bound(root)
    node.know(is_used=True, quarantine="after its reset its BARs read ffffffff")
    return node, node.plan(blueprint(GPUS))


@scenario
def unit_that_hangs(root: Path) -> tuple[Node, Plan]:
    """Whatever the blueprint says, nothing more is written to it."""
    node = Node(nodes.single_gpu(root))
    node.hung = (
        Operation(
            pid=4711,
            attribute="bus/pci/drivers/nvidia/unbind",
            value=nodes.GPU,
            age_s=95.0,
            wait_channel="os_delay",
        ),
    )
    return node, node.plan(blueprint(GPUS))


@scenario
def unit_that_hangs_is_asked_back(root: Path) -> tuple[Node, Plan]:
    """Nor is it given back."""
    node = bound(root)
    node.hung = (
        Operation(
            pid=4711,
            attribute="bus/pci/drivers/vfio-pci/unbind",
            value=nodes.GPU,
            age_s=12.0,
            wait_channel=None,
        ),
    )
    return node, node.release()


@scenario
def drift_is_only_reported(root: Path) -> tuple[Node, Plan]:
    """The device and the file are named, and stay as somebody made them."""
    node = bound(root)
    node.kept = Order(units=frozenset({nodes.GPU}), files={_SPEC: _content(node)})
    node.store(nodes.GPU, "driver_override", "\n")
    node.put(_SPEC, "{}")
    return node, node.plan(blueprint(GPUS))


def _content(node: Node) -> str:
    return node.kernel.host.path(_SPEC).read_text(encoding="utf-8")


def _card(root: Path, *, audio: str, reset_methods: tuple[str, ...]) -> FakeKernel:
    """Return a node with a GPU and a function that the IOMMU isolates from it."""
    kernel = nodes.bare(root)
    kernel.add_device(
        nodes.GPU,
        vendor=0x10DE,
        device=0x2204,
        class_code=0x030000,
        driver="nvidia",
        group=1,
        multifunction=True,
        reset_methods=reset_methods,
    )
    kernel.add_device(
        audio,
        vendor=0x10DE,
        device=0x1AEF,
        class_code=0x040300,
        driver="snd_hda_intel",
        group=2,
        multifunction=True,
        reset_methods=(),
    )
    return kernel


@scenario
def gpu_and_its_audio_in_groups_of_their_own(root: Path) -> tuple[Node, Plan]:
    """One card goes to one guest, whatever the IOMMU could tell apart."""
    node = Node(_card(root, audio=nodes.AUDIO, reset_methods=("flr",)))
    return node, node.plan(blueprint(GPUS))


@scenario
def card_of_two_groups_is_given_back(root: Path) -> tuple[Node, Plan]:
    """Its functions go home together too."""
    node = Node(_card(root, audio=nodes.AUDIO, reset_methods=("flr",)))
    node.apply(blueprint(GPUS))
    return node, node.release()


@scenario
def reset_of_the_gpu_reaches_another_slot(root: Path) -> tuple[Node, Plan]:
    """What is reset with it must be the guest's too, and a stranger keeps both at home."""
    node = Node(_card(root, audio="0000:01:01.0", reset_methods=("bus",)))
    return node, node.plan(blueprint(GPUS))


@scenario
def what_a_reset_reaches_is_named(root: Path) -> tuple[Node, Plan]:
    """Then both are one unit."""
    node = Node(_card(root, audio="0000:01:01.0", reset_methods=("bus",)))
    return node, node.plan(blueprint(passthrough("both", nodes.GPU, "0000:01:01.0")))
