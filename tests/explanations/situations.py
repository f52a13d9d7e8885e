"""Situations to be explained, each come about on a fake kernel by the agent's own turns."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_gpu.agent import explaining, node
from kata_gpu.agent.node import Turn
from kata_gpu.errors import HostError
from kata_gpu.model.explanation import Said, Unsaid
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.restraint import Order, Setback
from kata_gpu.model.unit import UnitState
from kata_gpu.observe import said
from kata_gpu.observe.document import document
from kata_gpu.plan.explanation import Facts
from kata_gpu.settings import blueprint as file
from tests.kernel import nodes
from tests.kernel.fake import ROOT_PORT, FakeKernel
from tests.kernel.nvml import Nvml
from tests.passthrough import SETTINGS, journal_of
from tests.plans import blueprints
from tests.plans.blueprints import AT_MOST_TWO, GPUS, REST_TO_HOST, blueprint
from tests.plans.claims import ON_CLAIM
from tests.plans.files import GO, GO_CONFIG
from tests.plans.virtuals import TWO

NO_AGENT: Final = Unsaid(reason="no agent runs")
UID: Final = "0b1c2d3e-4f50-4a6b-8c7d-9e0f1a2b3c4d"
POD: Final = f"/kubepods/pod{UID}/{'3f' * 32}"

Build = Callable[[Path], tuple[Facts, str]]

SITUATIONS: Final[dict[str, Build]] = {}
"""By name, which is the name of the golden file."""


def situation(build: Build) -> Build:
    SITUATIONS[build.__name__.replace("_", "-")] = build
    return build


@dataclass
class World:
    """A node, its blueprint, and an agent that may run on it."""

    kernel: FakeKernel
    text: str

    def turn(self, **known: Any) -> Turn:
        """Let the agent take a turn, with what is *known* from those before."""
        wanted = file.parse(self.text)
        journal = journal_of(self.kernel.host)
        return node.converge(self.kernel.host, SETTINGS, wanted, journal, **known)

    def word(self, turn: Turn | None = None) -> Said | Unsaid:
        """Return what an agent says after a turn, as its socket brings it."""
        turn = turn or self.turn()
        wanted, ledger = file.parse(self.text), journal_of(self.kernel.host).ledger
        found = node.describe(turn, SETTINGS, wanted, ledger, number=7, last_report=turn.report)
        return said.parse(json.loads(json.dumps({"ready": True, **document(found)})))

    def look(self, address: str = nodes.GPU, *, word: Said | Unsaid = NO_AGENT) -> Facts:
        return explaining.look(
            self.kernel.host,
            SETTINGS,
            file.parse(self.text),
            journal_of(self.kernel.host).ledger,
            PciAddress.parse(address),
            word,
        )

    def drive(self, address: str, before: str, after: str) -> None:
        """Move a function to another driver by somebody else's hand."""
        self.kernel.write(f"bus/pci/drivers/{before}/unbind", address)
        self.kernel.write(f"bus/pci/devices/{address}/driver_override", after)
        self.kernel.write(f"bus/pci/drivers/{after}/bind", address)


def people(kernel: FakeKernel) -> None:
    kernel.tree.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nana:x:1000:1000::/:/bin/sh\n")
    kernel.tree.text(f"var/log/pods/ml_train-0_{UID}/train/0.log", "")


def named_gpu(root: Path) -> FakeKernel:
    """Return a node with a GPU that has confidential modes."""
    kernel = nodes.single_gpu(root)
    names = "#\n10de  NVIDIA Corporation\n\t2330  GH100 [H100 SXM5 80GB]\n"
    kernel.tree.text("usr/share/misc/pci.ids", names)
    return kernel


@situation
def available_for_a_kata_handler(root: Path) -> tuple[Facts, str]:
    """It says how a pod asks for it."""
    world = World(nodes.gpu_with_audio(root), blueprint(GPUS, GO))
    base = world.kernel.host.path(GO_CONFIG)
    base.parent.mkdir(parents=True)
    base.write_text("")
    return world.look(word=world.word()), nodes.GPU


@situation
def available_and_the_handler_is_not_installed(root: Path) -> tuple[Facts, str]:
    """What would go wrong for the pod is told."""
    world = World(nodes.single_gpu(root), blueprint(GPUS, GO))
    world.turn()
    return world.look(), nodes.GPU


@situation
def available_in_a_confidential_mode(root: Path) -> tuple[Facts, str]:
    """The mode is told, and what the host driver said of its memory."""
    world = World(named_gpu(root), blueprint(GPUS))
    nvml = Nvml(world.kernel, persistent=set())
    nvml.memory_bytes = 85_520_809_984
    world.kernel.on_run = nvml.run
    world.kernel.tree.show_register(nodes.GPU, 0x1182CC, 1)
    return world.look(word=world.word()), nodes.GPU


@situation
def available_and_its_mode_cannot_be_read(root: Path) -> tuple[Facts, str]:
    """Why nobody knows the mode is told."""
    world = World(named_gpu(root), blueprint(GPUS))
    world.kernel.is_locked_down = True
    return world.look(word=world.word()), nodes.GPU


@situation
def available_and_nobody_read_its_mode(root: Path) -> tuple[Facts, str]:
    """When it will be read is told."""
    world = World(named_gpu(root), blueprint(GPUS))
    word = world.word()
    journal_of(world.kernel.host).amend(nodes.GPU, cc_mode=None)
    return world.look(word=word), nodes.GPU


@situation
def unclaimed_and_its_mode_is_read_with_the_claim(root: Path) -> tuple[Facts, str]:
    """It is no attribute then, for a claim would change it."""
    world = World(named_gpu(root), blueprint(ON_CLAIM))
    return world.look(word=world.word()), nodes.GPU


@situation
def unclaimed(root: Path) -> tuple[Facts, str]:
    """A claim brings it, and would wait for somebody."""
    world = World(nodes.single_gpu(root), blueprint(ON_CLAIM, GO))
    card = world.kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    with world.kernel.process("Xorg", card):
        return world.look(word=world.word()), nodes.GPU


@situation
def in_use_by_a_vm_of_a_pod(root: Path) -> tuple[Facts, str]:
    """The pod is named, and that nothing has to be mended."""
    world = World(nodes.single_gpu(root), blueprint(GPUS, GO))
    people(world.kernel)
    world.turn()
    with world.kernel.process("qemu-system-x86", world.kernel.tree.node(1), cgroup=POD):
        return world.look(word=world.word()), nodes.GPU


@situation
def waiting_for_a_process_in_a_pod(root: Path) -> tuple[Facts, str]:
    """Each pod is told once, and each process outside; the driver's module is told too."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    people(world.kernel)
    card = world.kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    world.kernel.tree.text("sys/module/nvidia/refcnt", "3\n")
    world.kernel.tree.text("sys/module/nvidia/holders/nvidia_uvm/refcnt", "1\n")
    with (
        world.kernel.process("python3", card, uid=1000, cgroup=POD),
        world.kernel.process("python3", card, uid=1000, cgroup=POD),
        world.kernel.process("Xorg", card),
    ):
        return world.look(word=world.word()), nodes.GPU


@situation
def refused_for_a_disk_in_the_group(root: Path) -> tuple[Facts, str]:
    """The function in the way and the mend."""
    world = World(nodes.storage_in_group(root), blueprint(GPUS))
    return world.look(word=world.word()), nodes.GPU


@situation
def refused_for_a_neighbour_that_cannot_be_read(root: Path) -> tuple[Facts, str]:
    """What could not be read is told with the reason."""
    world = World(nodes.gpu_with_audio(root), blueprint(GPUS))
    world.kernel.unreadable(nodes.AUDIO, "resource")
    return world.look(), nodes.GPU


@situation
def refused_without_an_iommu(root: Path) -> tuple[Facts, str]:
    """What is in the way of all is told of each."""
    return World(nodes.no_iommu(root), blueprint(GPUS)).look(), nodes.GPU


@situation
def foreign(root: Path) -> tuple[Facts, str]:
    """On VFIO by somebody else's hand."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    world.kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    world.drive(nodes.GPU, "nvidia", "vfio-pci")
    return world.look(word=world.word()), nodes.GPU


@situation
def stuck_in_an_unbind(root: Path) -> tuple[Facts, str]:
    """The process, where it sleeps, and what must wait for it."""
    world = World(nodes.gpu_with_audio(root), blueprint(GPUS))
    world.turn()
    kernel = world.kernel
    with kernel.process("qemu-system-x86", kernel.tree.node(1)):
        kernel.tree.add_child(4_100_000, "bus/pci/drivers/vfio-pci/unbind", nodes.GPU)
        return world.look(nodes.AUDIO, word=world.word()), nodes.AUDIO


@situation
def stuck_in_a_removal(root: Path) -> tuple[Facts, str]:
    """It holds up every change of the bus, and with it the reboot."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    world.turn()
    world.kernel.tree.add_child(4_100_000, f"bus/pci/devices/{nodes.GPU}/remove", "1")
    return world.look(), nodes.GPU


@situation
def available_while_a_neighbour_is_being_removed(root: Path) -> tuple[Facts, str]:
    """A removal that hangs concerns the others too."""
    world = World(nodes.three_vendors(root), blueprint(GPUS))
    world.turn()
    world.kernel.tree.add_child(4_100_000, f"bus/pci/devices/{nodes.AMD_GPU}/remove", "1")
    return world.look(), nodes.GPU


def after_a_vm(world: World) -> None:
    world.turn()
    with world.kernel.process("qemu-system-x86", world.kernel.tree.node(1)):
        world.turn()


@situation
def quarantined(root: Path) -> tuple[Facts, str]:
    """The evidence, and that an admin has the last word."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    after_a_vm(world)

    def turn_to_ones(path: str, _value: str) -> None:
        if path.endswith("/reset"):
            world.kernel.tree.show_config(nodes.GPU, b"\xff" * 64)

    world.kernel.after_write = turn_to_ones
    return world.look(word=world.word()), nodes.GPU


@situation
def cleaned_and_available(root: Path) -> tuple[Facts, str]:
    """What was done after the last user."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    after_a_vm(world)
    return world.look(word=world.word()), nodes.GPU


@situation
def failed(root: Path) -> tuple[Facts, str]:
    """The agent alone knows: a look would call it pending."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))

    def refuse(path: str, _value: str) -> None:
        if path.endswith("nvidia/unbind"):
            raise HostError("cannot write it: No such device")

    world.kernel.on_write = refuse
    return world.look(word=world.word()), nodes.GPU


@situation
def drifted(root: Path) -> tuple[Facts, str]:
    """What somebody changed is named, and how it is put back."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    world.turn()
    world.kernel.write(f"bus/pci/devices/{nodes.GPU}/driver_override", "\n")
    turn = world.turn(kept=Order(units=frozenset({nodes.GPU})))
    return world.look(word=world.word(turn)), nodes.GPU


@situation
def contested(root: Path) -> tuple[Facts, str]:
    """The agent alone knows that it did this three times."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    world.turn()
    world.kernel.write(f"bus/pci/devices/{nodes.GPU}/driver_override", "\n")
    why = Setback(
        reason="foreign writer: another program undid it 3 times within 10 minutes",
        state=UnitState.CONTESTED,
    )
    return world.look(word=world.word(world.turn(failed={nodes.GPU: why}))), nodes.GPU


@situation
def pending_without_an_agent(root: Path) -> tuple[Facts, str]:
    """What would be done, and that nobody does it."""
    return World(nodes.single_gpu(root), blueprint(GPUS)).look(), nodes.GPU


@situation
def pending_for_an_agent_that_does_not_know_it_yet(root: Path) -> tuple[Facts, str]:
    """It came after the agent's last turn."""
    world = World(nodes.bare(root), blueprint(GPUS))
    word = world.word()
    world = World(nodes.single_gpu(root / "later"), blueprint(GPUS))
    return world.look(word=word), nodes.GPU


@situation
def on_the_host_by_another_pool(root: Path) -> tuple[Facts, str]:
    """It is where the blueprint wants it."""
    world = World(nodes.hgx(root), blueprint(AT_MOST_TWO, REST_TO_HOST))
    return world.look(nodes.HGX_GPUS[3], word=world.word()), nodes.HGX_GPUS[3]


@situation
def ignored_though_it_is_ours(root: Path) -> tuple[Facts, str]:
    """To ignore is to leave alone."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    world.turn()
    world.text = blueprint(blueprints.ignore("mine", nodes.GPU))
    return world.look(word=world.word()), nodes.GPU


@situation
def selected_by_no_pool(root: Path) -> tuple[Facts, str]:
    """For each pool the first condition that it misses."""
    pools = """
[[pool]]
name = "nvidia"
mode = "passthrough"
resource = "nvidia.com/pgpu"
select = [{ vendor = "10de" }, { vendor = "1002", device = "74a1" }]

[[pool]]
name = "by-place"
mode = "passthrough"
resource = "example.com/pgpu"
select = [{ class = "0302" }, { class = "03", numa_node = 1 }, { product = "*MI300*" }]
"""
    world = World(nodes.three_vendors(root), blueprint(pools))
    return world.look(nodes.AMD_GPU, word=world.word()), nodes.AMD_GPU


@situation
def left_over_when_its_pool_was_full(root: Path) -> tuple[Facts, str]:
    """A pool that selects it may have no room."""
    gpu = nodes.HGX_GPUS[3]
    return World(nodes.hgx(root), blueprint(AT_MOST_TWO)).look(gpu), gpu


@situation
def wanted_by_two_pools(root: Path) -> tuple[Facts, str]:
    """A group that two pools want for different ends is no unit; its second GPU says so too."""
    pools = (
        blueprints.passthrough("one", nodes.BRIDGED[0]),
        blueprints.host("two", nodes.BRIDGED[1]),
    )
    world = World(nodes.bridge_pair(root), blueprint(*pools))
    return world.look(nodes.BRIDGED[1]), nodes.BRIDGED[1]


@situation
def companion_function(root: Path) -> tuple[Facts, str]:
    """An audio function is explained by its GPU's unit."""
    world = World(nodes.gpu_with_audio(root), blueprint(GPUS))
    world.turn()
    return world.look(nodes.AUDIO), nodes.AUDIO


@situation
def companion_of_a_gpu_that_no_pool_selects(root: Path) -> tuple[Facts, str]:
    """It goes nowhere without its GPU."""
    world = World(nodes.gpu_with_audio(root), blueprint())
    return world.look(nodes.AUDIO), nodes.AUDIO


@situation
def root_port(root: Path) -> tuple[Facts, str]:
    """A bridge stays, and what is below it is named."""
    return World(nodes.single_gpu(root), blueprint(GPUS)).look(ROOT_PORT), ROOT_PORT


@situation
def bridge_in_the_group_of_a_unit(root: Path) -> tuple[Facts, str]:
    """A bridge in a unit's group is explained by the unit, and stays."""
    world = World(nodes.bridge_pair(root), blueprint(GPUS))
    world.turn()
    return world.look("0000:01:00.0"), "0000:01:00.0"


@situation
def network_card_that_no_pool_could_select(root: Path) -> tuple[Facts, str]:
    """What neither a GPU nor the blueprint brings in is explained all the same."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    nic = "0000:09:00.0"
    world.kernel.add_device(
        nic, vendor=0x8086, device=0x10D3, class_code=0x020000, parent="0000:00:09.0"
    )
    return world.look(nic), nic


@situation
def ours_and_gone(root: Path) -> tuple[Facts, str]:
    """A card that was pulled: what was there before is still known."""
    world = World(nodes.gpu_with_audio(root), blueprint(GPUS))
    world.turn()
    world.kernel.unplug(nodes.AUDIO)
    world.kernel.unplug(nodes.GPU)
    return world.look(nodes.AUDIO, word=world.word()), nodes.AUDIO


@situation
def ours_and_selected_no_more(root: Path) -> tuple[Facts, str]:
    """It stays bound, and nobody is offered it."""
    world = World(nodes.single_gpu(root), blueprint(GPUS))
    world.turn()
    world.text = blueprint()
    return world.look(word=world.word()), nodes.GPU


@situation
def parent_of_virtual_functions(root: Path) -> tuple[Facts, str]:
    """It is no unit, and what it has are."""
    world = World(nodes.sriov(root), blueprint(TWO))
    return world.look(word=world.word()), nodes.GPU


@situation
def parent_whose_virtual_functions_are_to_be_made(root: Path) -> tuple[Facts, str]:
    """Nothing is wrong; the agent has yet to do it."""
    world = World(nodes.sriov(root), blueprint(TWO))
    return world.look(), nodes.GPU


@situation
def parent_with_another_number_of_virtual_functions(root: Path) -> tuple[Facts, str]:
    """Somebody else made another number, and what to do about that is said."""
    world = World(nodes.sriov(root, vfs=1), blueprint(TWO))
    return world.look(word=world.word()), nodes.GPU


@situation
def virtual_function_of_such_a_parent(root: Path) -> tuple[Facts, str]:
    """What keeps it from being bound is its parent's matter."""
    world = World(nodes.sriov(root, vfs=1), blueprint(TWO))
    return world.look(word=world.word()), "0000:01:00.1"
