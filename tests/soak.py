"""Round trips of GPUs between their driver and VFIO in one process, and what they leave in it.

Runs in the lab's guest; ``python -m tests.soak TRIPS`` prints a table. All of the machine's
GPUs go together, and each counts.

Resident memory tells of a leak only after hundreds of trips: Python and the C library take
memory by the MiB and use it up by and by. What Python code holds is known to the byte where
``tracemalloc`` is on, and `growth` is what a trip adds to that.
"""

import gc
import math
import os
import statistics
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.host import leftovers
from kata_gpu.model.plan import Plan
from tests.in_guest import Agent, at, driver, override, pool
from tests.lab.inside import Machine

_WARM_TRIPS: Final = 10
"""Until caches have what they need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the process has after so many trips."""

    trips: int
    held_bytes: int
    """What is allocated through Python, garbage excepted; 0 where nobody traces it."""

    rss_kib: int
    descriptors: int
    children: int
    """Processes that it left; a forker and its likes are none."""


def growth(samples: Sequence[Sample]) -> float:
    """Return how many bytes a trip leaves behind: the median between each two samples.

    Not the mean: a table of the interpreter's own that has to grow takes a MiB at once.
    """
    return statistics.median(
        (after.held_bytes - before.held_bytes) / (after.trips - before.trips)
        for before, after in pairwise(samples)
    )


def sampled(
    trip: Callable[[], None],
    plan_anew: Callable[[], None],
    *,
    count: int,
    samples: int,
    units: int = 1,
) -> Iterator[Sample]:
    """Take *count* trips with *units* each when the process is warm, and sample on the way.

    Between each two samples plans are made anew once; the other trips take the same steps.
    """
    every = max(1, count // samples)
    plan_anew()
    for number in range(-_WARM_TRIPS, count + 1):
        if number % every == 0:
            plan_anew()
        trip()
        if number >= 0 and number % every == 0:
            yield _sample(number * units)


def trips(agent: Agent, units: Sequence[str], count: int, *, samples: int = 10) -> Iterator[Sample]:
    """Send *units* on *count* round trips, each verified, and sample on the way."""
    home = driver(units[0])
    plans: list[Plan] = []

    def plan_anew() -> None:
        plans[:] = _plans(agent)

    def trip() -> None:
        for plan, reached in zip(plans, (("vfio-pci", "vfio-pci"), (home, "(null)")), strict=True):
            report = executor.execute(agent.host, plan, agent.journal)
            assert not report.failures, report
            assert {(driver(unit), override(unit)) for unit in units} == {reached}

    return sampled(trip, plan_anew, count=count, samples=samples, units=len(units))


def _plans(agent: Agent) -> tuple[Plan, Plan]:
    """Return what binds and publishes the units, and what gives them back; they are after."""
    host, settings = agent.host, agent.settings
    _, bind = node.make_plan(host, settings, agent.blueprint, agent.journal.ledger)
    assert not agent.converge().report.failures
    release = node.make_release(host, settings, agent.journal.ledger, None)
    assert not executor.execute(host, release, agent.journal).failures
    return bind, release


def _sample(done: int) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        trips=done,
        held_bytes=tracemalloc.get_traced_memory()[0],
        rss_kib=pages * os.sysconf("SC_PAGESIZE") // 1024,
        descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - with the listing's own
        children=len(leftovers.find(Path("/proc"))),
    )


def main() -> None:
    """Print the table."""
    machine = Machine.here()
    roles = [role for role in machine.roles if role.startswith("gpu") and "port" not in role]
    gpus = [machine.address(role) for role in roles]
    count = math.ceil(int(sys.argv[1]) / len(gpus))
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        sys.stdout.write("| trips | RSS, KiB | descriptors | children left |\n|---|---|---|---|\n")
        for sample in trips(Agent(Path(folder), pool(*map(at, gpus))), gpus, count):
            row = (sample.trips, sample.rss_kib, sample.descriptors, sample.children)
            sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
