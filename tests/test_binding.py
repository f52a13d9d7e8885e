"""The functions of a group reach their targets together, or stay where they were."""

import errno
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import binding
from kata_gpu.errors import HostError, RollbackError, VerificationError
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import Binding, PciAddress
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel

GPU: Final = PciAddress.parse(nodes.GPU)
AUDIO: Final = PciAddress.parse(nodes.AUDIO)
VFIO: Final = Binding(driver="vfio-pci", override="vfio-pci")
HOME: Final = {
    GPU: Binding(driver="nvidia", override=None),
    AUDIO: Binding(driver="snd_hda_intel", override=None),
}
BOTH: Final = {GPU: VFIO, AUDIO: VFIO}

WRITES: Final = ["override", "override-2", "unbind", "unbind-2", "bind", "bind-2"]
EVERY_WRITE: Final = pytest.mark.parametrize("index", range(len(WRITES)), ids=WRITES)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A host with a GPU and its audio function in one group, and vfio-pci loaded."""
    kernel = nodes.gpu_with_audio(tmp_path)
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    return kernel


def state(kernel: FakeKernel) -> dict[PciAddress, Binding]:
    return {address: binding.read(kernel, address) for address in HOME}


def names(kernel: FakeKernel) -> list[str]:
    """Return the attributes that were written to, in order."""
    return [path.rpartition("/")[2] for path, _ in kernel.writes]


def test_a_group_moves_to_vfio_and_back(kernel: FakeKernel) -> None:
    binding.rebind(kernel, BOTH)
    assert state(kernel) == BOTH
    binding.rebind(kernel, HOME)
    assert state(kernel) == HOME


def test_all_overrides_are_written_before_any_driver_is_taken(kernel: FakeKernel) -> None:
    binding.rebind(kernel, BOTH)
    assert names(kernel) == ["driver_override"] * 2 + ["unbind"] * 2 + ["bind"] * 2


def test_on_the_way_back_the_overrides_are_cleared_first(kernel: FakeKernel) -> None:
    binding.rebind(kernel, BOTH)
    kernel.writes.clear()
    binding.rebind(kernel, HOME)
    assert [value for path, value in kernel.writes if path.endswith("driver_override")] == [
        "\n"
    ] * 2
    assert names(kernel) == ["driver_override"] * 2 + ["unbind"] * 2 + ["bind"] * 2


@pytest.mark.parametrize("override", ["vfio-pci", "pci-stub", "no-such-driver"])
def test_an_override_for_another_driver_is_restored_after_the_driver(
    kernel: FakeKernel, override: str
) -> None:
    kernel.write(f"bus/pci/devices/{GPU}/driver_override", override)
    before = {GPU: Binding(driver="nvidia", override=override), AUDIO: HOME[AUDIO]}
    binding.rebind(kernel, BOTH)
    binding.rebind(kernel, before)
    assert state(kernel) == before


def test_a_group_in_place_is_not_written_to(kernel: FakeKernel) -> None:
    binding.rebind(kernel, HOME)
    assert kernel.writes == []


def test_only_the_steps_that_are_missing_are_taken(kernel: FakeKernel) -> None:
    binding.rebind(kernel, {GPU: VFIO})
    kernel.writes.clear()
    binding.rebind(kernel, BOTH)
    assert {path.split("/")[3] for path, _ in kernel.writes} == {
        nodes.AUDIO,
        "snd_hda_intel",
        "vfio-pci",
    }
    assert len(kernel.writes) == 3


def test_an_override_alone_is_put_right_without_a_rebind(kernel: FakeKernel) -> None:
    binding.rebind(kernel, BOTH)
    kernel.write(f"bus/pci/devices/{GPU}/driver_override", "\n")
    kernel.writes.clear()
    binding.rebind(kernel, BOTH)
    assert names(kernel) == ["driver_override"]
    assert state(kernel) == BOTH


def test_a_function_without_a_driver_moves_and_goes_back_to_none(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    kernel.write("bus/pci/drivers/nvidia/unbind", str(GPU))
    unclaimed = Binding(driver=None, override=None)
    binding.rebind(kernel, {GPU: VFIO})
    binding.rebind(kernel, {GPU: unclaimed})
    assert binding.read(kernel, GPU) == unclaimed


def test_an_original_override_comes_back_with_the_driver(kernel: FakeKernel) -> None:
    kernel.write(f"bus/pci/devices/{GPU}/driver_override", "nvidia")
    binding.rebind(kernel, {GPU: VFIO})
    binding.rebind(kernel, {GPU: Binding(driver="nvidia", override="nvidia")})
    assert binding.read(kernel, GPU) == Binding(driver="nvidia", override="nvidia")


def test_a_driver_that_is_not_loaded_is_refused_before_any_write(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    with pytest.raises(HostError, match=r"cannot bind 0000:01:00.0 to vfio-pci: no such driver"):
        binding.rebind(kernel, BOTH)
    assert kernel.writes == []


def test_a_function_that_is_not_there_is_refused_before_any_write(kernel: FakeKernel) -> None:
    with pytest.raises(
        HostError, match=r"cannot read bus/pci/devices/0000:01:00.7/driver_override"
    ):
        binding.rebind(kernel, {GPU: VFIO, PciAddress.parse("0000:01:00.7"): VFIO})
    assert kernel.writes == []


@EVERY_WRITE
def test_whichever_write_fails_the_group_is_put_back(kernel: FakeKernel, index: int) -> None:
    kernel.fail_write(index, errno.EIO)
    with pytest.raises(HostError, match=r"cannot write .*: Input/output error"):
        binding.rebind(kernel, BOTH)
    assert state(kernel) == HOME


@EVERY_WRITE
def test_whichever_write_fails_on_the_way_back_the_group_stays_on_vfio(
    kernel: FakeKernel, index: int
) -> None:
    binding.rebind(kernel, BOTH)
    kernel.fail_write(len(kernel.writes) + index, errno.EBUSY)
    with pytest.raises(HostError, match=r"cannot write .*: Device or resource busy"):
        binding.rebind(kernel, HOME)
    assert state(kernel) == BOTH


@EVERY_WRITE
def test_a_function_that_vanishes_is_named_and_the_other_put_back(
    kernel: FakeKernel, index: int
) -> None:
    kernel.vanish_after_write(index, nodes.AUDIO)
    with pytest.raises(HostError, match=r"cannot bind 0000:01:00.1: it vanished from the bus"):
        binding.rebind(kernel, BOTH)
    assert binding.read(kernel, GPU) == HOME[GPU]


def test_a_group_that_vanishes_altogether_leaves_nothing_to_put_back(kernel: FakeKernel) -> None:
    kernel.vanish_after_write(2, nodes.GPU)
    kernel.vanish_after_write(2, nodes.AUDIO)
    with pytest.raises(HostError, match=r"cannot bind 0000:01:00.0, 0000:01:00.1: it vanished"):
        binding.rebind(kernel, BOTH)
    assert len(kernel.writes) == 4


def test_a_bind_that_only_claims_success_is_found_out(kernel: FakeKernel) -> None:
    kernel.deaf.add("vfio-pci")
    with pytest.raises(VerificationError, match="every write was accepted, but it has no driver"):
        binding.rebind(kernel, BOTH)
    assert state(kernel) == HOME


def test_a_failed_rollback_keeps_both_failures(kernel: FakeKernel) -> None:
    kernel.deaf.update({"vfio-pci", "nvidia"})
    with pytest.raises(RollbackError, match=r"cannot return 0000:01:00.0 to nvidia") as caught:
        binding.rebind(kernel, BOTH)
    assert "to vfio-pci" in str(caught.value.failure)
    assert isinstance(caught.value.__cause__, VerificationError)
    assert "to nvidia" in str(caught.value.__cause__)


def test_a_rollback_takes_the_last_function_first(kernel: FakeKernel) -> None:
    kernel.fail_write(lambda path, value: path.endswith("vfio-pci/bind"), errno.EIO)
    with pytest.raises(HostError):
        binding.rebind(kernel, BOTH)
    binds = [value for path, value in kernel.writes if path.endswith("/bind")]
    assert binds == [nodes.GPU, nodes.AUDIO, nodes.GPU]


def test_on_a_read_only_sysfs_nothing_changes(kernel: FakeKernel) -> None:
    kernel.read_only = True
    with pytest.raises(HostError, match="driver_override: Read-only file system"):
        binding.rebind(kernel, BOTH)
    assert state(kernel) == HOME
    assert len(kernel.writes) == 1


def test_without_permission_nothing_changes(kernel: FakeKernel) -> None:
    kernel.forbidden = True
    with pytest.raises(HostError, match="driver_override: Permission denied"):
        binding.rebind(kernel, BOTH)
    assert state(kernel) == HOME
    assert len(kernel.writes) == 1


def test_permission_that_is_lost_half_way_leaves_neither_state(kernel: FakeKernel) -> None:
    def lose(path: str, value: str) -> None:
        kernel.forbidden = path.endswith("unbind")

    kernel.after_write = lose
    with pytest.raises(RollbackError) as caught:
        binding.rebind(kernel, {GPU: VFIO})
    assert "Permission denied" in str(caught.value.failure)


def test_an_override_that_is_no_ascii_is_written_back_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "driver_override").write_bytes(b"caf\xe9\n")
    sysfs = Sysfs(tmp_path)
    sysfs.write("driver_override", sysfs.read("driver_override"))
    assert (tmp_path / "driver_override").read_bytes() == b"caf\xe9\n"
