"""Which devices go together is a matter of what they share, and nonsense gets no advice."""

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.model.kubernetes import Device
from kata_gpu.plan.kubernetes.preference import prefer
from tests.kubelet.plugin_agent import gpu, gpus

NODE = gpus(16)  # four to a switch, two switches to a NUMA node


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(gpu(number).id for number in numbers)


def available(*numbers: int) -> list[Device]:
    return [gpu(number) for number in numbers]


def test_four_are_the_four_of_one_switch() -> None:
    assert prefer(NODE, (), 4) == ids(0, 1, 2, 3)
    assert prefer(available(1, 2, 3, 4, 5, 6, 7, 9), (), 4) == ids(4, 5, 6, 7)


def test_eight_are_those_of_one_numa_node() -> None:
    assert prefer(available(*range(2, 16)), (), 8) == ids(*range(8, 16))


def test_two_that_share_no_switch_share_a_numa_node() -> None:
    assert prefer(available(0, 4, 8), (), 2) == ids(0, 4)


def test_numa_counts_where_nothing_is_known_of_bridges() -> None:
    bare = [replace(device, path=(), root="") for device in available(0, 8, 9)]
    assert prefer(bare, (), 2) == ids(8, 9)


def test_one_is_the_odd_one_so_that_boards_stay_whole() -> None:
    assert prefer(available(0, 1, 2, 3, 4, 8, 9), (), 1) == ids(4)
    assert prefer(available(0, 1, 2, 3, 5), (), 1) == ids(5)


def test_a_pair_is_taken_from_the_board_that_is_broken_already() -> None:
    assert prefer(available(0, 1, 2, 3, 4, 5), (), 2) == ids(4, 5)


def test_what_must_be_in_it_draws_its_neighbours() -> None:
    assert prefer(NODE, ids(6), 2) == ids(4, 6)
    assert prefer(NODE, ids(6, 13), 3) == ids(4, 6, 13)


def test_all_of_them_are_all_of_them() -> None:
    assert prefer(NODE, (), 16) == ids(*range(16))


def test_a_device_without_any_place_is_near_to_none() -> None:
    nowhere = replace(gpu(0), path=(), root="", numa_node=None)
    assert prefer([nowhere, gpu(1), gpu(2)], (), 2) == ids(1, 2)
    assert prefer([nowhere], (), 1) == ids(0)


def test_nonsense_gets_no_advice() -> None:
    assert prefer([], (), 1) == ()
    assert prefer(NODE, (), 0) == ()
    assert prefer(NODE, (), -1) == ()
    assert prefer(NODE, (), 17) == ()
    assert prefer(NODE, ids(1, 2), 1) == ()
    assert prefer(NODE, ("unknown",), 1) == ()


@pytest.mark.parametrize(("count", "size"), [(16, 8), (128, 64), (256, 128)])
def test_many_devices_are_chosen_from_in_time(count: int, size: int) -> None:
    many = gpus(count)
    started = time.process_time()
    assert len(set(prefer(many, (), size))) == size
    assert time.process_time() - started < 2


def test_of_too_many_kubelet_may_choose_as_it_likes() -> None:
    many = [replace(gpu(0), id=str(number)) for number in range(5000)]
    assert prefer(many, (), 8) == ()


def test_of_many_a_whole_board_is_found_too() -> None:
    left = [gpu(number) for number in range(64) if number % 4 or number == 40]
    assert prefer(left, (), 4) == ids(40, 41, 42, 43)


DEVICES = st.lists(
    st.builds(
        lambda number, node, depth: replace(
            gpu(number), numa_node=node, path=gpu(number).path[:depth]
        ),
        st.integers(0, 40),
        st.sampled_from([None, 0, 1]),
        st.integers(0, 2),
    ),
    max_size=24,
)


@settings(deadline=None)
@given(
    DEVICES,
    st.lists(st.integers(0, 41).map(lambda number: gpu(number).id), max_size=5),
    st.integers(-2, 26),
    st.randoms(use_true_random=False),
)
def test_advice_is_as_many_of_the_available_with_all_that_must_be(
    devices: list[Device], required: list[str], size: int, chance: random.Random
) -> None:
    chosen = prefer(devices, required, size)
    known = {device.id for device in devices}
    if chosen:
        assert len(set(chosen)) == len(chosen) == size
        assert set(required) <= set(chosen) <= known
    else:
        assert size < max(1, len(set(required))) or size > len(known) or set(required) - known
    unique = list({device.id: device for device in devices}.values())
    mixed = chance.sample(unique, len(unique))
    assert prefer(mixed, list(reversed(required)), size) == chosen
