"""A pod VM gets the functions behind the nodes it is given, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import pod_vm, process
from tests.lab.errors import LabError
from tests.lab.inside import Machine

_DEVICES = Path("/sys/bus/pci/devices")


def _group_node(address: str) -> str:
    return f"/dev/vfio/{(_DEVICES / address / 'iommu_group').readlink().name}"


def _rebind(address: str, override: str) -> None:
    device = _DEVICES / address
    (device / "driver_override").write_text(f"{override}\n")
    if (device / "driver").is_symlink():
        (device / "driver/unbind").write_text(address)
    Path("/sys/bus/pci/drivers_probe").write_text(address)


@pytest.fixture
def on_vfio(machine: Machine) -> Iterator[dict[str, str]]:
    """The addresses of a GPU and of a card with audio, on vfio-pci for the test."""
    process.output(("modprobe", "-a", "vfio-pci", "vfio_iommu_type1"), timeout_s=60)
    addresses = {role: machine.address(role) for role in ("gpu", "card", "audio")}
    for address in addresses.values():
        _rebind(address, "vfio-pci")
    yield addresses
    for address in addresses.values():
        _rebind(address, "")


@pytest.mark.lab(timeout_s=300)
def test_a_pod_vm_sees_the_functions_of_its_nodes(on_vfio: dict[str, str]) -> None:
    nodes = (_group_node(on_vfio["gpu"]), _group_node(on_vfio["card"]))
    report = pod_vm.boot(nodes)
    seen = [(each.vendor, each.device, each.class_code) for each in report.functions]
    assert seen == [
        (0x10DE, 0x2330, 0x030200),
        (0x10DE, 0x1E04, 0x030000),
        (0x10DE, 0x10F7, 0x040300),
    ]


@pytest.mark.lab
def test_a_held_group_cannot_be_held_twice(on_vfio: dict[str, str]) -> None:
    node = _group_node(on_vfio["gpu"])
    with pod_vm.held((node,)) as holder:
        assert holder.addresses == (on_vfio["gpu"],)
        with pytest.raises(LabError, match="busy"), pod_vm.held((node,)):
            pass
        holder.kill()
        with pod_vm.held((node,)):
            pass


@pytest.mark.lab
def test_a_function_on_its_host_driver_is_refused(machine: Machine) -> None:
    node = _group_node(machine.address("switch-gpu-0"))
    with pytest.raises(LabError, match="held by bochs-drm"):
        pod_vm.functions_behind(node)
