"""Scenarios of the files that tell other programs: CDI specs and Kata drop-ins."""

from pathlib import Path
from typing import Final

from kata_gpu.model.plan import Plan
from tests.kernel import nodes
from tests.plans.blueprints import GPUS, blueprint, handler, passthrough
from tests.plans.node import PGPU_SPEC, Node, scenario

GO_CONFIG: Final = "/opt/kata/configuration-go.toml"
RUST_CONFIG: Final = "/opt/kata/rust/configuration-rust.toml"
RUST_BASE: Final = """\
[hypervisor.qemu]
[runtime]
name = "virt_container"
hypervisor_name = "qemu"
agent_name = "kata"
"""
QUARANTINE: Final = '[kata]\nquarantine = ["*-oldvendor*.toml"]'
GO: Final = handler("kata-go", "go", GO_CONFIG)
RUST: Final = handler("kata-rust", "rust", RUST_CONFIG)


def with_kata(root: Path) -> Node:
    """Return a node with one GPU and both Kata runtimes."""
    node = Node(nodes.single_gpu(root))
    node.put(GO_CONFIG, "[hypervisor.qemu]\n")
    node.put(RUST_CONFIG, RUST_BASE)
    return node


@scenario
def cdi_spec_changed_by_hand(root: Path) -> tuple[Node, Plan]:
    """A file of ours is ours: it is replaced."""
    node = Node(nodes.single_gpu(root))
    node.apply(blueprint(GPUS))
    node.put(PGPU_SPEC, '{"cdiVersion": "1.0.0"}')
    return node, node.plan(blueprint(GPUS))


@scenario
def cdi_spec_damaged_before_a_release(root: Path) -> tuple[Node, Plan]:
    """A spec that cannot be read names nothing worth keeping; the next pass writes it anew."""
    node = Node(nodes.hgx(root))
    node.apply(blueprint(GPUS))
    node.put(PGPU_SPEC, "{")
    return node, node.release(nodes.HGX_GPUS[0])


@scenario
def cdi_resource_renamed(root: Path) -> tuple[Node, Plan]:
    """The spec of the old name goes, the GPU stays where it is."""
    node = Node(nodes.single_gpu(root))
    node.apply(blueprint(GPUS))
    return node, node.plan(blueprint(GPUS.replace("nvidia.com/pgpu", "example.com/gpu")))


@scenario
def iommufd_before_the_bind(root: Path) -> tuple[Node, Plan]:
    """The kernel numbers the device node when it binds, so the spec has to wait."""
    node = Node(nodes.single_gpu(root, cdevs=True), iommufd=True)
    return node, node.plan(blueprint(GPUS))


@scenario
def iommufd_after_the_bind(root: Path) -> tuple[Node, Plan]:
    """Once bound, the spec names the device node of each function."""
    node = Node(nodes.single_gpu(root, cdevs=True), iommufd=True)
    node.carry_out(node.plan(blueprint(GPUS)))
    return node, node.plan(blueprint(GPUS))


@scenario
def iommufd_without_device_nodes(root: Path) -> tuple[Node, Plan]:
    """A kernel with iommufd and no VFIO device nodes falls back to the group's."""
    node = Node(nodes.single_gpu(root), iommufd=True)
    node.carry_out(node.plan(blueprint(GPUS)))
    return node, node.plan(blueprint(GPUS))


@scenario
def drop_ins_of_both_runtimes(root: Path) -> tuple[Node, Plan]:
    """Each handler gets a drop-in in its own dialect, after the GPUs are published."""
    node = with_kata(root)
    return node, node.plan(blueprint(GPUS, GO, RUST))


@scenario
def release_of_all_with_drop_ins(root: Path) -> tuple[Node, Plan]:
    """The drop-ins go last: a unit that a VM keeps leaves them in place."""
    node = with_kata(root)
    node.apply(blueprint(GPUS, GO, RUST))
    return node, node.release()


@scenario
def drop_in_behind_a_link(root: Path) -> tuple[Node, Plan]:
    """Kata reads config.d beside the real file, so ours goes there."""
    node = with_kata(root)
    link = node.root / "opt/kata/runtimes/gpu.toml"
    link.parent.mkdir()
    link.symlink_to("../rust/configuration-rust.toml")
    pointed = handler("kata-rust", "rust", "/opt/kata/runtimes/gpu.toml")
    return node, node.plan(blueprint(GPUS, pointed))


@scenario
def drop_in_of_a_handler_that_left_the_blueprint(root: Path) -> tuple[Node, Plan]:
    """Its drop-in goes, the other's stays."""
    node = with_kata(root)
    node.apply(blueprint(GPUS, GO, RUST))
    return node, node.plan(blueprint(GPUS, GO))


@scenario
def drop_in_changed_by_hand(root: Path) -> tuple[Node, Plan]:
    """Settings belong in the blueprint: what was written into our file is undone."""
    node = with_kata(root)
    node.apply(blueprint(GPUS, GO))
    node.put("/opt/kata/config.d/60-kata-gpu.toml", "[hypervisor.qemu]\npcie_root_port = 3\n")
    return node, node.plan(blueprint(GPUS, GO))


@scenario
def drop_in_of_others_is_no_toml(root: Path) -> tuple[Node, Plan]:
    """Where nothing starts whatever we write, ours is not written; the rest goes on."""
    node = with_kata(root)
    node.put("/opt/kata/config.d/README", "Put your settings here.\n")
    return node, node.plan(blueprint(GPUS, GO, RUST))


@scenario
def drop_in_of_others_broke_after_ours_was_written(root: Path) -> tuple[Node, Plan]:
    """Ours is not the cause, so it stays as it is."""
    node = with_kata(root)
    node.apply(blueprint(GPUS, GO))
    node.put("/opt/kata/config.d/90-x.toml", "[hypervisor.qemu]\nno_such_key = 1\n")
    return node, node.plan(blueprint(GPUS, GO))


@scenario
def drop_in_of_others_does_not_go_with_ours(root: Path) -> tuple[Node, Plan]:
    """What both together would stop, ours alone does not: it is removed."""
    node = with_kata(root)
    node.apply(blueprint(GPUS, GO))
    node.put("/opt/kata/config.d/90-x.toml", '[hypervisor.qemu]\nhot_plug_vfio = "root-port"\n')
    return node, node.plan(blueprint(GPUS, GO))


@scenario
def drop_in_of_others_has_the_last_word(root: Path) -> tuple[Node, Plan]:
    """Ours is written; who overrides it is named with the value."""
    node = with_kata(root)
    node.put("/opt/kata/rust/config.d/90-x.toml", "[hypervisor.qemu]\npcie_root_port = 2\n")
    return node, node.plan(blueprint(GPUS, RUST))


def with_a_left_drop_in(root: Path) -> Node:
    """Return a node where an owner who is gone left what stops every pod."""
    node = with_kata(root)
    node.put("/opt/kata/config.d/90-oldvendor.toml", "[hypervisor.qemu]\nno_such_key = 1\n")
    return node


@scenario
def drop_in_of_others_is_in_quarantine(root: Path) -> tuple[Node, Plan]:
    """It is moved, and only then ours is written, of what is left."""
    node = with_a_left_drop_in(root)
    return node, node.plan(blueprint(QUARANTINE, GPUS, GO))


@scenario
def drop_in_of_others_was_moved_away(root: Path) -> tuple[Node, Plan]:
    """The second round: the runtime starts pods again, so ours is written."""
    node = with_a_left_drop_in(root)
    node.carry_out(node.plan(blueprint(QUARANTINE, GPUS, GO)))
    return node, node.plan(blueprint(QUARANTINE, GPUS, GO))


@scenario
def release_of_all_with_a_drop_in_in_quarantine(root: Path) -> tuple[Node, Plan]:
    """It comes back when ours is gone."""
    node = with_a_left_drop_in(root)
    node.apply(blueprint(QUARANTINE, GPUS, GO))
    return node, node.release()


@scenario
def confidential_handler_without_iommufd(root: Path) -> tuple[Node, Plan]:
    """A confidential guest takes no VFIO group, so the node has nothing for such a handler."""
    node = with_kata(root)
    return node, node.plan(blueprint(GPUS, handler("kata-qemu-snp", "go", GO_CONFIG)))


@scenario
def handler_without_its_base_file(root: Path) -> tuple[Node, Plan]:
    """A handler that is not installed is a warning; everything else goes on."""
    node = Node(nodes.single_gpu(root))
    return node, node.plan(blueprint(GPUS, GO))


@scenario
def handler_uninstalled(root: Path) -> tuple[Node, Plan]:
    """When its base file goes, our drop-in beside it goes too."""
    node = with_kata(root)
    node.apply(blueprint(GPUS, GO))
    node.kernel.host.path(GO_CONFIG).unlink()
    return node, node.plan(blueprint(GPUS, GO))


@scenario
def handlers_of_two_dialects_in_one_folder(root: Path) -> tuple[Node, Plan]:
    """One config.d cannot hold two dialects: the first handler has it."""
    node = with_kata(root)
    node.put(GO_CONFIG, RUST_BASE)
    rival = handler("kata-rust", "rust", GO_CONFIG)
    return node, node.plan(blueprint(GPUS, GO, rival))


@scenario
def handlers_of_one_dialect_in_one_folder(root: Path) -> tuple[Node, Plan]:
    """Two handlers that agree share the file."""
    node = with_kata(root)
    return node, node.plan(blueprint(GPUS, GO, handler("kata-too", "go", GO_CONFIG)))


@scenario
def two_pools_of_one_resource(root: Path) -> tuple[Node, Plan]:
    """Pools that share a resource share its spec."""
    node = Node(nodes.hgx(root))
    pools = passthrough("one", nodes.HGX_GPUS[0]), passthrough("two", nodes.HGX_GPUS[3])
    return node, node.plan(blueprint(*pools))
