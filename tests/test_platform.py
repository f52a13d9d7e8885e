"""What the node can do for passthrough, told by what its kernel shows now."""

import os
from pathlib import Path

import pytest

from kata_gpu.discover import inventory as discover
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.platform import IommuKind, Platform, Tee
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel


def collected(kernel: FakeKernel) -> Inventory:
    return discover.collect(kernel.host)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dmar0", IommuKind.INTEL),
        ("ivhd0", IommuKind.AMD),
        ("smmu3.0x0000000008050000", IommuKind.ARM_SMMU),
        ("arm-smmu-v3.0.auto", IommuKind.ARM_SMMU),
        ("riscv-iommu@0000:00:01.0", IommuKind.RISCV),
        ("s390-iommu.0000", IommuKind.S390),
        ("exynos0", IommuKind.OTHER),
    ],
)
def test_an_iommu_in_use_is_known_by_its_name(name: str, kind: IommuKind, tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, iommu=name)
    kernel.add_device("0000:09:00.0", vendor=0x8086, device=0x10D3, class_code=0x020000)
    assert collected(kernel).platform.iommu is kind


def test_an_iommu_that_made_no_groups_is_not_in_use(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, iommu="dmar0")
    assert collected(kernel).platform.iommu is None


def test_groups_without_an_iommu_do_not_make_one(tmp_path: Path) -> None:
    kernel = nodes.no_iommu(tmp_path)
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir()
    assert collected(kernel).platform.iommu is None


@pytest.mark.parametrize(
    ("interrupts", "remapped"),
    [
        (" 24: 0 IR-PCI-MSI 1048576-edge eth0\n", True),
        ("  0: 1 IR-IO-APIC 2-edge timer\n 24: 0 IR-PCI-MSI-0000:01:00.0 0-edge x\n", True),
        ("  0: 1 IO-APIC 2-edge timer\n 24: 0 PCI-MSI 1048576-edge eth0\n", False),
        (" 12: 5 GICv3 27 Level arch_timer\n", None),
        ("", None),
        (None, None),
    ],
    ids=["remapped", "remapped, new kernel", "not remapped", "no x86", "empty", "no file"],
)
def test_interrupt_remapping_is_told_by_the_chips_in_use(
    interrupts: str | None, remapped: bool | None, tmp_path: Path
) -> None:
    kernel = nodes.single_gpu(tmp_path)
    if interrupts is None:
        (tmp_path / "proc/interrupts").unlink()
    else:
        kernel.tree.text("proc/interrupts", interrupts)
    assert collected(kernel).platform.interrupt_remapping is remapped


def test_a_plain_node_has_none_of_the_special_facts(tmp_path: Path) -> None:
    facts = collected(nodes.single_gpu(tmp_path)).platform
    assert facts == Platform(
        kernel_release="6.1.0-56-amd64",
        machine=os.uname().machine,
        iommu=IommuKind.INTEL,
        interrupt_remapping=True,
        unsafe_interrupts=False,
        noiommu_mode=False,
        iommufd=False,
        tees=(),
    )


@pytest.mark.parametrize(("unsafe", "noiommu"), [(True, False), (False, True)])
def test_the_unsafe_modes_of_vfio_are_seen(unsafe: bool, noiommu: bool, tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, unsafe_interrupts=unsafe, noiommu_mode=noiommu)
    facts = collected(kernel).platform
    assert (facts.unsafe_interrupts, facts.noiommu_mode) == (unsafe, noiommu)


@pytest.mark.parametrize(
    ("module", "parameter", "value", "tees"),
    [
        ("kvm_amd", "sev_snp", "Y", (Tee.SEV_SNP,)),
        ("kvm_intel", "tdx", "Y", (Tee.TDX,)),
        ("kvm_amd", "sev_snp", "N", ()),
        ("kvm_amd", "sev", "Y", ()),
    ],
)
def test_a_trusted_environment_is_one_that_kvm_says_yes_to(
    module: str, parameter: str, value: str, tees: tuple[Tee, ...], tmp_path: Path
) -> None:
    kernel = nodes.bare(tmp_path)
    kernel.tree.add_module(module, {parameter: value})
    assert collected(kernel).platform.tees == tees


@pytest.mark.parametrize("node", ["nothing", "a file", "a link"])
def test_what_is_no_character_device_is_no_iommufd(node: str, tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    place = tmp_path / "dev/iommu"
    if node == "a file":
        place.touch()
    if node == "a link":
        place.symlink_to("/dev/null")
    assert not collected(kernel).platform.iommufd


def test_a_node_that_hides_its_release_is_a_problem(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    (tmp_path / "proc/sys/kernel/osrelease").unlink()
    found = collected(kernel)
    assert found.platform.kernel_release == "unknown"
    assert [problem.subject for problem in found.problems] == ["node"]
