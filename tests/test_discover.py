"""The inventory: which functions are in it, what the node is, and what could not be read."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kata_gpu.discover import inventory as discover
from kata_gpu.host import Host
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.pci import Identity
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.values import address

NETWORK = "0000:09:00.0"


def addresses(found: Inventory) -> list[str]:
    return [str(f.address) for f in found.functions]


def add_network_card(kernel: FakeKernel, where: str = NETWORK, *, group: int | None = None) -> None:
    """Put one more function on the bus, that no driver holds."""
    kernel.add_device(where, vendor=0x8086, device=0x10D3, class_code=0x020000, group=group)


def collected(kernel: FakeKernel) -> Inventory:
    return discover.collect(kernel.host)


# What matters


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (nodes.bare, []),
        (nodes.single_gpu, ["0000:00:01.0", nodes.GPU]),
        (nodes.no_iommu, ["0000:00:01.0", nodes.GPU]),
        (nodes.gpu_with_audio, ["0000:00:01.0", nodes.GPU, nodes.AUDIO]),
        (nodes.storage_in_group, ["0000:00:01.0", nodes.GPU, nodes.DISK]),
        (nodes.bridge_pair, ["0000:00:01.0", "0000:01:00.0", *nodes.BRIDGED]),
        (
            nodes.three_vendors,
            [
                "0000:00:01.0", "0000:00:02.0", "0000:00:03.0",
                nodes.GPU, nodes.AMD_GPU, nodes.INTEL_GPU,
            ],
        ),
    ],
    ids=["bare", "single", "no IOMMU", "audio", "storage", "bridge pair", "three vendors"],
)  # fmt: skip
def test_gpus_are_listed_with_their_company_and_the_bridges_above(
    node: Callable[[Path], FakeKernel], expected: list[str], tmp_path: Path
) -> None:
    found = collected(node(tmp_path))
    assert addresses(found) == expected
    assert found.problems == ()


def test_a_switch_is_listed_without_being_asked_for(tmp_path: Path) -> None:
    assert nodes.HGX_SWITCH in addresses(collected(nodes.hgx(tmp_path)))


def test_a_network_card_elsewhere_is_not_listed(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    add_network_card(kernel)
    assert NETWORK not in addresses(collected(kernel))


def test_a_network_card_of_interest_is_listed_with_its_company(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    add_network_card(kernel)
    add_network_card(kernel, "0000:09:00.1")
    found = discover.collect(kernel.host, interest=lambda i: str(i.address) == NETWORK)
    assert addresses(found)[-2:] == [NETWORK, "0000:09:00.1"]


def test_a_stranger_in_a_gpus_group_is_listed_wherever_it_sits(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    add_network_card(kernel, group=1)
    assert NETWORK in addresses(collected(kernel))


def test_a_stranger_in_a_gpus_slot_is_listed_whatever_its_group(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    add_network_card(kernel, "0000:01:00.3", group=77)
    assert "0000:01:00.3" in addresses(collected(kernel))


def test_virtual_functions_of_what_matters_are_listed_wherever_they_sit(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    parent, virtual = "0000:01:1f.7", "0000:02:00.0"
    kernel.add_device(
        parent, vendor=0x8086, device=0x56C0, class_code=0x020000, driver="xe", total_vfs=1, vfs=1
    )
    found = discover.collect(kernel.host, interest=lambda found: found.address == address(parent))
    assert address(virtual) in found.by_address()


def test_functions_come_by_address(tmp_path: Path) -> None:
    found = addresses(collected(nodes.hgx(tmp_path)))
    assert found == sorted(found)
    assert len(found) == 12


def test_an_inventory_says_when_it_was_made(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    assert before <= collected(nodes.bare(tmp_path)).read_at <= datetime.now(UTC)


def test_the_names_of_products_come_from_the_hosts_database(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    kernel.tree.text("usr/share/misc/pci.ids", "#\n10de  NVIDIA Corporation\n\t2330  GH100\n")
    found = collected(kernel).by_address()[address(nodes.GPU)]
    assert found.label == "NVIDIA Corporation GH100 [10de:2330]"


# Groups


def test_every_group_of_a_listed_function_is_there(tmp_path: Path) -> None:
    groups = collected(nodes.gpu_with_audio(tmp_path)).by_group()
    assert set(groups) == {0, 1}
    assert list(map(str, groups[1].members)) == [nodes.GPU, nodes.AUDIO]
    assert groups[1].domain_type == "DMA-FQ"
    assert not groups[1].has_direct_region
    assert not groups[1].is_noiommu


def test_a_direct_region_is_seen(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    kernel.tree.reserve_direct(1)
    assert collected(kernel).by_group()[1].has_direct_region


@pytest.mark.parametrize(
    ("attribute", "text", "expected"),
    [
        ("reserved_regions", "0x0 0x1 direct-relaxable\n0x2 0x3 msi\n", (False, False)),
        ("reserved_regions", "", (False, False)),
        ("reserved_regions", "0x0 0x1 msi\n0x2 0x3 direct\n", (True, False)),
        ("name", "vfio-noiommu\n", (False, True)),
        ("name", "other\n", (False, False)),
    ],
)
def test_a_group_says_what_keeps_it(
    attribute: str, text: str, expected: tuple[bool, bool], tmp_path: Path
) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    file = tmp_path / "sys/kernel/iommu_groups/1" / attribute
    file.unlink(missing_ok=True)
    file.write_text(text)
    group = collected(kernel).by_group()[1]
    assert (group.has_direct_region, group.is_noiommu) == expected


def test_a_group_of_something_that_is_no_function_is_a_problem(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    (tmp_path / "sys/kernel/iommu_groups/1/devices/evil").touch()
    found = collected(kernel)
    assert set(found.by_group()) == {0}
    assert [problem.subject for problem in found.problems] == ["group 1"]


def test_a_group_that_vanished_is_a_problem(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    (tmp_path / "sys/kernel/iommu_groups/1").rename(tmp_path / "gone")
    assert [problem.subject for problem in collected(kernel).problems] == ["group 1"]


# What cannot be read


@pytest.mark.parametrize("attribute", ["vendor", "class", "subsystem_vendor", "config"])
def test_an_unreadable_function_is_a_problem_and_the_others_stand(
    attribute: str, tmp_path: Path
) -> None:
    kernel = nodes.hgx(tmp_path)
    kernel.unreadable(nodes.HGX_GPUS[1], attribute)
    found = collected(kernel)
    assert [problem.subject for problem in found.problems] == [nodes.HGX_GPUS[1]]
    assert nodes.HGX_GPUS[1] not in addresses(found)
    assert set(nodes.HGX_GPUS) - set(addresses(found)) == {nodes.HGX_GPUS[1]}


def test_a_function_that_vanishes_meanwhile_is_a_problem(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    add_network_card(kernel)

    def pull(identity: Identity) -> bool:
        if identity.address == address(NETWORK):
            kernel.unplug(nodes.GPU)
        return False

    found = discover.collect(kernel.host, interest=pull)
    assert [problem.subject for problem in found.problems] == [nodes.GPU]
    assert addresses(found) == ["0000:00:01.0"]


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "0000:01:00.9", "x" * 200, "é\u202e"])
def test_a_name_that_is_no_address_is_a_problem_that_can_be_printed(
    name: str, tmp_path: Path
) -> None:
    kernel = nodes.single_gpu(tmp_path)
    (tmp_path / "sys/bus/pci/devices" / name).mkdir()
    found = collected(kernel)
    assert nodes.GPU in addresses(found)
    assert len(found.problems) == 1
    assert found.problems[0].subject.isprintable()
    assert found.problems[0].reason.isprintable()
    assert len(found.problems[0].subject) <= 32


def test_a_host_without_a_pci_bus_has_an_empty_inventory(tmp_path: Path) -> None:
    found = discover.collect(Host.at(tmp_path))
    assert (found.functions, found.groups) == ((), ())


# Files


def test_files_are_read_once_and_a_missing_one_has_no_content(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    kernel.tree.text("run/a", "text\n")
    found = discover.collect(kernel.host, paths=("/run/a", "/run/b", "/run/a"))
    assert [(file.path, file.content) for file in found.files] == [
        ("/run/a", "text\n"),
        ("/run/b", None),
    ]
    assert found.content("/run/a") == "text\n"


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    (tmp_path / "run/a").mkdir(parents=True)
    found = discover.collect(kernel.host, paths=("/run/a",))
    assert found.files == ()
    assert [problem.subject for problem in found.problems] == ["/run/a"]


# Identity


def test_a_card_has_the_name_of_its_slot_and_its_serial_number(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    kernel.tree.text("sys/bus/pci/slots/4/address", "0000:01:00\n")
    kernel.tree.text("sys/bus/pci/slots/5/address", "0000:02:00\n")
    kernel.tree.text("sys/bus/pci/slots/empty/address", "0000:03\n")
    home = (kernel.root / f"bus/pci/devices/{nodes.GPU}").resolve()
    (home / "serial_number").write_text("00-11-22-33-44-55-66-77\n")
    found = discover.collect(kernel.host).functions[-1]
    assert (found.slot, found.serial) == ("4", "00-11-22-33-44-55-66-77")


@pytest.mark.parametrize("said", ["00-00-00-00-00-00-00-00", "ff-ff-ff-ff-ff-ff-ff-ff", "\x1b[0m"])
def test_a_serial_number_that_says_nothing_is_none(said: str, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    home = (kernel.root / f"bus/pci/devices/{nodes.GPU}").resolve()
    (home / "serial_number").write_text(f"{said}\n")
    assert discover.collect(kernel.host).functions[-1].serial is None


def test_without_one_it_is_what_nvidias_driver_calls_it(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    uuid = "GPU-5c5d5a33-9b1f-4c2e-8e0b-3d0f2f0c9a11"
    text = f"Model: \t NVIDIA H100\nGPU UUID: \t {uuid}\n"
    kernel.tree.text(f"proc/driver/nvidia/gpus/{nodes.GPU}/information", text)
    assert discover.collect(kernel.host).functions[-1].serial == uuid
