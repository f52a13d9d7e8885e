"""What a simulation has of a node is what the agent publishes of it: the same slices, in full."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.host.pci_ids import PLACES
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Device, Door
from kata_gpu.model.slices import NodeIdentity
from kata_gpu.plan import kubernetes, state
from kata_gpu.plan.kubernetes import slices
from kata_gpu.plan.simulate.values import Scenario
from kata_gpu.settings import blueprint, manifests
from kata_gpu.settings.manifests.documents import Document
from kata_gpu.settings.manifests.snapshot import FUNCTIONS_MAX
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.plans.blueprints import GPUS, SWITCHES, host
from tests.plans.blueprints import blueprint as text_of
from tests.plans.bundles import BOARD
from tests.plans.claims import ON_CLAIM
from tests.plans.node import CDI
from tests.plans.node import Node as Planned
from tests.plans.virtuals import TWO
from tests.test_devices import on_a_node
from tests.test_pci_ids import TEXT as NAMES

NODE: Final = "worker-1"
DRA: Final = 'offer = "dra"\n'
DISPLAYS: Final = GPUS.replace('vendor = "10de"', 'class = "03"') + DRA


def snapshot(kernel: FakeKernel) -> dict[str, Any]:
    """Return the inventory of a node, as it is printed."""
    argv = (sys.executable, "-m", "kata_gpu", "inventory", "-o", "json")
    done = subprocess.run(
        (*argv, "--root", str(kernel.host.root)),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def simulated(found: Mapping[str, Any], text: str | None = None) -> Scenario:
    """Return the node of a snapshot, as the simulation has it."""
    document = Document("worker-1.json", dict(found))
    wanted = None if text is None else blueprint.parse(text)
    return manifests.scenario((), [(document, NODE)], wanted)


def published(devices: tuple[Device, ...], *drivers: str) -> Scenario:
    """Return what the agent publishes of these devices, as the simulation reads a cluster's.

    But for what the agent reads from a chip, which is in no inventory.
    """
    devices = tuple(
        replace(d, attributes={n: v for n, v in d.attributes.items() if n != "ccMode"})
        for d in devices
    )
    owner = NodeIdentity(name=NODE, uid="7a1e")
    bodies = [b for driver in sorted(drivers) for b in slices.slices(driver, owner, devices, 1)]
    return manifests.scenario([Document("the cluster", dict(body)) for body in bodies])


def allocatable(devices: tuple[Device, ...]) -> dict[str, Fraction]:
    """Return what kubelet has of what the device plugins tell it."""
    plugged = [device for device in devices if device.door is Door.DEVICE_PLUGIN]
    return {
        name: Fraction(sum(d.is_healthy for d in plugged if d.resource == name))
        for name in {device.resource for device in plugged}
    }


# Topologies


def named(kernel: FakeKernel) -> FakeKernel:
    """Let a node know the names of products, by which their memory is known."""
    kernel.tree.text(PLACES[0].lstrip("/"), NAMES)
    return kernel


def confidential(root: Path) -> FakeKernel:
    """Return a node with SEV-SNP, and a GPU with a confidential mode."""
    kernel = named(nodes.single_gpu(root))
    kernel.tree.text("sys/module/kvm_amd/parameters/sev_snp", "Y\n")
    return kernel


def virtuals(root: Path) -> FakeKernel:
    return nodes.sriov(root, vfs=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A node, the blueprint that it gets, and what the agent drives it with."""

    build: Callable[[Path], FakeKernel]
    text: str
    drivers: tuple[str, ...] = (GPU_DRIVER,)


def case(build: Callable[[Path], FakeKernel], *tables: str, drivers: str = GPU_DRIVER) -> Case:
    return Case(build=build, text=text_of(*tables), drivers=tuple(drivers.split()))


BOTH: Final = f"{GPU_DRIVER} {FABRIC_DRIVER}"
CASES: Final = {
    "eight gpus": case(lambda root: named(nodes.eight_gpus(root)), GPUS + DRA),
    "at most two": case(nodes.hgx, GPUS + DRA + "max_units = 2\n"),
    "gpus and a switch": case(nodes.hgx, GPUS + DRA, SWITCHES + DRA, drivers=BOTH),
    "switches alone": case(nodes.hgx, SWITCHES + DRA, drivers=BOTH),
    "one stays": case(nodes.hgx, host("mine", nodes.HGX_GPUS[1]), GPUS + DRA),
    "bundle": case(nodes.hgx, BOARD + DRA),
    "bundle that lacks one": case(nodes.eight_gpus, BOARD.replace("= 5", "= 9") + DRA),
    "bundle by device plugin": case(nodes.hgx, BOARD, drivers=""),
    "device plugin": case(nodes.eight_gpus, GPUS, drivers=""),
    "both doors": case(nodes.hgx, GPUS, SWITCHES + DRA, drivers=BOTH),
    "no door": case(nodes.hgx, GPUS + 'offer = "none"\n', drivers=""),
    "confidential": case(confidential, GPUS + DRA),
    "on claim": case(lambda root: named(nodes.hgx(root)), ON_CLAIM),
    "audio comes along": case(nodes.gpu_with_audio, GPUS + DRA),
    "bridge with two": case(nodes.bridge_pair, GPUS + DRA),
    "three vendors": case(lambda root: named(nodes.three_vendors(root)), DISPLAYS),
    "variant that is loaded": case(nodes.grace, GPUS + DRA),
    "virtual functions that a pool asks for": case(virtuals, TWO + DRA),
    "virtual and physical ones": case(virtuals, DISPLAYS),
    "storage is in the way": case(nodes.storage_in_group, GPUS + DRA),
    "storage is in the device plugin's way": case(nodes.storage_in_group, GPUS, drivers=""),
    "boot display": case(nodes.boot_display, GPUS + DRA),
    "no IOMMU": case(nodes.no_iommu, GPUS + DRA),
    "nothing to offer": case(nodes.bare, GPUS + DRA),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_simulation_has_what_the_agent_publishes(tmp_path: Path, case: Case) -> None:
    kernel = case.build(tmp_path)
    before = simulated(snapshot(kernel), case.text)
    devices = on_a_node(kernel, case.text)
    after = simulated(snapshot(kernel), case.text)
    expected = published(devices, *case.drivers)
    assert before.slices == expected.slices
    assert after.slices == expected.slices
    for found in (before, after):
        (node,) = found.nodes
        assert node.resources == allocatable(devices)


def test_the_slices_that_are_compared_have_all_kinds_of_things(tmp_path: Path) -> None:
    board = simulated(snapshot(nodes.hgx(tmp_path / "hgx")), CASES["bundle"].text)
    assert any(slice_.counters for slice_ in board.slices)
    (gpu,) = simulated(snapshot(confidential(tmp_path / "one")), CASES["confidential"].text).slices
    (device,) = gpu.devices
    assert device.attributes[f"{GPU_DRIVER}/teeReady"] is True
    assert device.capacity[f"{GPU_DRIVER}/memory"] == 80 * 10**9
    refused = snapshot(nodes.storage_in_group(tmp_path / "disk"))
    (slice_,) = simulated(refused, CASES["storage is in the way"].text).slices
    assert [taint.key for taint in slice_.devices[0].taints] == [f"{GPU_DRIVER}/refused"]


def test_what_no_inventory_has_is_told(tmp_path: Path) -> None:
    found = simulated(snapshot(confidential(tmp_path)), CASES["confidential"].text)
    assert "ccMode" not in str(found.slices)
    assert found.notes == (
        f"{NODE}: {nodes.GPU}: ccMode is read by the agent, and in no inventory: who asks for it "
        "is refused here; simulate with the cluster's own ResourceSlices (--cluster)",
    )


@pytest.mark.parametrize("text", [text_of(GPUS + DRA), text_of(ON_CLAIM)], ids=["always", "claim"])
def test_with_iommufd_it_has_what_the_agent_publishes(tmp_path: Path, text: str) -> None:
    node = Planned(named(nodes.single_gpu(tmp_path, cdevs=True)), iommufd=True)
    before = simulated(with_iommufd(snapshot(node.kernel)), text)
    node.apply(text)
    expected = published(devices_of(node, text), GPU_DRIVER)
    assert before.slices == expected.slices
    assert simulated(with_iommufd(snapshot(node.kernel)), text).slices == expected.slices
    assert expected.slices[0].devices[0].attributes[f"{GPU_DRIVER}/iommufd"] is True


def test_a_kernel_that_gives_no_iommufd_devices_is_known_by_what_is_bound(tmp_path: Path) -> None:
    node, text = Planned(nodes.hgx(tmp_path), iommufd=True), text_of(GPUS + DRA)
    node.apply(text_of(GPUS + DRA + "max_units = 1\n"))
    found = simulated(with_iommufd(snapshot(node.kernel)), text)
    node.apply(text)
    assert found.slices == published(devices_of(node, text), GPU_DRIVER).slices


def with_iommufd(found: dict[str, Any]) -> dict[str, Any]:
    """Return the snapshot of a node that has /dev/iommu."""
    return {**found, "platform": {**found["platform"], "iommufd": True}}


def devices_of(node: Planned, text: str) -> tuple[Device, ...]:
    """Return the devices of a node that is in order."""
    wanted = blueprint.parse(text)
    known = (wanted, node.look(wanted), node.ledger)
    statuses = state.assess(*known, node.plan(text), cdi_directory=CDI)
    return kubernetes.devices(*known, statuses, cdi_directory=CDI)


# What is not known before


def test_a_variant_whose_name_shows_when_it_is_loaded_is_no_driver_before(tmp_path: Path) -> None:
    kernel, text = nodes.grace(tmp_path, loaded=False), text_of(GPUS + DRA)
    (before,) = simulated(snapshot(kernel), text).slices
    (after,) = published(on_a_node(kernel, text), GPU_DRIVER).slices
    (found,), (expected,) = before.devices, after.devices
    driver = f"{GPU_DRIVER}/driver"
    assert driver not in found.attributes
    assert {**found.attributes, driver: "nvgrace-gpu-vfio-pci"} == expected.attributes


def test_a_unit_that_a_claim_has_bound_lacks_the_driver_that_nobody_knows(tmp_path: Path) -> None:
    kernel, text = nodes.single_gpu(tmp_path), text_of(ON_CLAIM)
    devices = on_a_node(kernel, text, frozenset({nodes.GPU}))
    (found,) = simulated(snapshot(kernel), text).slices
    (expected,) = published(devices, GPU_DRIVER).slices
    driver = f"{GPU_DRIVER}/driver"
    assert {**found.devices[0].attributes, driver: "nvidia"} == expected.devices[0].attributes


def test_virtual_functions_that_are_still_to_be_made_are_told_of(tmp_path: Path) -> None:
    found = simulated(snapshot(nodes.sriov(tmp_path)), text_of(TWO + DRA))
    assert [slice_.devices for slice_ in found.slices] == [()]
    assert found.notes == (
        f"worker-1: {nodes.GPU}: pool slices asks for 2 virtual functions of it, and they are not "
        f"there yet; take the inventory again when they are",
    )


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (nodes.storage_in_group, f"{nodes.GPU}: pool gpus passes it through, but {nodes.DISK}"),
        (nodes.no_iommu, f"{nodes.GPU}: pool gpus passes it through, but no IOMMU is in use"),
        (nodes.boot_display, f"pool gpus: it selects {nodes.GPU}"),
    ],
)
def test_what_is_refused_is_told_with_the_reason(
    tmp_path: Path, build: Callable[[Path], FakeKernel], said: str
) -> None:
    (note,) = simulated(snapshot(build(tmp_path)), text_of(GPUS + DRA)).notes
    assert note.startswith(f"worker-1: {said}")


# Without a blueprint


def test_without_a_blueprint_it_is_every_gpu_and_switch(tmp_path: Path) -> None:
    fabric, gpus = simulated(snapshot(nodes.hgx(tmp_path))).slices
    assert (fabric.driver, len(fabric.devices)) == (FABRIC_DRIVER, 1)
    assert (gpus.driver, len(gpus.devices)) == (GPU_DRIVER, 4)


def test_without_a_blueprint_a_boot_display_is_in_no_other_gpus_way(tmp_path: Path) -> None:
    found = snapshot(nodes.eight_gpus(tmp_path))
    found["functions"][-1]["is_boot_display"] = True
    (slice_,) = simulated(found).slices
    assert len(slice_.devices) == 7
    assert not any(device.taints for device in slice_.devices)


# Other people's files


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"functions": [{"address": "00000000:01:00.0"}]}, "functions[0].address is"),
        ({"functions": [{"address": 7}]}, "functions[0].address is 7: expected a PCI address"),
        ({"groups": None}, "groups is missing"),
        ({"platform": None}, "platform is missing"),
        ({"groups": [{"number": 1, "members": []}] * 2}, "group 1 is there twice"),
        ({"groups": [{}] * (FUNCTIONS_MAX + 1)}, f"at most {FUNCTIONS_MAX} items"),
    ],
)
def test_a_snapshot_that_is_wrong_is_told_by_its_place(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    found = {**snapshot(nodes.single_gpu(tmp_path)), **change}
    with pytest.raises(InvalidBlueprint) as caught:
        simulated(found)
    assert said in str(caught.value)


def test_a_function_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    found = snapshot(nodes.single_gpu(tmp_path))
    found["functions"] *= 2
    with pytest.raises(InvalidBlueprint, match="is there twice"):
        simulated(found)


def test_what_contradicts_itself_is_offered_to_nobody(tmp_path: Path) -> None:
    found = snapshot(nodes.eight_gpus(tmp_path))
    found["functions"][-1]["sriov"] = {"parent": found["functions"][-1]["address"]}
    found["functions"][-2]["iommu_group"] = 4096
    found["groups"][1]["members"].append("ffff:00:00.0")
    (slice_,) = simulated(found).slices
    assert sum(bool(device.taints) for device in slice_.devices) == 2
