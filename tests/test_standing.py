"""An allocation finds out what changed since the last turn, whatever it was."""

from pathlib import Path
from typing import Final

import pytest

from kata_gpu.agent import node
from kata_gpu.discover.standing import Standing
from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.report import UnitStatus
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import EVERY_GPU, SETTINGS, journal_of

OVERRIDE: Final = f"bus/pci/devices/{nodes.GPU}/driver_override"


class Node:
    """A node in order, and its one unit as the last turn left it."""

    def __init__(self, root: Path) -> None:
        self.kernel: FakeKernel = nodes.gpu_with_audio(root)
        journal = journal_of(self.kernel.host)
        turn = node.converge(self.kernel.host, SETTINGS, EVERY_GPU, journal)
        state = node.describe(
            turn, SETTINGS, EVERY_GPU, journal.ledger, number=1, last_report=turn.report
        )
        self.unit: UnitStatus = state.units[0]
        self.groups: dict[int, IommuGroup] = turn.inventory.by_group()

    def fault(self) -> str | None:
        return Standing.of(self.kernel.host, self.unit, self.groups).fault(self.kernel.host)


@pytest.fixture
def found(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_unit_that_stands_has_no_fault(found: Node) -> None:
    assert found.unit.nodes
    assert found.fault() is None


def test_a_function_on_another_driver_is_named(found: Node) -> None:
    found.kernel.write(OVERRIDE, "\n")
    found.kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.GPU)
    assert found.fault() == f"{nodes.GPU} is on no driver, not on vfio-pci"
    found.kernel.write("bus/pci/drivers/nvidia/bind", nodes.GPU)
    assert found.fault() == f"{nodes.GPU} is on nvidia, not on vfio-pci"


def test_a_companion_counts_as_the_gpu_does(found: Node) -> None:
    found.kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.AUDIO)
    assert found.fault() == f"{nodes.AUDIO} is on no driver, not on vfio-pci"


def test_a_stranger_in_the_group_is_named(found: Node) -> None:
    found.kernel.add_device(
        "0000:01:00.2",
        vendor=0x10DE,
        device=0x1AD6,
        class_code=0x0C0330,
        group=found.unit.groups[0],
    )
    assert found.fault() == "group 1 is not what it was: 0000:01:00.2 came or went"


def test_a_node_that_is_gone_or_something_else_is_named(found: Node) -> None:
    (path,) = found.unit.nodes
    at = found.kernel.host.path(path)
    at.unlink()
    assert found.fault() == f"cannot find {path}: No such file or directory"
    at.write_text("")
    assert found.fault() == f"{path} is no character device"


def test_a_function_that_is_gone_is_named(found: Node) -> None:
    found.kernel.unplug(nodes.GPU)
    assert found.fault() == f"{nodes.GPU} is on no driver, not on vfio-pci"
