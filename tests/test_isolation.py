"""What shares a card or a reset moves together, though the IOMMU tells it apart."""

from dataclasses import replace
from typing import Final

from kata_gpu.model.isolation import all_bonded, bonds
from kata_gpu.model.pci import PciFunction, VirtualFunction
from tests.values import AUDIO_CLASS, NETWORK_CLASS, function

GPU: Final = function("01:00.0", group=1)
AUDIO: Final = function("01:00.1", AUDIO_CLASS, group=2)


def sets(*functions: PciFunction) -> set[tuple[int, ...]]:
    return set(bonds(functions).values())


def test_a_gpu_and_the_audio_of_its_slot_move_together() -> None:
    assert sets(GPU, AUDIO) == {(1, 2)}
    assert all_bonded(2, bonds([GPU, AUDIO])) == (1, 2)


def test_what_has_nothing_in_common_moves_alone() -> None:
    assert sets(GPU, function("02:00.0", group=2)) == set()
    assert all_bonded(1, {}) == (1,)


def test_two_gpus_of_one_slot_that_can_be_reset_alone_stay_apart() -> None:
    assert sets(GPU, function("01:00.1", group=2)) == set()


def test_a_network_function_in_the_slot_of_a_gpu_is_no_part_of_it() -> None:
    assert sets(GPU, function("01:00.1", NETWORK_CLASS, group=2)) == set()


def test_a_reset_of_the_bus_joins_all_that_is_there() -> None:
    helpless = replace(GPU, reset_methods=("bus",))
    neighbours = (function(f"01:0{slot}.0", group=10 + slot) for slot in (1, 2))
    assert sets(helpless, *neighbours, function("02:00.0", group=3)) == {(1, 11, 12)}


def test_one_that_can_do_better_than_the_bus_joins_nobody() -> None:
    able = replace(GPU, reset_methods=("flr", "bus"))
    assert sets(able, function("01:01.0", group=2)) == set()


def test_without_any_reset_it_reaches_nobody() -> None:
    assert sets(replace(GPU, reset_methods=()), function("01:01.0", group=2)) == set()


def test_virtual_functions_are_isolated_from_their_parent_by_design() -> None:
    parent = replace(GPU, reset_methods=("bus",))
    virtual = replace(AUDIO, sriov=VirtualFunction(parent=GPU.address))
    assert sets(parent, virtual) == set()


def test_what_is_in_one_group_already_needs_no_bond() -> None:
    assert sets(GPU, replace(AUDIO, iommu_group=1)) == set()


def test_bonds_reach_as_far_as_they_lead() -> None:
    second = replace(function("01:00.2", AUDIO_CLASS, group=3), reset_methods=())
    assert sets(GPU, AUDIO, second) == {(1, 2, 3)}
