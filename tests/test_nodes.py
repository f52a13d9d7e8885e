"""A function's device nodes are known by number, wherever its driver keeps them."""

import os
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import nodes as device_nodes
from kata_gpu.model.pci import PciAddress
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel

GPU: Final = PciAddress.parse(nodes.GPU)
AMD: Final = PciAddress.parse(nodes.AMD_GPU)
EVERY_NVIDIA: Final = {os.makedev(195, minor): f"/dev/nvidia{minor}" for minor in range(248)}


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A node whose GPU says that it is /dev/nvidia3."""
    kernel = nodes.gpu_with_audio(tmp_path)
    information = f"proc/driver/nvidia/gpus/{GPU}/information"
    kernel.tree.text(information, "Model: \t\t NVIDIA\nDevice Minor: \t 3\nGPU Firmware: \t 1\n")
    return kernel


def of(kernel: FakeKernel, address: PciAddress = GPU) -> dict[int, str]:
    return device_nodes.of(kernel.host, address)


def below(kernel: FakeKernel, directory: str, attributes: dict[str, str]) -> Path:
    """Show a device in a directory of the GPU's."""
    home = kernel.root / f"bus/pci/devices/{GPU}" / directory
    home.mkdir(parents=True)
    for name, content in attributes.items():
        (home / name).write_text(content, encoding="utf-8")
    return home


def test_an_nvidia_gpu_has_the_node_that_its_driver_says(kernel: FakeKernel) -> None:
    assert of(kernel) == {os.makedev(195, 3): "/dev/nvidia3"}


def test_the_kernel_s_table_says_which_major_is_nvidia_s(kernel: FakeKernel) -> None:
    kernel.tree.text("proc/devices", "Character devices:\n  1 mem\n240 nvidia-uvm\n236 nvidia\n")
    assert of(kernel) == {os.makedev(236, 3): "/dev/nvidia3"}


@pytest.mark.parametrize("text", ["", "Device Minor: \t one\n"])
def test_a_gpu_that_does_not_say_which_it_is_may_be_any(kernel: FakeKernel, text: str) -> None:
    kernel.tree.text(f"proc/driver/nvidia/gpus/{GPU}/information", text)
    assert of(kernel) == EVERY_NVIDIA


def test_nodes_below_the_function_are_found_at_any_depth(kernel: FakeKernel) -> None:
    below(kernel, "drm/card0", {"dev": "226:0\n", "uevent": "MAJOR=226\nDEVNAME=dri/card0\n"})
    below(kernel, "drm/card0/card0-DP-1/drm_dp_aux0", {"dev": "236:1\n"})
    below(kernel, "graphics/fb0", {"dev": "29:0\n", "uevent": "DEVNAME=fb0\n"})
    assert of(kernel) == {
        os.makedev(195, 3): "/dev/nvidia3",
        os.makedev(226, 0): "/dev/dri/card0",
        os.makedev(236, 1): "character device 236:1",
        os.makedev(29, 0): "/dev/fb0",
    }


def test_a_node_name_that_no_terminal_should_see_is_told_by_number(kernel: FakeKernel) -> None:
    below(kernel, "drm/card0", {"dev": "226:0\n", "uevent": "DEVNAME=dri/\x1b[2J\n"})
    assert of(kernel)[os.makedev(226, 0)] == "character device 226:0"


def test_block_devices_are_no_part_of_it(kernel: FakeKernel) -> None:
    (kernel.root / "class/block").mkdir()
    disk = below(kernel, "host0/block/sda", {"dev": "8:0\n"})
    (disk / "subsystem").symlink_to(kernel.root / "class/block")
    assert of(kernel) == {os.makedev(195, 3): "/dev/nvidia3"}


def test_functions_behind_a_bridge_are_not_the_bridge_s(tmp_path: Path) -> None:
    kernel = nodes.bridge_pair(tmp_path)
    kernel.tree.show_device(nodes.BRIDGED[0], "drm/card0", "dri/card0", "/dev/full")
    assert of(kernel, PciAddress.parse("0000:01:00.0")) == {}


def test_links_are_not_followed(kernel: FakeKernel) -> None:
    home = below(kernel, "drm", {})
    (home / "loop").symlink_to(home)
    elsewhere = kernel.tree.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dev").write_text("226:0\n", encoding="ascii")
    (home / "card0").symlink_to(elsewhere)
    assert of(kernel) == {os.makedev(195, 3): "/dev/nvidia3"}


@pytest.mark.parametrize("text", ["", "226", "226:0:1", "-1:0", "no:device", "99999999999:0"])
def test_what_is_no_number_is_no_device(kernel: FakeKernel, text: str) -> None:
    below(kernel, "drm/card0", {"dev": text})
    assert of(kernel) == {os.makedev(195, 3): "/dev/nvidia3"}


def test_a_function_on_vfio_has_its_group_s_node_and_its_own(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path, cdevs=True)
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=1)
    kernel.write("bus/pci/drivers/nvidia/unbind", nodes.GPU)
    kernel.write(f"bus/pci/devices/{GPU}/driver_override", "vfio-pci")
    kernel.write("bus/pci/drivers/vfio-pci/bind", nodes.GPU)
    names = ("/dev/vfio/1", "/dev/vfio/devices/vfio0")
    assert of(kernel) == {kernel.host.path(name).stat().st_rdev: name for name in names}


def test_a_gpu_of_amd_is_used_through_the_compute_node_too(tmp_path: Path) -> None:
    kernel = nodes.three_vendors(tmp_path)
    kfd = kernel.root / "class/kfd/kfd"
    kfd.mkdir(parents=True)
    (kfd / "dev").write_text("511:0\n", encoding="ascii")
    assert of(kernel, AMD) == {os.makedev(511, 0): "/dev/kfd"}
    assert os.makedev(511, 0) not in of(kernel)


def test_a_function_that_is_gone_has_none(kernel: FakeKernel) -> None:
    kernel.unplug(nodes.GPU)
    assert of(kernel) == {}


def test_a_directory_that_cannot_be_listed_is_no_sign_of_nothing(kernel: FakeKernel) -> None:
    link = kernel.root / f"bus/pci/devices/{GPU}"
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(HostError, match=r"cannot list .*0000:01:00.0: Too many levels"):
        of(kernel)
