"""The kernel shows each machine as its topology says."""

import os
from pathlib import Path

import pytest

from tests.lab import process, tree
from tests.lab.inside import Machine, topology_name
from tests.lab.topologies import TOPOLOGIES
from tests.lab.topology import Place, place_of, places

_DEVICES = Path("/sys/bus/pci/devices")
_EVERY = tuple(name for name in TOPOLOGIES if name != "node")
# each takes a boot, and "node" has the parts of all but the last: the others are run if asked
_ASKED = "KATA_GPU_LAB_EVERY" in os.environ or topology_name() is not None
_SMALL = _EVERY if _ASKED else ("no-iommu",)


def _seen(address: str) -> tuple[int, ...]:
    """Return vendor, device, class, revision and subsystem as the kernel shows them."""
    names = ("vendor", "device", "class", "revision", "subsystem_vendor", "subsystem_device")
    return tuple(int((_DEVICES / address / name).read_text(), 16) for name in names)


def _driver(address: str) -> str | None:
    link = _DEVICES / address / "driver"
    return link.readlink().name if link.is_symlink() else None


def _group(address: str) -> str | None:
    link = _DEVICES / address / "iommu_group"
    return link.readlink().name if link.is_symlink() else None


def _shown(machine: Machine) -> tuple[Place, ...]:
    """Return the places of the functions that are there at boot."""
    all_places = places(machine.topology)
    return tuple(place for place in all_places if place.function and place.function.shown)


def _check_drivers(machine: Machine) -> None:
    drivers = {place.role: _driver(machine.address(place.role)) for place in _shown(machine)}
    expected = {
        place.role: place.function.model.driver for place in _shown(machine) if place.function
    }
    assert drivers == expected


def _check_groups(machine: Machine) -> None:
    members: dict[str | None, set[str]] = {}
    for role in machine.roles:
        if machine.is_present(role):
            members.setdefault(_group(machine.address(role)), set()).add(role)
    if not machine.topology.iommu:
        assert set(members) == {None}
        return
    assert {frozenset(roles) for roles in members.values()} == {
        frozenset(roles) for roles in tree.groups(machine.topology)
    }


@pytest.mark.lab
def test_every_function_is_on_its_host_driver(machine: Machine) -> None:
    _check_drivers(machine)


@pytest.mark.lab
def test_every_given_identity_is_seen(machine: Machine) -> None:
    for place in _shown(machine):
        assert place.function is not None
        identity = place.function.identity
        if identity is not None:
            assert _seen(machine.address(place.role)) == (
                identity.vendor,
                identity.device,
                identity.class_code,
                identity.revision,
                identity.subsystem_vendor,
                identity.subsystem_device,
            )


@pytest.mark.lab
def test_groups_are_what_the_topology_says(machine: Machine) -> None:
    _check_groups(machine)


@pytest.mark.lab
def test_the_switch_is_on_the_second_numa_node(machine: Machine) -> None:
    node = (_DEVICES / machine.address("switch-gpu-0") / "numa_node").read_text()
    assert node == "1\n"


@pytest.mark.lab
def test_the_boot_display_is_the_only_one(machine: Machine) -> None:
    flags = {path.parent.name: path.read_text() for path in _DEVICES.glob("*/boot_vga")}
    assert {address for address, flag in flags.items() if flag == "1\n"} == {
        machine.address("boot-display")
    }


@pytest.mark.lab
def test_the_amd_gpu_has_its_big_memory(machine: Machine) -> None:
    line = (_DEVICES / machine.address("amd-gpu") / "resource").read_text().splitlines()[2]
    start, end, _ = (int(word, 16) for word in line.split())
    assert end - start + 1 == 8 << 30


@pytest.mark.lab
def test_virtual_functions_come_and_go_each_in_its_group(machine: Machine) -> None:
    device = _DEVICES / machine.address("nvme-pf")
    (device / "sriov_numvfs").write_text("4")
    functions = [link.readlink().name for link in sorted(device.glob("virtfn*"))]
    groups = {_group(function) for function in functions}
    (device / "sriov_numvfs").write_text("0")
    assert len(functions) == len(groups) == 4


@pytest.mark.lab
def test_a_nic_is_plugged_and_unplugged_again_and_again(machine: Machine) -> None:
    for _ in range(2):
        address = machine.plug("plug-nic")
        assert _seen(address)[:2] == (0x8086, 0x10D3)
        machine.unplug("plug-nic")
        assert not machine.is_present("plug-nic")


@pytest.mark.lab
def test_the_modules_that_tests_need_can_be_loaded(machine: Machine) -> None:
    modules = ("vfio-pci", "vfio_iommu_type1", "aer_inject", "uio_pci_generic", "xhci_pci", "igb")
    process.output(("modprobe", "-a", *modules), timeout_s=60)
    process.output(("modprobe", "-r", "-a", *modules), timeout_s=60)


def _check_small(machine: Machine) -> None:
    _check_drivers(machine)
    _check_groups(machine)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.lab(name)) for name in _SMALL]
)
def test_each_small_machine_is_what_it_says(name: str, machine: Machine) -> None:
    assert machine.topology.name == name
    assert place_of(machine.topology, machine.roles[0]).role == machine.roles[0]
    _check_small(machine)
