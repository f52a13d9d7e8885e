"""How units are formed: from groups, by pools in order, with their limits."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from kata_gpu.model.blueprint import Blueprint, Mode, Pool, Selector
from kata_gpu.model.inventory import Inventory, Problem
from kata_gpu.model.kubernetes import BindWhen, Door
from kata_gpu.model.ledger import Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Binding, PciFunction, PhysicalFunction, VirtualFunction
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.unit import Unit
from kata_gpu.plan import units
from tests.values import (
    AUDIO_CLASS,
    BRIDGE_CLASS,
    NETWORK_CLASS,
    SWITCH_CLASS,
    address,
    blueprint_of,
    function,
    inventory_of,
    pool,
)

FIRST, SECOND, THIRD = (function(f"0{n}:00.0", group=n) for n in (1, 2, 3))
NETWORK = function("01:00.1", NETWORK_CLASS, group=1)


def at(where: str) -> Selector:
    return Selector(address=address(where))


def form(
    blueprint: Blueprint, inventory: Inventory, ledger: Ledger
) -> tuple[tuple[Unit, ...], tuple[Finding, ...]]:
    formed = units.form(blueprint, inventory, ledger)
    return formed.units, formed.findings


def ids(formed: Sequence[Unit], pool_name: str = "gpus") -> list[str]:
    return [unit.id.removeprefix("0000:") for unit in formed if unit.pool == pool_name]


def ledger_of(*functions: PciFunction) -> Ledger:
    return Ledger(
        entries=tuple(
            LedgerEntry(
                unit=str(f.address),
                stage=Stage.BOUND,
                functions=(
                    OriginalFunction(
                        address=f.address,
                        vendor=f.vendor,
                        device=f.identity.device,
                        original=Binding("nvidia", None),
                    ),
                ),
            )
            for f in functions
        )
    )


# Identity


def test_a_unit_is_called_after_its_gpu_though_another_function_comes_first() -> None:
    sound = function("01:00.0", AUDIO_CLASS)
    gpu = function("01:00.1")
    formed, _ = form(
        blueprint_of(pool("gpus", at("01:00.0"), at("01:00.1"))), inventory_of(sound, gpu), Ledger()
    )
    assert ids(formed) == ["01:00.1"]
    assert formed[0].functions == (sound.address, gpu.address)


def test_of_two_gpus_the_lower_address_gives_the_name() -> None:
    formed, _ = form(
        blueprint_of(pool("gpus")),
        inventory_of(function("02:02.0"), function("02:01.0")),
        Ledger(),
    )
    assert ids(formed) == ["02:01.0"]


def test_without_a_gpu_the_lowest_selected_function_gives_the_name() -> None:
    formed, _ = form(blueprint_of(pool("gpus", at("01:00.1"))), inventory_of(NETWORK), Ledger())
    assert ids(formed) == ["01:00.1"]


def test_units_come_by_address_whatever_is_ours() -> None:
    formed, _ = form(
        blueprint_of(pool("gpus")), inventory_of(THIRD, FIRST, SECOND), ledger_of(THIRD)
    )
    assert ids(formed) == ["01:00.0", "02:00.0", "03:00.0"]


def test_a_function_without_a_group_is_a_unit_that_cannot_go() -> None:
    formed, _ = form(
        blueprint_of(pool("gpus")), inventory_of(replace(FIRST, iommu_group=None)), Ledger()
    )
    assert formed[0].groups == ()
    assert not formed[0].verdict.is_viable


# Selection


def test_what_no_pool_selects_is_no_unit() -> None:
    formed, findings = form(blueprint_of(), inventory_of(FIRST), Ledger())
    assert (formed, findings) == ((), ())


def test_a_pool_by_vendor_selects_gpus_and_not_the_vendors_other_functions() -> None:
    usb, switch = function("05:00.0", 0x0C0330, group=5), function("06:00.0", SWITCH_CLASS, group=6)
    formed, _ = form(blueprint_of(pool("gpus")), inventory_of(FIRST, usb, switch), Ledger())
    assert ids(formed) == ["01:00.0"]


def test_no_pool_selects_a_bridge() -> None:
    bridge = function("01:00.0", BRIDGE_CLASS)
    formed, _ = form(blueprint_of(pool("gpus", at("01:00.0"))), inventory_of(bridge), Ledger())
    assert formed == ()


def test_the_first_pool_that_selects_wins() -> None:
    pools = pool("mine", at("02:00.0"), mode=Mode.IGNORE), pool("gpus")
    formed, _ = form(blueprint_of(*pools), inventory_of(FIRST, SECOND), Ledger())
    assert ids(formed) == ["01:00.0"]
    assert ids(formed, "mine") == ["02:00.0"]


def test_a_stranger_that_a_passthrough_pool_names_is_no_obstacle() -> None:
    pools = pool("gpus"), pool("network", at("01:00.1"))
    formed, _ = form(blueprint_of(*pools), inventory_of(FIRST, NETWORK), Ledger())
    assert formed[0].verdict.is_viable


@pytest.mark.parametrize("mode", [Mode.IGNORE, Mode.HOST])
def test_a_stranger_that_another_pool_names_is_an_obstacle_still(mode: Mode) -> None:
    pools = pool("gpus"), pool("network", at("01:00.1"), mode=mode)
    formed, findings = form(blueprint_of(*pools), inventory_of(FIRST, NETWORK), Ledger())
    assert formed == ()
    assert [f.subject for f in findings] == ["0000:01:00.0"]
    assert str(NETWORK.address) in findings[0].reason


# Virtual functions

PARENT = replace(FIRST, sriov=PhysicalFunction(total_vfs=4, active_vfs=2))
SLICES = tuple(
    replace(function(f"01:00.{n}", group=9 + n), sriov=VirtualFunction(parent=PARENT.address))
    for n in (1, 2)
)
ASKING = replace(pool("slices", at("01:00.0")), virtual_functions=2)


def test_the_virtual_functions_that_a_pool_asks_for_are_its_units_and_the_parent_is_none() -> None:
    formed, _ = form(blueprint_of(ASKING, pool("gpus")), inventory_of(PARENT, *SLICES), Ledger())
    assert ids(formed, "slices") == ["01:00.1", "01:00.2"]
    assert ids(formed) == []
    assert all(unit.verdict.is_viable for unit in formed)


def test_a_pool_before_that_names_one_does_not_get_it() -> None:
    pools = pool("gpus", at("01:00.1")), ASKING
    formed, _ = form(blueprint_of(*pools), inventory_of(PARENT, *SLICES), Ledger())
    assert ids(formed) == []
    assert ids(formed, "slices") == ["01:00.1", "01:00.2"]


@pytest.mark.parametrize("mode", list(Mode))
def test_where_the_parents_pool_asks_for_none_they_are_functions_as_others(mode: Mode) -> None:
    pools = pool("parent", at("01:00.0"), mode=mode), replace(pool("gpus"), virtual_functions=2)
    formed, _ = form(blueprint_of(*pools), inventory_of(PARENT, *SLICES), Ledger())
    assert ids(formed, "parent") == ["01:00.0"]
    assert ids(formed) == ["01:00.1", "01:00.2"]


def test_a_limit_counts_virtual_functions_and_the_rest_falls_to_nobody() -> None:
    limited = replace(ASKING, max_units=1, min_units=2)
    formed, findings = form(
        blueprint_of(limited, pool("gpus")), inventory_of(PARENT, *SLICES), Ledger()
    )
    assert ids(formed, "slices") == ["01:00.1"]
    assert ids(formed) == []
    assert [f.reason for f in findings] == ["it selects 1 of at least 2 units"]


def test_of_a_parent_that_cannot_be_read_nobody_gets_a_virtual_function() -> None:
    unread = Problem(subject=str(PARENT.address), reason="Input/output error")
    inventory = replace(inventory_of(*SLICES), problems=(unread,))
    formed, _ = form(blueprint_of(ASKING, pool("rest", mode=Mode.HOST)), inventory, Ledger())
    assert formed == ()


def test_a_whole_function_never_falls_through_to_a_pool_that_asks_for_virtual_ones() -> None:
    pools = pool("gpus", max_units=1), replace(pool("slices"), virtual_functions=2)
    formed, _ = form(blueprint_of(*pools), inventory_of(FIRST, SECOND), Ledger())
    assert ids(formed) == ["01:00.0"]
    assert ids(formed, "slices") == []


# Limits


def test_a_limit_takes_the_lowest_addresses() -> None:
    formed, _ = form(
        blueprint_of(pool("gpus", max_units=2)), inventory_of(FIRST, SECOND, THIRD), Ledger()
    )
    assert ids(formed) == ["01:00.0", "02:00.0"]


def test_a_limit_counts_what_is_ours_first() -> None:
    formed, _ = form(
        blueprint_of(pool("gpus", max_units=2)),
        inventory_of(FIRST, SECOND, THIRD),
        ledger_of(THIRD),
    )
    assert ids(formed) == ["01:00.0", "03:00.0"]


def test_a_limit_counts_groups_and_not_functions() -> None:
    formed, _ = form(
        blueprint_of(pool("gpus", max_units=2)),
        inventory_of(function("02:01.0", group=7), function("02:02.0", group=7), THIRD),
        Ledger(),
    )
    assert ids(formed) == ["02:01.0", "03:00.0"]


def test_what_a_limit_leaves_falls_to_the_next_pool() -> None:
    pools = pool("gpus", max_units=1), pool("rest", mode=Mode.HOST)
    formed, _ = form(blueprint_of(*pools), inventory_of(FIRST, SECOND), Ledger())
    assert ids(formed, "rest") == ["02:00.0"]


def test_a_pool_for_nothing_selects_nothing() -> None:
    formed, _ = form(blueprint_of(pool("gpus", max_units=0)), inventory_of(FIRST), Ledger())
    assert formed == ()


def test_a_group_that_overflows_whole_is_no_conflict() -> None:
    pair = function("02:01.0", group=7), function("02:02.0", group=7)
    pools = pool("gpus", max_units=1), pool("rest", mode=Mode.HOST)
    formed, findings = form(blueprint_of(*pools), inventory_of(FIRST, *pair), Ledger())
    assert ids(formed, "rest") == ["02:01.0"]
    assert findings == ()


@pytest.mark.parametrize(
    "limited",
    [
        pool("limited", mode=Mode.HOST, max_units=1),
        pool("limited", mode=Mode.IGNORE, max_units=1),
        replace(pool("limited", max_units=1), door=Door.DRA, bind=BindWhen.ON_CLAIM),
    ],
    ids=["host", "ignore", "on claim"],
)
def test_what_the_next_pool_took_is_not_given_back_for_a_limit(limited: Pool) -> None:
    pools = blueprint_of(limited, pool("gpus"))
    before, _ = form(pools, inventory_of(FIRST, SECOND), Ledger())
    after, _ = form(pools, inventory_of(FIRST, SECOND), ledger_of(SECOND))
    assert ids(before) == ids(after) == ["02:00.0"]


def test_what_a_claim_took_of_a_limited_pool_stays_its() -> None:
    limited = replace(pool("limited", max_units=1), door=Door.DRA, bind=BindWhen.ON_CLAIM)
    pools = blueprint_of(limited, pool("rest", mode=Mode.HOST))
    formed, _ = form(pools, inventory_of(FIRST, SECOND), ledger_of(SECOND))
    assert ids(formed, "limited") == ["02:00.0"]


@pytest.mark.parametrize(("wanted", "warnings"), [(1, 0), (2, 0), (3, 1)])
def test_too_few_units_are_a_warning(wanted: int, warnings: int) -> None:
    _, findings = form(
        blueprint_of(pool("gpus", min_units=wanted)), inventory_of(FIRST, SECOND), Ledger()
    )
    assert [f.severity for f in findings] == [Severity.WARNING] * warnings


# Refusals


@pytest.mark.parametrize(
    "forbidden",
    [
        function("09:00.0", 0x010802, group=9),
        replace(function("09:00.0", 0x030000, group=9), is_boot_display=True),
    ],
    ids=["storage", "boot display"],
)
def test_a_pool_that_selects_what_must_stay_is_refused_whole(forbidden: PciFunction) -> None:
    greedy = pool("gpus", at("01:00.0"), at("09:00.0"))
    modest = pool("others", at("02:00.0"))
    formed = units.form(
        blueprint_of(greedy, modest), inventory_of(FIRST, SECOND, forbidden), Ledger()
    )
    assert formed.refused_pools == {"gpus"}
    assert ids(formed.units, "others") == ["02:00.0"]
    assert [f.subject for f in formed.findings] == ["pool gpus"]
    assert "0000:09:00.0" in formed.findings[0].reason


@pytest.mark.parametrize("mode", [Mode.HOST, Mode.IGNORE])
def test_what_must_stay_may_be_told_to_stay(mode: Mode) -> None:
    console = replace(function("09:00.0", 0x030000, group=9), is_boot_display=True)
    _, findings = form(blueprint_of(pool("gpus", mode=mode)), inventory_of(console), Ledger())
    assert findings == ()


def test_an_earlier_pool_saves_a_greedy_one() -> None:
    console = replace(function("09:00.0", 0x030000, group=9), is_boot_display=True)
    pools = pool("console", at("09:00.0"), mode=Mode.IGNORE), pool("gpus")
    formed, findings = form(blueprint_of(*pools), inventory_of(FIRST, console), Ledger())
    assert ids(formed) == ["01:00.0"]
    assert findings == ()


def test_gpus_of_one_group_in_pools_of_two_modes_are_refused() -> None:
    pair = function("02:01.0"), function("02:02.0")
    pools = pool("gpus", at("02:01.0")), pool("host", at("02:02.0"), mode=Mode.HOST)
    formed, findings = form(blueprint_of(*pools), inventory_of(*pair), Ledger())
    assert formed == ()
    assert [(f.severity, f.subject) for f in findings] == [(Severity.REFUSED, "0000:02:01.0")]


def test_gpus_of_one_group_in_two_pools_of_one_mode_go_by_the_first() -> None:
    pair = function("02:01.0"), function("02:02.0")
    pools = pool("gpus", at("02:01.0")), pool("others", at("02:02.0"))
    formed, findings = form(blueprint_of(*pools), inventory_of(*pair), Ledger())
    assert ids(formed) == ["02:01.0"]
    assert findings == ()
