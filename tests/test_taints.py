"""Taints do not flap, and what must not wait does not."""

import dataclasses
import itertools
import random
import time
from collections.abc import Iterator
from typing import Final

import pytest

from kata_gpu.model.kubernetes import Device, Effect, Taint
from kata_gpu.model.slices import Settled
from kata_gpu.plan.kubernetes import taints
from tests.kubernetes_devices import gpu, with_taint

CLEAN: Final = gpu(1)
FAILED: Final = with_taint(CLEAN)
QUARANTINED: Final = with_taint(CLEAN, key="kata-gpu.io/quarantined", value="")


def told(*history: tuple[float, Device]) -> Settled:
    """Return what is published after a device was, at each time, as it is there."""
    settled = Settled()
    for now_s, device in history:
        settled = taints.settle(settled, [device], now_s)
    return settled


def keys(settled: Settled) -> list[str]:
    return [taint.key.rpartition("/")[2] for d in settled.devices for taint in d.taints]


def test_a_device_that_is_new_has_its_taints_at_once() -> None:
    assert keys(told((0, FAILED))) == ["state"]
    assert told((0, FAILED)).look_again_at_s is None


def test_a_taint_appears_after_five_seconds() -> None:
    assert keys(told((0, CLEAN), (10, FAILED))) == []
    assert told((0, CLEAN), (10, FAILED)).look_again_at_s == 15
    assert keys(told((0, CLEAN), (10, FAILED), (14.9, FAILED))) == []
    assert keys(told((0, CLEAN), (10, FAILED), (15, FAILED))) == ["state"]


def test_one_that_was_but_a_flicker_never_appears() -> None:
    settled = told((0, CLEAN), (10, FAILED), (14, CLEAN), (16, CLEAN))
    assert (keys(settled), settled.look_again_at_s) == ([], None)


def test_a_taint_goes_after_thirty_seconds() -> None:
    assert keys(told((0, FAILED), (10, CLEAN), (39.9, CLEAN))) == ["state"]
    assert told((0, FAILED), (10, CLEAN)).look_again_at_s == 40
    assert keys(told((0, FAILED), (10, CLEAN), (40, CLEAN))) == []


def test_one_that_comes_again_meanwhile_stays_and_the_time_begins_anew() -> None:
    history = ((0, FAILED), (10, CLEAN), (30, FAILED), (50, CLEAN), (79, CLEAN))
    assert keys(told(*history)) == ["state"]
    assert keys(told(*history, (80, CLEAN))) == []


@pytest.mark.parametrize("key", sorted(taints.AT_ONCE))
def test_what_must_not_reach_a_pod_is_told_at_once(key: str) -> None:
    device = with_taint(CLEAN, key=f"kata-gpu.io/{key}")
    assert keys(told((0, CLEAN), (1, device))) == [key]


def test_what_was_told_at_once_does_not_go_at_once() -> None:
    assert keys(told((0, CLEAN), (1, QUARANTINED), (2, CLEAN), (31, CLEAN))) == ["quarantined"]
    assert keys(told((0, CLEAN), (1, QUARANTINED), (2, CLEAN), (32, CLEAN))) == []


def test_a_value_that_changes_is_told_once_and_after_a_while() -> None:
    other = with_taint(CLEAN, value="pending")
    settled = told((0, FAILED), (10, other), (12, FAILED), (14, other), (16, other))
    assert [t.value for t in settled.devices[0].taints] == ["failed"]
    settled = taints.settle(settled, [other], 19)
    assert [t.value for t in settled.devices[0].taints] == ["pending"]


def test_an_effect_that_grows_is_there_beside_the_old_one_until_that_goes() -> None:
    dead = with_taint(CLEAN, effect=Effect.NO_EXECUTE)
    effects = [
        [t.effect.value for t in told(*history).devices[0].taints]
        for history in (
            ((0, FAILED), (10, dead), (15, dead)),
            ((0, FAILED), (10, dead), (15, dead), (40, dead)),
        )
    ]
    assert effects == [["NoExecute", "NoSchedule"], ["NoExecute"]]


def test_a_device_that_was_away_begins_anew() -> None:
    settled = taints.settle(told((0, FAILED)), [], 1)
    assert (settled.devices, dict(settled.held)) == ((), {})
    assert keys(taints.settle(settled, [CLEAN], 2)) == []


def test_what_else_changes_of_a_device_is_not_held_back() -> None:
    bound = dataclasses.replace(CLEAN, is_ready=False, reason="it is bound now")
    assert told((0, CLEAN), (1, bound)).devices == (bound,)


def test_each_device_has_its_own_times() -> None:
    other = gpu(2)
    settled = taints.settle(Settled(), [CLEAN, other], 0)
    settled = taints.settle(settled, [FAILED, other], 1)
    settled = taints.settle(settled, [FAILED, with_taint(other)], 4)
    assert settled.look_again_at_s == 6
    settled = taints.settle(settled, [FAILED, with_taint(other)], 6)
    assert [len(device.taints) for device in settled.devices] == [1, 0]
    assert settled.look_again_at_s == 9


def flapping(seed: int) -> Iterator[tuple[float, Device]]:
    dice = random.Random(seed)  # noqa: S311 - no secret
    now_s = 0.0
    while now_s < 3600:
        now_s += dice.uniform(0.1, 8)
        yield now_s, dice.choice([CLEAN, FAILED])


@pytest.mark.parametrize("seed", range(10))
def test_a_device_that_flaps_for_an_hour_is_written_a_few_times_at_most(seed: int) -> None:
    """Each pair of changes takes 35 seconds at least."""
    settled, seen = Settled(), []
    for now_s, device in flapping(seed):
        settled = taints.settle(settled, [device], now_s)
        seen.append((now_s, keys(settled)))
    changes = [after[0] for before, after in itertools.pairwise(seen) if before[1] != after[1]]
    assert all(later - earlier >= 35 for earlier, later in zip(changes, changes[2:], strict=False))


@pytest.mark.parametrize("seed", range(10))
def test_whatever_was_before_it_is_told_as_it_is_when_it_stays_so(seed: int) -> None:
    settled = Settled()
    for now_s, device in flapping(seed):
        settled = taints.settle(settled, [device], now_s)
    settled = taints.settle(settled, [FAILED], 4000)
    while (then_s := settled.look_again_at_s) is not None:
        settled = taints.settle(settled, [FAILED], then_s)
    assert settled.devices == (FAILED,)


def test_the_order_is_one_whatever_the_history() -> None:
    both = with_taint(FAILED, key="kata-gpu.io/a")
    reverse = dataclasses.replace(both, taints=tuple(reversed(both.taints)))
    assert told((0, both)).devices == told((0, CLEAN), (1, reverse), (9, both)).devices


def test_two_taints_of_one_key_and_effect_are_one() -> None:
    twice = dataclasses.replace(
        CLEAN,
        taints=(
            *FAILED.taints,
            Taint(key="kata-gpu.io/state", value="pending", effect=Effect.NO_SCHEDULE),
        ),
    )
    assert len(told((0, twice)).devices[0].taints) == 1


def test_many_devices_take_time_by_their_number_and_not_by_its_square() -> None:
    def took_s(number: int) -> float:
        devices = [with_taint(gpu(n)) for n in range(number)]
        before, times = taints.settle(Settled(), devices, 0), []
        for _ in range(3):
            began_s = time.process_time()
            taints.settle(before, devices, 1)
            times.append(time.process_time() - began_s)
        return min(times)

    assert took_s(4096) < 24 * took_s(512)
