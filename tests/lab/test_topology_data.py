"""What follows from a topology: arguments, places and groups, as text."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab import qemu, tree
from tests.lab.errors import LabError
from tests.lab.inside import Machine
from tests.lab.topologies import TOPOLOGIES
from tests.lab.topology import Topology, place_of, places

_BOOT = qemu.Boot(
    vmlinux=Path("/k/vmlinux"),
    initramfs=Path("/k/initramfs"),
    modules=Path("/k/lib/modules/6.1"),
    init=Path("/c/init"),
    root=Path("/"),
    out=Path("/out"),
)
_LINES = qemu.Lines(control=3, monitor=4, inner_monitor=5, inner_serial=6)

_SWITCH = """\
switch: four GPUs and an NVSwitch behind a PCIe switch with ACS
pci0000:00
  02.0 pcie-switch-root        pcie-root-port
    00.0 pcie-switch           x3130-upstream
      00.0 switch-port-0       pcie-root-port
        00.0 switch-gpu-0      10de:2330 class 030200 (bochs-display, bochs-drm)
"""


def _devices(topology: Topology) -> list[str]:
    arguments = qemu.arguments(topology, _BOOT, _LINES, "tcg", 2)
    return [value for flag, value in pairwise(arguments) if flag == "-device"]


def test_a_single_gpu_as_qemu_takes_it() -> None:
    assert _devices(TOPOLOGIES["single"])[-2:] == [
        "pcie-root-port,id=gpu-port,bus=pcie.0,addr=02.0,chassis=1,slot=1,multifunction=on",
        "bochs-display,id=gpu,bus=gpu-port,addr=00.0",
    ]


def test_functions_of_one_slot_share_its_port() -> None:
    assert _devices(TOPOLOGIES["multifunction"])[-2:] == [
        "bochs-display,id=card,bus=card-port,addr=00.0,multifunction=on",
        "intel-hda,id=audio,bus=card-port,addr=00.1",
    ]


def test_without_an_iommu_there_is_none() -> None:
    assert not any("iommu" in device for device in _devices(TOPOLOGIES["no-iommu"]))
    assert any("intel-iommu,intremap=on" in device for device in _devices(TOPOLOGIES["single"]))


def test_what_is_plugged_later_is_not_there_at_boot() -> None:
    assert not any("plug-nic" in device for device in _devices(TOPOLOGIES["hotplug"]))


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_ids_and_chassis_are_unique_and_every_bus_comes_before_its_devices(
    topology: Topology,
) -> None:
    devices = _devices(topology)
    ids = [match[1] for device in devices for match in re.finditer(r"\bid=([^,]+)", device)]
    chassis = [match[1] for device in devices for match in re.finditer(r"chassis=(\d+)", device)]
    assert len(ids) == len(set(ids))
    assert len(chassis) == len(set(chassis))
    known = {"pcie.0"}
    for device in devices:
        bus = re.search(r"\bbus=([^,]+)", device)
        assert bus is None or bus[1] in known
        known |= {match[1] for match in re.finditer(r"\bid=([^,]+)", device)}


def test_the_node_has_every_role_of_the_other_machines() -> None:
    roles = {place.role for place in places(TOPOLOGIES["node"])}
    for name, topology in TOPOLOGIES.items():
        if name not in {"eight", "igb"}:  # for measuring alone; not of every QEMU
            assert {place.role for place in places(topology)} <= roles, name


def test_a_topology_reads_as_a_tree() -> None:
    text = tree.render(TOPOLOGIES["switch"])
    assert text.startswith(_SWITCH)
    assert "group: switch-gpu-0\n" in text


def test_groups_follow_the_slots_and_the_bridge() -> None:
    assert ("card", "audio") in tree.groups(TOPOLOGIES["multifunction"])
    assert ("pci-bridge", "bridged-gpu", "bridged-mate") in tree.groups(TOPOLOGIES["bridge"])
    assert tree.groups(TOPOLOGIES["no-iommu"]) == ()


def test_a_device_is_found_by_its_place_whatever_the_bus_numbers(tmp_path: Path) -> None:
    way = "devices/pci0000:00/0000:00:02.0/0000:05:00.0/0000:06:03.0/0000:0b:00.0"
    (tmp_path / way).mkdir(parents=True)
    (tmp_path / "devices/pci0000:00/0000:00:02.1/0000:0c:00.0").mkdir(parents=True)
    machine = Machine(TOPOLOGIES["switch"], sysfs=tmp_path)
    assert machine.address("switch-gpu-3") == "0000:0b:00.0"
    assert machine.address("pcie-switch") == "0000:05:00.0"


def test_an_absent_device_and_an_unknown_role_are_told_apart(tmp_path: Path) -> None:
    machine = Machine(TOPOLOGIES["hotplug"], sysfs=tmp_path)
    with pytest.raises(LabError, match="nothing is in its place"):
        machine.address("plug-nic")
    with pytest.raises(KeyError, match="no 'gpu'; it has: spare-port, plug-nic"):
        machine.address("gpu")


def test_only_what_is_made_for_it_can_be_plugged() -> None:
    machine = Machine(TOPOLOGIES["single"])
    with pytest.raises(LabError, match="not made for that"):
        machine.plug("gpu")


def test_a_place_knows_its_way() -> None:
    place = place_of(TOPOLOGIES["node"], "bridged-mate")
    assert place.sysfs_glob == "pci0000:00/0000:00:02.3/0000:??:00.0/0000:??:02.0"
