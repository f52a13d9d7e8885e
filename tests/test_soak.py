"""An agent that binds and releases for days must not grow; ``scripts/bench soak`` goes on."""

from pathlib import Path

import pytest

from tests import soak
from tests.in_guest import Agent, at, pool
from tests.lab.inside import Machine

_NOISE_KIB = 256


@pytest.mark.lab("single", timeout_s=300)
def test_thirty_round_trips_leave_nothing_behind(machine: Machine, tmp_path: Path) -> None:
    gpu = machine.address("gpu")
    first, *others = soak.trips(Agent(tmp_path, pool(at(gpu))), [gpu], 30)
    assert len(others) == 10
    assert {sample.descriptors for sample in others} == {first.descriptors}
    assert {sample.children for sample in (first, *others)} == {0}
    assert others[-1].rss_kib - first.rss_kib < _NOISE_KIB
