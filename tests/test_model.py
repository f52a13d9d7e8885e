"""The values: addresses, selectors, pools, the ledger, and a plan's text."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from kata_gpu.model.blueprint import Mode, Selector
from kata_gpu.model.ledger import Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Binding, Identity, PciAddress
from kata_gpu.model.plan import (
    Finding,
    LoadModule,
    MakeVirtuals,
    Move,
    MoveGroup,
    Plan,
    RemoveFile,
    RemoveVirtuals,
    Severity,
    WriteFile,
)
from kata_gpu.plan import review
from tests.values import (
    AUDIO_CLASS,
    BRIDGE_CLASS,
    NETWORK_CLASS,
    SWITCH_CLASS,
    address,
    blueprint_of,
    function,
    pool,
)

addresses = st.builds(
    PciAddress,
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)
GPU = address("01:00.0")
VFIO = Binding("vfio-pci", "vfio-pci")
NVIDIA = Binding("nvidia", None)


def identity(class_code: int, *, vendor: int = 0x10DE) -> Identity:
    return Identity(address=GPU, vendor=vendor, device=0x2330, class_code=class_code)


# Addresses


@given(addresses)
@effort(max_examples=60, deadline=None)
def test_an_address_is_read_as_it_is_printed(there: PciAddress) -> None:
    assert PciAddress.parse(str(there)) == there


@given(st.from_regex(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True))
@effort(max_examples=60, deadline=None)
def test_an_address_has_one_spelling(spelling: str) -> None:
    try:
        there = PciAddress.parse(spelling)
    except ValueError:
        return
    assert str(there) == spelling


@given(st.text(alphabet="0123456789abcdefABCDEF:.\n ٣", max_size=16))
@effort(max_examples=60, deadline=None)
def test_what_the_kernel_would_not_print_is_no_address(spelling: str) -> None:
    try:
        there = PciAddress.parse(spelling)
    except ValueError as error:
        assert str(error).startswith("not a PCI address")  # noqa: PT017 - one way of two
    else:
        assert str(there) == spelling


@pytest.mark.parametrize(
    "spelling",
    [
        "", "01:00.0", "0000:01:00", "0000:01:00.8", "0000:01:20.0", "0000:01:00.0\n",
        " 0000:01:00.0", "0000:01:00.0/..", "0000:0A:00.0", "00000000:01:00.0",
        "000000000:01:00.0", "0000:01:00.0\0",
    ],
)  # fmt: skip
def test_another_spelling_is_refused(spelling: str) -> None:
    with pytest.raises(ValueError, match="not a PCI address"):
        PciAddress.parse(spelling)


def test_a_domain_behind_a_vmd_controller_has_more_digits() -> None:
    assert PciAddress.parse("10000:e0:06.0").domain == 0x10000


@given(addresses, addresses)
@effort(max_examples=60, deadline=None)
def test_addresses_sort_by_domain_bus_device_and_function(one: PciAddress, two: PciAddress) -> None:
    def key(a: PciAddress) -> tuple[int, int, int, int]:
        return a.domain, a.bus, a.device, a.function

    assert (one < two) == (key(one) < key(two))


def test_the_functions_of_a_card_share_a_slot() -> None:
    assert address("01:00.0").slot == address("01:00.7").slot
    assert address("01:00.0").slot != address("01:01.0").slot


# Kinds of function


@pytest.mark.parametrize(
    ("class_code", "kinds"),
    [
        (0x030000, {"gpu"}),
        (0x030200, {"gpu"}),
        (0x120000, {"gpu"}),
        (SWITCH_CLASS, {"nvswitch"}),
        (0x060000, {"bridge"}),
        (0x060400, {"bridge"}),
        (0x060401, {"bridge"}),
        (0x060900, set()),
        (AUDIO_CLASS, set()),
    ],
)
def test_a_class_says_what_a_function_is(class_code: int, kinds: set[str]) -> None:
    what = identity(class_code)
    found = {"gpu": what.is_gpu, "nvswitch": what.is_nvswitch, "bridge": what.is_bridge}
    assert {kind for kind, holds in found.items() if holds} == kinds


def test_another_vendors_other_bridge_is_no_nvswitch() -> None:
    assert not identity(SWITCH_CLASS, vendor=0x8086).is_nvswitch


@pytest.mark.parametrize(
    ("vendor_name", "product_name", "label"),
    [
        ("NVIDIA", "GH100", "NVIDIA GH100 [10de:2330]"),
        ("NVIDIA", None, "NVIDIA [10de:2330]"),
        (None, None, "[10de:2330]"),
    ],
)
def test_a_label_has_the_names_that_are_known(
    vendor_name: str | None, product_name: str | None, label: str
) -> None:
    named = replace(function("01:00.0"), vendor_name=vendor_name, product_name=product_name)
    assert named.label == label


# Selectors


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ({"vendor": 0x10DE}, True),
        ({"vendor": 0x1002}, False),
        ({"device": 0x2330}, True),
        ({"device": 0x2331}, False),
        ({"class_prefix": "03"}, True),
        ({"class_prefix": "0302"}, True),
        ({"class_prefix": "030200"}, True),
        ({"class_prefix": "0300"}, False),
        ({"address": GPU}, True),
        ({"address": address("01:00.1")}, False),
        ({"numa_node": 0}, True),
        ({"numa_node": 1}, False),
        ({"product": "*H100*"}, True),
        ({"product": "H100"}, False),
        ({"product": "*h100*"}, False),
        ({"product": "GH100 [[]H100 *]"}, True),
        ({"vendor": 0x10DE, "numa_node": 0, "product": "*"}, True),
        ({"vendor": 0x10DE, "numa_node": 1, "product": "*"}, False),
    ],
)
def test_a_selector_matches_when_every_condition_holds(
    conditions: dict[str, Any],
    matches: bool,
) -> None:
    gpu = function("01:00.0", product_name="GH100 [H100 SXM5 80GB]")
    assert Selector(**conditions).matches(gpu) is matches


def test_a_condition_on_what_is_unknown_does_not_hold() -> None:
    unknown = function("01:00.0", numa_node=None, product_name=None)
    assert not Selector(numa_node=0).matches(unknown)
    assert not Selector(product="*H100*").matches(unknown)


@pytest.mark.parametrize("class_code", [AUDIO_CLASS, SWITCH_CLASS, NETWORK_CLASS])
@pytest.mark.parametrize(
    ("conditions", "selects"),
    [
        ({"vendor": 0x10DE}, False),
        ({"numa_node": 0}, False),
        ({"product": "*"}, False),
        ({"vendor": 0x10DE, "device": 0x2330}, True),
        ({"address": GPU}, True),
    ],
)
def test_only_a_specific_selector_is_about_more_than_gpus(
    class_code: int,
    conditions: dict[str, Any],
    selects: bool,
) -> None:
    other = function("01:00.0", class_code, product_name="x")
    assert Selector(**conditions).matches(other) is selects


@given(
    st.builds(
        Selector,
        vendor=st.sampled_from([None, 0x10DE, 0x1002]),
        device=st.sampled_from([None, 0x2330, 0x1]),
        class_prefix=st.sampled_from([None, "03", "0302", "04"]),
        address=st.sampled_from([None, GPU]),
        numa_node=st.sampled_from([None, 0, 1]),
    ),
    st.sampled_from([0x030200, AUDIO_CLASS, SWITCH_CLASS]),
)
@effort(max_examples=60, deadline=None)
def test_what_matches_could_match(selector: Selector, class_code: int) -> None:
    gpu = function("01:00.0", class_code)
    assert selector.could_match(gpu.identity) or not selector.matches(gpu)


def test_a_pool_never_selects_a_bridge() -> None:
    everything = pool("all", Selector(address=GPU), Selector(class_prefix="06"))
    assert not everything.selects(function("01:00.0", BRIDGE_CLASS))


def test_a_blueprint_asks_its_pools_in_order() -> None:
    pools = pool("first", Selector(address=GPU)), pool("second")
    chosen = blueprint_of(*pools)
    found = [chosen.pool_for(function(where)) for where in ("01:00.0", "02:00.0")]
    assert found == list(pools)
    assert chosen.pool_for(function("01:00.1", AUDIO_CLASS)) is None


def test_a_blueprint_could_select_what_any_mode_may() -> None:
    ignoring = blueprint_of(pool("mine", Selector(class_prefix="02"), mode=Mode.IGNORE))
    assert ignoring.could_select(identity(NETWORK_CLASS))
    assert not ignoring.could_select(identity(0x030200))


# The ledger


def entry(unit: str, stage: Stage = Stage.BOUND) -> LedgerEntry:
    original = OriginalFunction(
        address=address(unit), vendor=0x10DE, device=0x2330, original=NVIDIA
    )
    return LedgerEntry(unit=str(address(unit)), stage=stage, functions=(original,))


def test_a_ledger_finds_units_and_the_owners_of_functions() -> None:
    ledger = Ledger(entries=(entry("01:00.0"),))
    assert ledger.entry("0000:01:00.0") == ledger.owner(GPU) == entry("01:00.0")
    assert ledger.entry("0000:02:00.0") is None
    assert ledger.owner(address("02:00.0")) is None


def test_a_newer_entry_replaces_the_older_one() -> None:
    ledger = Ledger(entries=(entry("01:00.0", Stage.BINDING),)).with_entry(entry("01:00.0"))
    assert ledger.entries == (entry("01:00.0"),)


@given(st.permutations(["01:00.0", "02:00.0", "03:00.0"]))
@effort(max_examples=60, deadline=None)
def test_a_ledger_is_the_same_in_whatever_order_it_grew(order: list[str]) -> None:
    ledger = Ledger()
    for unit in order:
        ledger = ledger.with_entry(entry(unit)).with_file(f"/run/{unit}")
    assert [e.unit for e in ledger.entries] == ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]
    assert ledger.files == ("/run/01:00.0", "/run/02:00.0", "/run/03:00.0")


def test_what_a_ledger_forgets_is_gone_and_nothing_else() -> None:
    ledger = Ledger(entries=(entry("01:00.0"), entry("02:00.0")), files=("/a", "/b"))
    assert ledger.without_entry("0000:01:00.0").entries == (entry("02:00.0"),)
    assert ledger.without_file("/a").files == ("/b",)


def test_to_forget_the_unknown_changes_nothing() -> None:
    ledger = Ledger(entries=(entry("01:00.0"),), files=("/a",))
    assert ledger.without_entry("0000:09:00.0").without_file("/z") == ledger
    assert ledger.with_file("/a") == ledger


# Plans as text


@pytest.mark.parametrize(
    ("before", "target", "line"),
    [
        (NVIDIA, VFIO, "0000:01:00.0  nvidia → vfio-pci"),
        (Binding(None, None), VFIO, "0000:01:00.0  no driver → vfio-pci"),
        (VFIO, Binding(None, None), "0000:01:00.0  vfio-pci → no driver"),
        (Binding("vfio-pci", None), VFIO, "0000:01:00.0  vfio-pci → vfio-pci (override vfio-pci)"),
    ],
)
def test_a_move_names_what_changes(before: Binding, target: Binding, line: str) -> None:
    assert str(Move(address=GPU, before=before, target=target)) == line


def test_every_kind_of_step_has_a_headline() -> None:
    move = Move(address=GPU, before=NVIDIA, target=VFIO)
    binding = MoveGroup(entry=entry("01:00.0"), groups=(7, 8), moves=(move,), reason="so")
    releasing = replace(binding, entry=entry("01:00.0", Stage.RELEASING), groups=())
    new = WriteFile(path="/a", staging="/", content="ä", is_new=True, reason="so")
    steps = (
        LoadModule(module="vfio-pci", units=("0000:01:00.0",), reason="so"),
        MakeVirtuals(parent=GPU, count=1, had_autoprobe=True, reason="so"),
        RemoveVirtuals(parent=GPU, reason="so"),
        binding,
        releasing,
        replace(binding, moves=()),
        new,
        replace(new, is_new=False),
        RemoveFile(path="/a", reason="so"),
    )
    assert [step.headline for step in steps] == [
        "load module vfio-pci",
        "make 1 virtual function of 0000:01:00.0",
        "remove the virtual functions of 0000:01:00.0",
        "bind unit 0000:01:00.0 (IOMMU groups 7, 8)",
        "release unit 0000:01:00.0",
        "verify unit 0000:01:00.0 (IOMMU groups 7, 8)",
        "write /a (2 bytes)",
        "replace /a (2 bytes)",
        "remove /a",
    ]


def test_findings_come_by_severity_and_only_refusals_are_refusals() -> None:
    findings = tuple(
        Finding(severity=severity, subject="node", reason=severity, remedy="fix it")
        for severity in (Severity.INFO, Severity.REFUSED, Severity.WARNING)
    )
    plan = Plan(blueprint="b", findings=findings)
    assert plan.refusals == (findings[1],)
    assert review.text(plan).splitlines() == [
        "blueprint b: nothing to do",
        "refused: node: refused; fix it",
        "warning: node: warning; fix it",
        "info: node: info; fix it",
    ]
