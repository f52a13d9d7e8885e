"""Whether a group may be given to a guest: each rule by itself, with who is in the way."""

from dataclasses import replace

import pytest

from kata_gpu.model.iommu import Blocker, Verdict, judge, judge_without_group
from kata_gpu.model.pci import (
    Binding,
    PciFunction,
    PhysicalFunction,
    VirtualFunction,
)
from kata_gpu.model.platform import Platform
from tests.values import (
    AUDIO_CLASS,
    BRIDGE_CLASS,
    NETWORK_CLASS,
    PLATFORM,
    SWITCH_CLASS,
    address,
    function,
    group_of,
)

GPU = function("01:00.0")
AUDIO = function("01:00.1", AUDIO_CLASS)
NETWORK = function("01:00.1", NETWORK_CLASS)


def verdict_on(*functions: PciFunction, platform: Platform = PLATFORM, named: str = "") -> Verdict:
    return judge(
        [group_of(*functions)],
        {f.address: f for f in functions},
        platform,
        named=frozenset(map(address, named.split())),
    )


def only_blocker(verdict: Verdict) -> Blocker:
    assert len(verdict.blockers) == 1
    return verdict.blockers[0]


# What may go


def test_a_gpu_alone_may_go() -> None:
    assert verdict_on(GPU).is_viable


@pytest.mark.parametrize(
    "class_code",
    [0x030000, 0x030200, 0x038000, 0x120000, AUDIO_CLASS, 0x0C0330, 0x0C8000, SWITCH_CLASS],
    ids=["vga", "3d", "display", "accelerator", "audio", "usb", "ucsi", "nvswitch"],
)
def test_a_gpus_company_goes_with_it(class_code: int) -> None:
    mate = function("01:00.1", class_code)
    verdict = verdict_on(GPU, mate)
    assert verdict.is_viable
    assert verdict.passengers == (GPU.address, mate.address)


def test_a_stranger_goes_when_a_pool_names_it() -> None:
    assert verdict_on(GPU, NETWORK, named="01:00.0 01:00.1").is_viable


@pytest.mark.parametrize("class_code", [AUDIO_CLASS, 0x0C0330, 0x0C0500])
def test_the_like_of_a_gpus_company_in_another_slot_stays(class_code: int) -> None:
    elsewhere = function("01:01.0", class_code)
    blocker = only_blocker(verdict_on(GPU, elsewhere))
    assert blocker.address == elsewhere.address


def test_a_gpu_does_not_go_along_with_what_is_none() -> None:
    assert only_blocker(verdict_on(GPU, NETWORK, named="01:00.1")).address == GPU.address


@pytest.mark.parametrize("class_code", [0x060000, 0x060400], ids=["host bridge", "PCI bridge"])
@pytest.mark.parametrize("driver", [None, "pcieport", "pci-stub", "vfio-pci"])
def test_a_bridge_stays_behind_on_a_harmless_driver(class_code: int, driver: str | None) -> None:
    bridge = function("00:01.0", class_code, binding=Binding(driver, None))
    verdict = verdict_on(bridge, GPU)
    assert verdict.is_viable
    assert verdict.passengers == (GPU.address,)


def test_a_virtual_function_may_go() -> None:
    virtual = replace(GPU, sriov=VirtualFunction(parent=address("02:00.0")))
    assert verdict_on(virtual).is_viable


def test_a_physical_function_without_virtual_ones_may_go() -> None:
    assert verdict_on(replace(GPU, sriov=PhysicalFunction(total_vfs=31, active_vfs=0))).is_viable


def test_interrupts_that_nobody_can_judge_block_nothing() -> None:
    assert verdict_on(GPU, platform=replace(PLATFORM, interrupt_remapping=None)).is_viable


def test_unsafe_interrupts_are_the_admins_word() -> None:
    platform = replace(PLATFORM, interrupt_remapping=False, unsafe_interrupts=True)
    assert verdict_on(GPU, platform=platform).is_viable


# What is in the way: the node, the group


def test_without_an_iommu_nothing_goes() -> None:
    blocker = only_blocker(verdict_on(GPU, platform=replace(PLATFORM, iommu=None)))
    assert blocker.address is None
    assert blocker.reason == "no IOMMU is in use on this node"


def test_without_interrupt_remapping_nothing_goes() -> None:
    platform = replace(PLATFORM, interrupt_remapping=False)
    blocker = only_blocker(verdict_on(GPU, platform=platform))
    assert blocker.address is None
    assert "does not remap interrupts" in blocker.reason


def test_a_group_of_the_unsafe_mode_isolates_nothing() -> None:
    group = replace(group_of(GPU), is_noiommu=True)
    blocker = only_blocker(judge([group], {GPU.address: GPU}, PLATFORM))
    assert blocker.address is None
    assert "unsafe no-IOMMU mode" in blocker.reason


def test_a_firmware_mapping_keeps_the_group() -> None:
    group = replace(group_of(GPU), has_direct_region=True)
    blocker = only_blocker(judge([group], {GPU.address: GPU}, PLATFORM))
    assert blocker.address is None
    assert "1:1 mapping for group 1" in blocker.reason


def test_a_group_of_bridges_has_nobody_to_give() -> None:
    blocker = only_blocker(verdict_on(function("00:01.0", BRIDGE_CLASS, binding=_PORT)))
    assert blocker.address is None
    assert blocker.reason == "it holds only bridges"


def test_a_function_without_a_group_stays() -> None:
    verdict = judge_without_group(GPU, PLATFORM)
    assert verdict.groups == ()
    assert only_blocker(verdict).address == GPU.address
    assert only_blocker(verdict).reason == "it is in no IOMMU group"


def test_a_function_without_a_group_on_a_node_without_iommu_blames_the_node() -> None:
    verdict = judge_without_group(GPU, replace(PLATFORM, iommu=None))
    assert only_blocker(verdict).address is None
    assert "no IOMMU is in use" in only_blocker(verdict).reason


# What is in the way: one function


_PORT = Binding("pcieport", None)


@pytest.mark.parametrize(
    ("mate", "reason"),
    [
        (NETWORK, "class 0200 is no part of the GPU and would leave the host"),
        (function("01:00.1", 0x068000, vendor=0x8086), "class 0680 is no part of the GPU"),
        (function("01:00.1", 0x060100, vendor=0x8086), "class 0601 is no part of the GPU"),
        (function("01:00.1", 0x010802), "it is a storage controller"),
        (function("01:00.1", 0x010400), "it is a storage controller"),
        (replace(function("01:00.1", 0x030000), is_boot_display=True), "it is the boot display"),
        (replace(AUDIO, header_type=1), "header type 1 cannot be bound to VFIO"),
        (replace(AUDIO, header_type=None), "its config space does not answer"),
        (function("01:00.1", AUDIO_CLASS, vendor=0xFFFF), "its config space does not answer"),
        (
            replace(AUDIO, sriov=PhysicalFunction(total_vfs=31, active_vfs=4)),
            "it has 4 virtual functions in use",
        ),
    ],
    ids=[
        "network", "other bridge", "ISA bridge", "NVMe", "RAID", "boot display", "header type",
        "dead config space", "fallen off the bus", "virtual functions",
    ],
)  # fmt: skip
def test_one_function_keeps_its_whole_group(mate: PciFunction, reason: str) -> None:
    blocker = only_blocker(verdict_on(GPU, mate))
    assert blocker.address == mate.address
    assert blocker.reason.startswith(reason)
    assert blocker.remedy


@pytest.mark.parametrize(
    "mate",
    [
        function("01:00.1", 0x010802),
        replace(function("01:00.1", 0x030000), is_boot_display=True),
        replace(AUDIO, header_type=1),
        replace(AUDIO, sriov=PhysicalFunction(total_vfs=31, active_vfs=4)),
    ],
    ids=["storage", "boot display", "header type", "virtual functions"],
)
def test_to_be_named_does_not_help(mate: PciFunction) -> None:
    assert only_blocker(verdict_on(GPU, mate, named="01:00.0 01:00.1")).address == mate.address


@pytest.mark.parametrize("driver", ["shpchp", "some_bridge_driver"])
def test_a_bridge_driver_that_claims_dma_is_in_the_way(driver: str) -> None:
    bridge = function("00:01.0", BRIDGE_CLASS, binding=Binding(driver, None))
    blocker = only_blocker(verdict_on(bridge, GPU))
    assert blocker.address == bridge.address
    assert blocker.reason == f"bridge driver {driver} claims DMA for the group"


def test_a_member_that_could_not_be_read_is_in_the_way() -> None:
    verdict = judge([group_of(GPU, AUDIO)], {GPU.address: GPU}, PLATFORM)
    assert only_blocker(verdict).address == AUDIO.address
    assert only_blocker(verdict).reason == "it cannot be read"


def test_all_that_is_in_the_way_is_told_at_once() -> None:
    platform = replace(PLATFORM, interrupt_remapping=False)
    verdict = verdict_on(GPU, NETWORK, function("01:00.2", 0x010802), platform=platform)
    assert [str(b.address) for b in verdict.blockers] == ["None", "0000:01:00.1", "0000:01:00.2"]


def test_a_blocker_reads_as_one_sentence() -> None:
    blocker = Blocker(address=GPU.address, reason="it is dead", remedy="bury it")
    assert str(blocker) == "0000:01:00.0: it is dead; bury it"
    assert str(replace(blocker, address=None)) == "it is dead; bury it"
