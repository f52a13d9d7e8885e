"""The fake kernel's builder, faults and users do what tests that rely on them believe."""

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_gpu.errors import HostError, StuckError
from kata_gpu.host import holders, leftovers
from kata_gpu.model.pci import PciAddress
from tests.kernel import nodes
from tests.kernel.answers import WouldBlockForever
from tests.kernel.fake import FakeKernel
from tests.kernel.nodes import GPU

OVERRIDE = f"bus/pci/devices/{GPU}/driver_override"
UNBIND = "bus/pci/drivers/nvidia/unbind"
BIND = "bus/pci/drivers/vfio-pci/bind"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.single_gpu(tmp_path)


def refusal(kernel: FakeKernel, path: str, value: str) -> str | None:
    """Write, and return the errno's name; None when it is accepted."""
    try:
        kernel.write(path, value)
    except HostError as error:
        cause = error.__cause__
    else:
        return None
    assert isinstance(cause, OSError)
    return errno.errorcode[cause.errno or 0]


def to_vfio(kernel: FakeKernel, *addresses: str) -> None:
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=1)
    for address in addresses:
        kernel.write(f"bus/pci/devices/{address}/driver_override", "vfio-pci")
        kernel.write(f"bus/pci/devices/{address}/driver/unbind", address)
        kernel.write(BIND, address)


def driver(kernel: FakeKernel, address: str = GPU) -> str | None:
    return kernel.link(f"bus/pci/devices/{address}/driver")


# refusals


def test_a_refusal_reads_like_that_of_the_real_sysfs(kernel: FakeKernel) -> None:
    with pytest.raises(HostError) as caught:
        kernel.write(UNBIND, nodes.AUDIO)
    path = kernel.root / UNBIND
    assert str(caught.value) == f"cannot write '{nodes.AUDIO}' to {path}: No such device"


@pytest.mark.parametrize("attribute", ["drivr_override", "d3cold_allowed", "numa_node"])
def test_a_store_that_is_not_modelled_fails_the_test(kernel: FakeKernel, attribute: str) -> None:
    with pytest.raises(AssertionError, match="not modelled"):
        kernel.write(f"bus/pci/devices/{GPU}/{attribute}", "1")


def test_an_empty_write_is_the_callers_mistake(kernel: FakeKernel) -> None:
    with pytest.raises(ValueError, match="never reaches the kernel"):
        kernel.write(OVERRIDE, "")


def test_a_program_that_is_not_modelled_fails_the_test(kernel: FakeKernel) -> None:
    with pytest.raises(AssertionError, match="not modelled: run reboot"):
        kernel.run(("reboot",), timeout_s=1)


def test_a_host_driver_refuses_what_it_does_not_know(kernel: FakeKernel) -> None:
    kernel.write(OVERRIDE, "nvme")
    kernel.write(UNBIND, GPU)
    assert refusal(kernel, "bus/pci/drivers/nvme/bind", GPU) == "ENODEV"
    assert driver(kernel) is None


def test_vfio_without_an_iommu_is_not_modelled(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, iommu=None, noiommu_mode=True)
    kernel.add_driver("vfio-pci", vfio=True)
    kernel.add_device(GPU, vendor=0x10DE, device=0x2330, class_code=0x030200)
    kernel.write(OVERRIDE, "vfio-pci")
    with pytest.raises(AssertionError, match="not modelled"):
        kernel.write(BIND, GPU)


# faults


def test_every_write_is_logged_whatever_came_of_it(kernel: FakeKernel) -> None:
    kernel.write(OVERRIDE, "vfio-pci")
    refusal(kernel, BIND, GPU)
    assert kernel.writes == [(OVERRIDE, "vfio-pci"), (BIND, GPU)]


def test_the_nth_write_can_fail_and_then_changes_nothing(kernel: FakeKernel) -> None:
    kernel.fail_write(1, errno.EIO)
    answers = [refusal(kernel, OVERRIDE, name) for name in ("a", "b", "c")]
    assert answers == [None, "EIO", None]
    assert kernel.read(OVERRIDE) == "c"


def test_writes_can_fail_by_what_they_are(kernel: FakeKernel) -> None:
    kernel.fail_write(lambda path, value: path == UNBIND and value == GPU, errno.EAGAIN)
    assert refusal(kernel, UNBIND, GPU) == "EAGAIN"
    assert refusal(kernel, OVERRIDE, "a") is None


def test_a_deaf_driver_accepts_a_bind_and_ignores_it(kernel: FakeKernel) -> None:
    kernel.deaf.add("vfio-pci")
    to_vfio(kernel, GPU)
    assert driver(kernel) is None


def make_read_only(kernel: FakeKernel) -> None:
    kernel.read_only = True


def make_forbidden(kernel: FakeKernel) -> None:
    kernel.forbidden = True


@pytest.mark.parametrize(("make", "code"), [(make_read_only, "EROFS"), (make_forbidden, "EACCES")])
def test_a_kernel_that_lets_nobody_write_refuses_every_write(
    kernel: FakeKernel, make: Callable[[FakeKernel], None], code: str
) -> None:
    make(kernel)
    assert (refusal(kernel, OVERRIDE, "a"), refusal(kernel, UNBIND, GPU)) == (code, code)
    assert (kernel.read(OVERRIDE), driver(kernel)) == ("(null)", "nvidia")


def test_a_function_can_vanish_right_after_a_write(kernel: FakeKernel) -> None:
    kernel.vanish_after_write(0, GPU)
    kernel.write(OVERRIDE, "vfio-pci")
    assert (refusal(kernel, OVERRIDE, "\n"), refusal(kernel, UNBIND, GPU)) == ("ENOENT", "ENODEV")
    assert driver(kernel) is None
    assert kernel.names("kernel/iommu_groups") == ["0"]
    with pytest.raises(HostError, match="cannot read"):
        kernel.read(OVERRIDE)


def test_an_attribute_can_be_unreadable(kernel: FakeKernel) -> None:
    kernel.unreadable(GPU, "numa_node")
    with pytest.raises(HostError, match="Input/output error"):
        kernel.read(f"bus/pci/devices/{GPU}/numa_node")
    device = f"bus/pci/devices/{GPU}"
    with pytest.raises(HostError, match="numa_node: Input/output error"):
        kernel.attributes(device, ("vendor", "numa_node"))
    found = kernel.attributes(device, ("vendor", "numa_node"), optional=frozenset({"numa_node"}))
    assert found == {"vendor": "0x10de"}


class Killed(BaseException):
    """The end of the process, in a test that survives it."""


def test_a_hook_can_end_the_process_before_a_write_takes_effect(kernel: FakeKernel) -> None:
    def kill(path: str, value: str) -> None:
        raise Killed(path, value)

    kernel.on_write = kill
    with pytest.raises(Killed):
        kernel.write(OVERRIDE, "vfio-pci")
    assert kernel.read(OVERRIDE) == "(null)"


def test_a_hook_can_end_the_process_after_a_write_took_effect(kernel: FakeKernel) -> None:
    def kill(path: str, value: str) -> None:
        raise Killed(path, value)

    kernel.after_write = kill
    with pytest.raises(Killed):
        kernel.write(OVERRIDE, "vfio-pci")
    assert kernel.read(OVERRIDE) == "vfio-pci"


# users


def test_an_unbind_of_a_held_function_would_block_for_ever(kernel: FakeKernel) -> None:
    to_vfio(kernel, GPU)
    with kernel.vm_holds(GPU), pytest.raises(WouldBlockForever):
        kernel.write("bus/pci/drivers/vfio-pci/unbind", GPU)
    assert driver(kernel) == "vfio-pci"


def test_a_removal_of_a_held_function_would_block_for_ever(kernel: FakeKernel) -> None:
    to_vfio(kernel, GPU)
    with kernel.vm_holds(GPU), pytest.raises(WouldBlockForever):
        kernel.write(f"bus/pci/devices/{GPU}/remove", "1")
    assert driver(kernel) == "vfio-pci"


def test_an_unbind_that_waits_hides_the_driver_at_once_and_keeps_the_node(
    kernel: FakeKernel,
) -> None:
    to_vfio(kernel, GPU)
    kernel.patience_s = 0.02
    node = kernel.host.path("/dev/vfio/1")
    with kernel.vm_holds(GPU):
        with pytest.raises(StuckError) as left:
            kernel.write("bus/pci/drivers/vfio-pci/unbind", GPU)
        (operation,) = leftovers.find(kernel.host.path("/proc"))
        assert (operation.pid, str(operation.address)) == (left.value.pid, GPU)
        assert driver(kernel) is None
        assert node.exists()
        override = f"bus/pci/devices/{GPU}/driver_override"
        assert isinstance(kernel.locked([override])[override], StuckError)
        with pytest.raises(WouldBlockForever):
            kernel.write(BIND, GPU)
    while leftovers.find(kernel.host.path("/proc")):
        time.sleep(0.001)
    assert not node.exists()
    kernel.write(BIND, GPU)


def users(kernel: FakeKernel, address: str) -> list[str]:
    parsed = PciAddress.parse(address)
    return [holder.command for holder in holders.find(kernel.host, [parsed])[parsed]]


def test_a_vm_is_found_by_the_node_of_its_group(kernel: FakeKernel) -> None:
    to_vfio(kernel, GPU)
    with kernel.vm_holds(GPU, command="qemu-kata"):
        assert users(kernel, GPU) == ["qemu-kata"]
    assert users(kernel, GPU) == []


def test_a_process_is_found_by_the_node_that_it_has_open(kernel: FakeKernel) -> None:
    to_vfio(kernel, GPU)
    with kernel.process("snoop", kernel.host.path("/dev/vfio/1")) as pid:
        assert users(kernel, GPU) == ["snoop"]
    assert not kernel.host.path(f"/proc/{pid}").exists()


# the builder


def test_a_function_that_comes_back_is_as_new_on_its_host_driver(kernel: FakeKernel) -> None:
    to_vfio(kernel, GPU)
    kernel.unplug(GPU)
    assert not kernel.exists(f"bus/pci/devices/{GPU}")
    kernel.plug(GPU)
    assert (driver(kernel), kernel.read(OVERRIDE)) == ("nvidia", "(null)")


def test_a_port_that_goes_takes_along_what_is_behind_it(tmp_path: Path) -> None:
    kernel = nodes.bridge_pair(tmp_path)
    kernel.unplug("0000:01:00.0")
    assert kernel.names("bus/pci/devices") == ["0000:00:01.0"]


def test_links_lead_where_the_kernels_lead(kernel: FakeKernel) -> None:
    target = kernel.target(f"bus/pci/devices/{GPU}")
    assert target == f"../../../devices/pci0000:00/0000:00:01.0/{GPU}"
    device = kernel.root / "bus/pci/devices" / GPU
    group = kernel.root / "kernel/iommu_groups/1/devices" / GPU
    assert device.resolve() == group.resolve()
    assert (device / "driver" / GPU).resolve() == device.resolve()


def test_configuration_space_says_what_the_attributes_say(kernel: FakeKernel) -> None:
    config = (kernel.root / "bus/pci/devices" / GPU / "config").read_bytes()
    assert (config[:4].hex(), config[9:12].hex(), config[0x0E]) == ("de103023", "000203", 0)
    assert len(config) == 4096


def test_virtual_functions_are_there_when_they_were_asked_for(tmp_path: Path) -> None:
    kernel = nodes.sriov(tmp_path, vfs=2)
    device = f"bus/pci/devices/{GPU}"
    assert kernel.read(f"{device}/sriov_numvfs") == "2"
    assert kernel.link(f"{device}/virtfn1") == "0000:01:00.2"
    assert kernel.link("bus/pci/devices/0000:01:00.2/physfn") == GPU
    assert driver(kernel, "0000:01:00.2") is None


def test_a_driver_that_removes_its_virtual_functions_does_so_when_it_lets_go(
    tmp_path: Path,
) -> None:
    kernel = nodes.sriov(tmp_path, vfs=2)
    kernel.write("bus/pci/drivers/xe/unbind", GPU)
    assert kernel.read(f"bus/pci/devices/{GPU}/sriov_numvfs") == "0"
    assert not kernel.exists("bus/pci/devices/0000:01:00.1")


def test_a_module_appears_with_the_driver_it_holds(kernel: FakeKernel) -> None:
    assert not kernel.exists("module/vfio_pci")
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=1)
    assert kernel.link("bus/pci/drivers/vfio-pci/module") == "vfio_pci"
    assert kernel.link("module/vfio_pci/drivers/pci:vfio-pci") == "vfio-pci"
    assert kernel.read("module/vfio_iommu_type1/parameters/allow_unsafe_interrupts") == "N"


def test_a_module_that_is_not_there_is_a_failed_program(kernel: FakeKernel) -> None:
    with pytest.raises(HostError, match="exit status 1: modprobe: FATAL: Module nosuch not found"):
        kernel.run(("modprobe", "--", "nosuch"), timeout_s=1)


NODES = (
    nodes.single_gpu,
    nodes.no_iommu,
    nodes.gpu_with_audio,
    nodes.boot_display,
    nodes.storage_in_group,
    nodes.bridge_pair,
    nodes.hgx,
    nodes.sriov,
    nodes.three_vendors,
)


@pytest.mark.parametrize("make", NODES, ids=lambda make: make.__name__)
def test_every_node_starts_with_its_endpoints_on_host_drivers(
    make: Callable[[Path], FakeKernel], tmp_path: Path
) -> None:
    kernel = make(tmp_path)
    endpoints = [
        name
        for name in kernel.names("bus/pci/devices")
        if not kernel.read(f"bus/pci/devices/{name}/class").startswith("0x0604")
    ]
    assert endpoints
    assert all(driver(kernel, name) not in {None, "vfio-pci"} for name in endpoints)
    assert kernel.writes == []
