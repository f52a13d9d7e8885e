"""Names from pci.ids: found where the distribution keeps it, None where it says nothing."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.host.pci_ids import PLACES, PciIds, opened

TEXT = (
    "# A comment\n"
    "1002  Advanced Micro Devices, Inc. [AMD/ATI]\n"
    "\t740f  Aldebaran/MI200 [Instinct MI210]\n"
    "10de  NVIDIA Corporation\n"
    "\t2330  GH100 [H100 SXM5 80GB]\n"
    "\t\t10de 16c1  A board\n"
    "\t2331  GH100 [H100 PCIe]\n"
    "8086  Intel Corporation\n"
    "\t56c0  ATS-M [Data Center GPU Flex 170]\n"
    "C 03  Display controller\n"
    "\t2332  not a product\n"
)


def database(text: str | bytes) -> PciIds:
    return PciIds(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("vendor", "device", "names"),
    [
        (0x10DE, 0x2330, ("NVIDIA Corporation", "GH100 [H100 SXM5 80GB]")),
        (0x10DE, 0x2331, ("NVIDIA Corporation", "GH100 [H100 PCIe]")),
        (0x10DE, 0x2222, ("NVIDIA Corporation", None)),
        (0x1002, 0x2330, ("Advanced Micro Devices, Inc. [AMD/ATI]", None)),
        (0x10DE, 0x740F, ("NVIDIA Corporation", None)),
        (0x10DE, 0x10DE, ("NVIDIA Corporation", None)),
        (0x8086, 0x2332, ("Intel Corporation", None)),
        (0x2330, 0x2330, (None, None)),
        (0xFFFF, 0xFFFF, (None, None)),
    ],
    ids=[
        "first product", "next product", "vendor without the product",
        "product of a later vendor", "product of an earlier vendor", "subsystem of a product",
        "line of a class", "product is no vendor", "nobody",
    ],
)  # fmt: skip
def test_a_product_has_the_names_of_its_line(
    vendor: int, device: int, names: tuple[str | None, str | None]
) -> None:
    assert database(TEXT).names(vendor, device) == names


def test_a_truncated_file_has_the_beginning_of_a_name_or_none() -> None:
    for length in range(len(TEXT)):
        vendor, product = database(TEXT[:length]).names(0x10DE, 0x2331)
        assert "NVIDIA Corporation".startswith(vendor or "")
        assert "GH100 [H100 PCIe]".startswith(product or "")


@pytest.mark.parametrize("code", ["\x1b", "\r", "\x00", "\x7f", "\x9b", "\u202e"])
def test_a_control_character_never_gets_into_a_name(code: str) -> None:
    vendor, product = database(f"\n10de  N{code}V\n\t2330  G{code}H\n").names(0x10DE, 0x2330)
    assert (vendor, product) == ("N?V", "G?H")


def test_a_name_may_have_letters_of_any_language() -> None:
    assert database("\n10de  Größe 日本\n").names(0x10DE, 1) == ("Größe 日本", None)


def test_what_is_no_text_is_replaced() -> None:
    assert database(b"\n10de  N\xff\xfeV\n").names(0x10DE, 1)[0] == "N\ufffd\ufffdV"


@given(st.binary(max_size=200), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_printable_names_or_none(data: bytes, vendor: int, device: int) -> None:
    block = b"\n%04x  " % vendor + data + b"\n\t%04x  " % device + data
    assert all(n is None or n.isprintable() for n in database(block).names(vendor, device))


@pytest.mark.parametrize("place", PLACES)
def test_the_database_is_found_where_distributions_keep_it(place: str, tmp_path: Path) -> None:
    file = tmp_path / place.removeprefix("/")
    file.parent.mkdir(parents=True)
    file.write_text(TEXT)
    with opened(tmp_path) as names:
        assert names.names(0x10DE, 0x2330)[0] == "NVIDIA Corporation"


def test_without_a_database_nothing_has_a_name(tmp_path: Path) -> None:
    with opened(tmp_path) as names:
        assert names.names(0x10DE, 0x2330) == (None, None)


def test_an_empty_database_is_passed_over(tmp_path: Path) -> None:
    empty, full = (tmp_path / place.removeprefix("/") for place in PLACES)
    for file, text in ((empty, ""), (full, TEXT)):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    with opened(tmp_path) as names:
        assert names.names(0x10DE, 0x2330)[1] == "GH100 [H100 SXM5 80GB]"
