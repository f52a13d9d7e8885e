"""From the host driver to the VFIO variant that a function needs, and when there is none."""

from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import binding, executor
from kata_gpu.agent import node
from kata_gpu.discover import inventory as discover
from kata_gpu.discover import vfio
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.pci import Binding, PciAddress
from kata_gpu.model.report import Result, UnitStatus
from kata_gpu.model.unit import UnitState
from kata_gpu.model.vfio import VfioDriver
from tests.kernel import nodes
from tests.kernel.fake import RELEASE, FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, journal_of
from tests.plans.selection import add_h100

GPU: Final = PciAddress.parse(nodes.GPU)
MODULE: Final = "nvgrace_gpu_vfio_pci"
VARIANT: Final = Binding(driver="nvgrace-gpu-vfio-pci", override="nvgrace-gpu-vfio-pci")
HOME: Final = Binding(driver="nvidia", override=None)
ALIASES: Final = f"lib/modules/{RELEASE}/modules.alias"


def apply(kernel: FakeKernel) -> node.Turn:
    return node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))


def statuses(kernel: FakeKernel, turn: node.Turn) -> dict[str, UnitStatus]:
    described = node.describe(
        turn,
        SETTINGS,
        EVERY_GPU,
        journal_of(kernel.host).ledger,
        number=1,
        last_report=turn.report,
    )
    return {unit.id: unit for unit in described.units}


def looked(kernel: FakeKernel) -> Inventory:
    return vfio.suited(kernel.host, discover.collect(kernel.host))


def best(kernel: FakeKernel) -> dict[str, VfioDriver]:
    return {str(driver.address): driver for driver in looked(kernel).vfio_drivers}


# What suits


@pytest.mark.parametrize("loaded", [True, False])
def test_a_variant_is_found_and_named_once_it_is_loaded(loaded: bool, tmp_path: Path) -> None:
    assert best(nodes.grace(tmp_path, loaded=loaded)) == {
        nodes.GPU: VfioDriver(
            address=GPU,
            module=MODULE,
            driver="nvgrace-gpu-vfio-pci" if loaded else None,
            is_loaded=loaded,
        )
    }


@pytest.mark.parametrize("loaded", [True, False])
def test_vfio_pci_has_its_name_before_it_is_loaded(loaded: bool, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    if loaded:
        kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    expected = VfioDriver(address=GPU, module="vfio-pci", driver="vfio-pci", is_loaded=loaded)
    assert best(kernel) == {nodes.GPU: expected}


def test_a_module_that_gave_no_driver_is_not_loaded(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, variant=False)
    kernel.add_module(MODULE, aliases=(nodes.GRACE_ALIAS,))
    kernel.run(("modprobe", "--", MODULE), timeout_s=3)
    assert not best(kernel)[nodes.GPU].is_loaded


def test_bridges_have_no_vfio_driver(tmp_path: Path) -> None:
    assert set(best(nodes.bridge_pair(tmp_path))) == set(nodes.BRIDGED)


def test_a_node_with_nothing_to_pass_through_does_not_read_the_aliases(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    (tmp_path / ALIASES).write_bytes(b"\xff")
    assert looked(kernel).problems == ()


def test_aliases_that_cannot_be_read_are_a_problem_and_vfio_pci(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path)
    (tmp_path / ALIASES).write_bytes(b"\xff")
    assert [problem.subject for problem in looked(kernel).problems] == ["modules.alias"]
    assert best(kernel)[nodes.GPU].driver == "vfio-pci"


def test_a_module_that_cannot_be_looked_at_is_a_problem(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, loaded=False)
    (tmp_path / f"sys/module/{MODULE}").mkdir()
    (tmp_path / f"sys/module/{MODULE}/drivers").touch()
    assert [problem.subject for problem in looked(kernel).problems] == [f"module {MODULE}"]
    assert not best(kernel)[nodes.GPU].is_loaded


# What is done


def test_a_variant_is_loaded_then_bound_then_offered(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, loaded=False)
    turn = apply(kernel)
    assert kernel.runs == [("modprobe", "-d", str(tmp_path), "--", MODULE)]
    assert [outcome.result for outcome in turn.report.outcomes] == [Result.DONE] * 3
    assert binding.read(kernel, GPU) == VARIANT
    assert turn.plan.steps == ()
    assert statuses(kernel, turn)[nodes.GPU].state is UnitState.AVAILABLE


def test_the_override_names_the_variant_before_the_host_driver_lets_go(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, loaded=False)
    apply(kernel)
    assert kernel.writes == [
        (f"bus/pci/devices/{GPU}/driver_override", "nvgrace-gpu-vfio-pci"),
        ("bus/pci/drivers/nvidia/unbind", nodes.GPU),
        ("bus/pci/drivers/nvgrace-gpu-vfio-pci/bind", nodes.GPU),
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("Exec format error", f"could not insert '{MODULE}': Exec format error"),
        (None, f"cannot use module {MODULE}: it loaded, but it registered no PCI driver"),
    ],
)
def test_a_variant_that_cannot_be_had_fails_its_unit_alone(
    error: str | None, told: str, tmp_path: Path
) -> None:
    kernel = nodes.grace(tmp_path, variant=False)
    kernel.add_module(MODULE, aliases=(nodes.GRACE_ALIAS,), error=error)
    add_h100(kernel, "0000:02:00.0", group=2)
    turn = apply(kernel)
    assert binding.read(kernel, GPU) == HOME
    assert kernel.runs.count(("modprobe", "-d", str(tmp_path), "--", MODULE)) == 1
    assert told in str(turn.plan.refusals)
    (finding,) = turn.plan.refusals
    assert (finding.subject, finding.remedy) == (nodes.GPU, "it is tried again later")
    found = statuses(kernel, turn)
    assert found[nodes.GPU].state is UnitState.FAILED
    assert found["0000:02:00.0"].state is UnitState.AVAILABLE


def test_a_variant_that_was_mended_is_bound_when_it_is_tried_again(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, variant=False)
    kernel.add_module(MODULE, aliases=(nodes.GRACE_ALIAS,))
    assert apply(kernel).failed
    nodes.add_grace_driver(kernel, loaded=True)
    assert not apply(kernel).failed
    assert binding.read(kernel, GPU) == VARIANT


def moved_from_vfio_pci(kernel: FakeKernel) -> node.Turn:
    """Bind the GPU to vfio-pci, and try again with the variant there."""
    apply(kernel)
    nodes.add_grace_driver(kernel, loaded=True)
    return apply(kernel)


def test_ours_on_vfio_pci_goes_to_a_variant_that_came(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, variant=False)
    turn = moved_from_vfio_pci(kernel)
    assert binding.read(kernel, GPU) == VARIANT
    assert statuses(kernel, turn)[nodes.GPU].state is UnitState.AVAILABLE


def test_what_a_variant_took_from_vfio_pci_goes_back_to_its_first_driver(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, variant=False)
    moved_from_vfio_pci(kernel)
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    assert not executor.execute(kernel.host, plan, journal).failures
    assert binding.read(kernel, GPU) == HOME


def test_no_variant_takes_a_gpu_from_a_vm(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, variant=False)
    apply(kernel)
    with kernel.vm_holds(nodes.GPU):
        nodes.add_grace_driver(kernel, loaded=True)
        turn = apply(kernel)
        assert "qemu-system-x86" in str(turn.plan.refusals)
        assert binding.read(kernel, GPU).driver == "vfio-pci"
        assert not kernel.host.path(CDI).exists()
    turn = apply(kernel)
    assert binding.read(kernel, GPU) == VARIANT
    assert kernel.host.path(CDI).exists()


def test_a_variant_that_does_not_take_it_leaves_it_on_vfio_pci(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, variant=False)
    kernel.deaf.add("nvgrace-gpu-vfio-pci")
    turn = moved_from_vfio_pci(kernel)
    assert binding.read(kernel, GPU).driver == "vfio-pci"
    assert statuses(kernel, turn)[nodes.GPU].state is UnitState.FAILED
    assert not kernel.host.path(CDI).exists()
