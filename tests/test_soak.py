"""An agent that binds and releases for days must not grow; ``scripts/bench soak`` goes on."""

import logging
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from tests import soak
from tests.in_guest import Agent, at, pool
from tests.kernel import nodes
from tests.lab.inside import Machine
from tests.passthrough import EVERY_GPU, SETTINGS, journal_of

_TRIPS: Final = 30
_SAMPLES: Final = 5
_LEAK_BYTES: Final = 1024
"""The smallest that must be found, of each trip."""

_LIMIT_BYTES: Final = 768
"""For a trip: less than a leak, and twice what the interpreter takes for its own tables."""

_RSS_STEPS_KIB: Final = 2048
"""Pools of the interpreter and of the C library, a MiB each, that a start may still need."""


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def nothing() -> None:
    pass


def fake_trips(root: Path, leak: Callable[[], None]) -> Iterator[soak.Sample]:
    """Send the units of a fake node on turns that bind all and then give all back."""
    kernel = nodes.gpu_with_audio(root)
    host, journal = kernel.host, journal_of(kernel.host)

    def trip() -> None:
        turn = node.converge(host, SETTINGS, EVERY_GPU, journal)
        release = node.make_release(host, SETTINGS, journal.ledger, None)
        report = executor.execute(host, release, journal)
        assert not turn.report.failures
        assert not report.failures
        assert len(journal.ledger.entries) == 0
        kernel.writes.clear()
        kernel.runs.clear()
        leak()

    return soak.sampled(trip, nothing, count=_TRIPS, samples=_SAMPLES)


@pytest.mark.usefixtures("_traced")
def test_a_turn_leaves_nothing_in_memory(tmp_path: Path) -> None:
    samples = list(fake_trips(tmp_path, nothing))
    assert soak.growth(samples) < _LIMIT_BYTES


@pytest.mark.usefixtures("_traced")
def test_a_kib_that_each_turn_leaves_in_memory_is_found(tmp_path: Path) -> None:
    kept: list[bytes] = []
    samples = list(fake_trips(tmp_path, lambda: kept.append(bytes(_LEAK_BYTES))))
    assert soak.growth(samples) > _LIMIT_BYTES


@pytest.mark.lab("single", timeout_s=600)
@pytest.mark.usefixtures("_traced")
def test_thirty_round_trips_leave_nothing_behind(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # pytest keeps what is logged
    gpu = machine.address("gpu")
    agent = Agent(tmp_path, pool(at(gpu)))
    first, *others = soak.trips(agent, [gpu], _TRIPS, samples=_SAMPLES)
    assert len(others) == _SAMPLES
    assert {sample.descriptors for sample in others} == {first.descriptors}
    assert {sample.children for sample in (first, *others)} == {0}
    assert soak.growth([first, *others]) < _LIMIT_BYTES
    assert others[-1].rss_kib - first.rss_kib < _RSS_STEPS_KIB
