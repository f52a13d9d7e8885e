"""One function of the bus: every field as the kernel shows it, and whatever else it may say."""

import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.discover import functions
from kata_gpu.discover.functions import Place, UnreadableFunctionError
from kata_gpu.host.children import Answer
from kata_gpu.host.pci_ids import PciIds
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import (
    Bar,
    Binding,
    Link,
    PciFunction,
    PhysicalFunction,
    VirtualFunction,
)
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.values import address

GPU = nodes.GPU
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
ESCAPE = "\x1b[31mvfio-pci"


def read(sysfs: Sysfs, name: str = GPU) -> PciFunction:
    where = functions.place(sysfs, name)
    return functions.details(sysfs, where, PciIds(), override_of(sysfs, where))


def override_of(sysfs: Sysfs, where: Place) -> Answer:
    path = functions.override_path(where.identity.address)
    return sysfs.locked([path])[path]


def say(kernel: FakeKernel, attribute: str, content: bytes | str | None, name: str = GPU) -> None:
    """Let a function's attribute read as *content*; without any it is not there."""
    file = (kernel.root / "bus/pci/devices" / name).resolve() / attribute
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def point(kernel: FakeKernel, link: str, target: str, name: str = GPU) -> None:
    """Let a function's link lead to *target*."""
    file = (kernel.root / "bus/pci/devices" / name).resolve() / link
    file.unlink(missing_ok=True)
    file.symlink_to(target)


# As the kernel shows it


def test_every_field_of_a_gpu(tmp_path: Path) -> None:
    found = read(nodes.single_gpu(tmp_path))
    assert (found.vendor, found.identity.device, found.class_code) == (0x10DE, 0x2330, 0x030200)
    assert (found.subsystem_vendor, found.subsystem_device) == (0x10DE, 0x16C1)
    assert found.revision == 0xA1
    assert found.binding == Binding(driver="nvidia", override=None)
    assert (found.numa_node, found.iommu_group) == (0, 1)
    assert (found.root, found.bridges) == ("pci0000:00", (address("00:01.0"),))
    assert found.header_type == 0
    assert found.link == Link(32.0, 16, 32.0, 16)
    assert found.reset_methods == ("flr", "bus")
    assert found.sriov is None
    assert found.power_state == "D0"
    assert not found.is_boot_display
    assert found.vfio_cdev is None
    assert found.label == "[10de:2330]"


def test_windows_have_their_sizes_and_kinds(tmp_path: Path) -> None:
    assert read(nodes.single_gpu(tmp_path)).bars == (
        Bar(index=0, size_bytes=16 << 20, is_prefetchable=False, is_64_bit=False),
        Bar(index=1, size_bytes=128 << 30, is_prefetchable=True, is_64_bit=True),
        Bar(index=3, size_bytes=32 << 20, is_prefetchable=False, is_64_bit=False),
    )


def test_an_io_window_is_a_window_and_the_expansion_rom_is_not(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    unset = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    io, rom = "0xe000 0xe07f 0x40101\n", "0xfb000000 0xfb07ffff 0x46200\n"
    say(kernel, "resource", f"{unset * 5}{io}{rom}{unset * 6}")
    assert read(kernel).bars == (
        Bar(index=5, size_bytes=128, is_prefetchable=False, is_64_bit=False),
    )


def test_the_bridges_above_come_outermost_first(tmp_path: Path) -> None:
    found = read(nodes.hgx(tmp_path), nodes.HGX_GPUS[1])
    assert list(map(str, found.bridges)) == ["0000:40:01.0", "0000:41:00.0", "0000:42:01.0"]
    assert (found.root, found.numa_node) == ("pci0000:40", 1)


def test_behind_a_vmd_controller_the_inner_root_counts(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    home = (tmp_path / "sys/bus/pci/devices" / GPU).resolve()
    inner = tmp_path / "sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0"
    inner.mkdir(parents=True)
    home.rename(inner / "10000:e1:00.0")
    (tmp_path / "sys/bus/pci/devices/10000:e1:00.0").symlink_to(
        "../../../devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0"
    )
    where = functions.place(kernel, "10000:e1:00.0")
    assert (where.root, list(map(str, where.bridges))) == ("pci10000:e0", ["10000:e0:06.0"])


def test_a_multi_function_endpoint_has_header_type_zero(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    assert kernel.head(f"bus/pci/devices/{nodes.AUDIO}/config", 15)[14] == 0x80
    assert read(kernel, nodes.AUDIO).header_type == 0


def test_a_bridge_has_header_type_one(tmp_path: Path) -> None:
    assert read(nodes.single_gpu(tmp_path), "0000:00:01.0").header_type == 1


@pytest.mark.parametrize("config", [b"", b"\0" * 63, b"\xff" * 64])
def test_a_config_space_that_does_not_answer_has_no_header_type(
    config: bytes, tmp_path: Path
) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "config", config)
    assert read(kernel).header_type is None


def test_a_physical_function_counts_its_virtual_ones(tmp_path: Path) -> None:
    assert read(nodes.sriov(tmp_path, vfs=2)).sriov == PhysicalFunction(total_vfs=31, active_vfs=2)


@pytest.mark.parametrize(("said", "probes"), [("0", False), ("1", True), ("junk", True)])
def test_a_physical_function_says_whether_drivers_may_take_its_virtual_ones(
    tmp_path: Path, said: str, probes: bool
) -> None:
    kernel = nodes.sriov(tmp_path)
    say(kernel, "sriov_drivers_autoprobe", f"{said}\n".encode())
    expected = PhysicalFunction(total_vfs=31, active_vfs=0, probes_vfs=probes)
    assert read(kernel).sriov == expected


def test_a_virtual_function_knows_its_parent(tmp_path: Path) -> None:
    found = read(nodes.sriov(tmp_path, vfs=2), "0000:01:00.2")
    assert found.sriov == VirtualFunction(parent=address(GPU))


def test_a_boot_display_says_so(tmp_path: Path) -> None:
    assert read(nodes.boot_display(tmp_path)).is_boot_display


@pytest.mark.parametrize(("cdevs", "cdev"), [(True, "vfio0"), (False, None)])
def test_only_a_bound_function_with_a_number_has_a_node_of_its_own(
    cdevs: bool, cdev: str | None, tmp_path: Path
) -> None:
    kernel = nodes.single_gpu(tmp_path, cdevs=cdevs)
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    assert (read(kernel).is_on_vfio, read(kernel).vfio_cdev) == (False, None)
    kernel.write(f"bus/pci/devices/{GPU}/driver_override", "vfio-pci")
    kernel.write("bus/pci/drivers/nvidia/unbind", GPU)
    assert read(kernel).binding == Binding(driver=None, override="vfio-pci")
    kernel.write("bus/pci/drivers/vfio-pci/bind", GPU)
    assert read(kernel).binding == Binding(driver="vfio-pci", override="vfio-pci")
    assert (read(kernel).is_on_vfio, read(kernel).vfio_cdev) == (True, cdev)


# What the kernel does not know


def test_what_is_unknown_is_none(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    for attribute in ("power_state", "reset_method", "revision"):
        say(kernel, attribute, None)
    say(kernel, "resource", "0x0 0x0 0x0\n")
    found = read(kernel)
    assert (found.power_state, found.reset_methods, found.bars) == (None, (), ())
    assert found.revision == 0


@pytest.mark.parametrize("text", ["-1\n", "", "-2147483648\n", "none\n", "٣\n"])
def test_a_numa_node_that_is_no_count_is_none(text: str, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "numa_node", text)
    assert read(kernel).numa_node is None


def test_a_function_outside_the_iommu_has_no_group(tmp_path: Path) -> None:
    assert read(nodes.no_iommu(tmp_path)).iommu_group is None


@pytest.mark.parametrize(
    ("speed", "width", "link"),
    [
        ("2.5 GT/s PCIe", "1", (2.5, 1)),
        ("64.0 GT/s PCIe", "16", (64.0, 16)),
        ("Unknown", "255", (None, None)),
        ("Unknown speed", "0", (None, None)),
        (ESCAPE, "-4", (None, None)),
    ],
)
def test_a_link_has_its_speed_and_width_or_none(
    speed: str, width: str, link: tuple[float | None, int | None], tmp_path: Path
) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "current_link_speed", f"{speed}\n")
    say(kernel, "current_link_width", f"{width}\n")
    found = read(kernel).link
    assert found == Link(link[0], link[1], 32.0, 16)


def test_what_is_not_pci_express_has_no_link(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    kernel.add_device(GPU, vendor=0x10DE, device=1, class_code=0x030000, pcie=False)
    assert read(kernel).link is None


@pytest.mark.parametrize("text", ["(null)\n", "\n", ""])
def test_an_unset_override_is_none(text: str, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "driver_override", text)
    assert read(kernel).binding.override is None


# What no function says


NO_NUMBERS = (
    "10de\n", "0x\n", "0xZZ\n", "-0x1\n", "0x10de\n\n", ESCAPE, "0x" + "1" * 17, "0x\uff11\n"
)  # fmt: skip


@pytest.mark.parametrize("attribute", ["vendor", "device", "class", "subsystem_vendor", "revision"])
def test_an_id_that_is_no_number_makes_it_unreadable(attribute: str, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    for text in NO_NUMBERS:
        say(kernel, attribute, text)
        with pytest.raises(UnreadableFunctionError, match=f"{attribute} is ") as caught:
            read(kernel)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("attribute", ["vendor", "device", "class", "subsystem_device", "config"])
def test_an_attribute_that_answers_with_an_error_makes_it_unreadable(
    attribute: str, tmp_path: Path
) -> None:
    kernel = nodes.single_gpu(tmp_path)
    kernel.unreadable(GPU, attribute)
    with pytest.raises(UnreadableFunctionError, match=r"cannot read PCI function .*0000:01:00\.0"):
        read(kernel)


@pytest.mark.parametrize("text", [ESCAPE, "a b", "../../nvidia", "x" * 65, "naïve", "-rf"])
def test_an_override_that_is_no_drivers_name_makes_it_unreadable(text: str, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "driver_override", f"{text}\n")
    with pytest.raises(UnreadableFunctionError, match="driver_override is ") as caught:
        read(kernel)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("number", ["-1", "x", "\uff11", "1 2", "1\n"])
def test_a_group_that_is_no_number_makes_it_unreadable(number: str, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    point(kernel, "iommu_group", f"../../../../kernel/iommu_groups/{number}")
    with pytest.raises(UnreadableFunctionError, match="iommu_group is "):
        read(kernel)


@pytest.mark.parametrize(
    "target",
    [
        "../../../devices/0000:01:00.0",
        "../../../devices/pci0000:00/../0000:01:00.0",
        "../../../devices/pci0000:00/evil/0000:01:00.0",
        "/0000:01:00.0",
    ],
)
def test_a_place_that_is_not_behind_bridges_makes_it_unreadable(
    target: str, tmp_path: Path
) -> None:
    kernel = nodes.single_gpu(tmp_path)
    link = kernel.root / "bus/pci/devices" / GPU
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(UnreadableFunctionError):
        functions.place(kernel, GPU)


@pytest.mark.parametrize("name", ["", "..", "../../kernel", "0000:01:00", "0000:01:00.0\n", ESCAPE])
def test_a_name_that_is_no_address_is_never_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFunctionError) as caught:
        functions.place(nodes.single_gpu(tmp_path), name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("resource", ["0x0 0x1\n", "a b c d\n", ESCAPE, "0x0 0x1 zzz\n"])
def test_windows_that_are_no_numbers_make_it_unreadable(resource: str, tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "resource", resource)
    with pytest.raises(UnreadableFunctionError):
        read(kernel)


def test_reset_methods_that_are_no_names_are_left_out(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "reset_method", f"flr {ESCAPE} bus ../x\n")
    assert read(kernel).reset_methods == ("flr", "bus")


def test_a_parent_that_is_no_address_makes_it_unreadable(tmp_path: Path) -> None:
    kernel = nodes.sriov(tmp_path, vfs=1)
    point(kernel, "physfn", "../evil", "0000:01:00.1")
    with pytest.raises(UnreadableFunctionError):
        read(kernel, "0000:01:00.1")


def test_a_virtual_function_that_is_no_address_makes_its_parent_unreadable(tmp_path: Path) -> None:
    kernel = nodes.sriov(tmp_path, vfs=1)
    point(kernel, "virtfn0", "../evil")
    with pytest.raises(UnreadableFunctionError, match="cannot read the virtual functions of"):
        read(kernel)


def test_a_function_that_vanished_since_it_was_placed_is_unreadable(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    where = functions.place(kernel, GPU)
    kernel.unplug(GPU)
    with pytest.raises(UnreadableFunctionError, match="No such file or directory"):
        functions.details(kernel, where, PciIds(), override_of(kernel, where))


# Whatever it says

values = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"0x10de\n", b"0x030200\n", b"(null)\n", b"-1\n", b"16.0 GT/s PCIe\n"]),
    st.integers().map(lambda n: f"{n:#x}\n".encode()),
    st.sampled_from([b"9" * 5000, b"0x" + b"f" * 5000, b"\x1b]0;x\x07", b"../../..\n", b"\0" * 64]),
)
attributes = st.dictionaries(
    st.sampled_from(["vendor", "device", "class", *functions._DETAILS, "config"]), values
)
components = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20
).filter(lambda text: text not in {".", ".."})
links = st.dictionaries(st.sampled_from(["driver", "iommu_group", "physfn"]), components)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> FakeKernel:
    return nodes.single_gpu(tmp_path_factory.mktemp("honest"))


@given(said=attributes, leads=links)
@settings(max_examples=60, deadline=None)
def test_whatever_a_function_says_it_is_clean_or_unreadable(
    honest: FakeKernel, said: dict[str, bytes], leads: dict[str, str]
) -> None:
    home = (honest.root / "bus/pci/devices" / GPU).resolve()
    with tempfile.TemporaryDirectory() as name:
        saved = shutil.copytree(home, Path(name) / "saved", symlinks=True)
        for attribute, content in said.items():
            say(honest, attribute, content)
        for link, target in leads.items():
            point(honest, link, f"../{target}")
        assert_clean_or_unreadable(honest)
        shutil.rmtree(home)
        shutil.copytree(saved, home, symlinks=True)


def assert_clean_or_unreadable(kernel: FakeKernel) -> None:
    try:
        found = read(kernel)
    except UnreadableFunctionError as error:
        assert str(error).isprintable()  # noqa: PT017 - one way of two
        return
    names = [found.binding.driver, found.binding.override, found.power_state, found.vfio_cdev]
    assert all(NAME.fullmatch(n) for n in (*names, *found.reset_methods) if n is not None)
    counts = [found.numa_node, found.iommu_group, found.revision, found.vendor]
    assert all(n >= 0 for n in counts if n is not None)
    assert found.label.isprintable()


# What its driver adds


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("68702699520\n", 68_702_699_520),
        (None, None),
        ("0\n", None),
        ("-1\n", None),
        ("many\n", None),
        ("9" * 30, None),
        (b"\xff" * 4096, None),
    ],
)
def test_amds_driver_says_how_much_memory_a_gpu_has(
    tmp_path: Path, content: bytes | str | None, expected: int | None
) -> None:
    kernel = nodes.three_vendors(tmp_path)
    say(kernel, "mem_info_vram_total", content, nodes.AMD_GPU)
    assert read(kernel, nodes.AMD_GPU).memory_bytes == expected


def test_no_other_drivers_word_on_memory_is_taken(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    say(kernel, "mem_info_vram_total", "68702699520\n")
    assert read(kernel).memory_bytes is None


def test_an_amd_gpus_memory_is_unknown_where_its_driver_answers_with_an_error(
    tmp_path: Path,
) -> None:
    kernel = nodes.three_vendors(tmp_path)
    kernel.unreadable(nodes.AMD_GPU, "mem_info_vram_total")
    assert read(kernel, nodes.AMD_GPU).memory_bytes is None
