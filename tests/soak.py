"""Round trips of GPUs between their driver and VFIO in one process, and what they leave in it.

Runs in the lab's guest; ``python -m tests.soak TRIPS`` prints a table. All of the machine's
GPUs go together, and each counts.
"""

import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.host import leftovers
from kata_gpu.model.plan import Plan
from tests.in_guest import Agent, at, driver, override, pool
from tests.lab.inside import Machine

_SAMPLES: Final = 10
_WARM_TRIPS: Final = 3
"""Until caches and the allocator have what they need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the process has after so many trips."""

    trips: int
    rss_kib: int
    descriptors: int
    children: int
    """Processes that it left; a forker and its likes are none."""


def trips(agent: Agent, units: Sequence[str], count: int) -> Iterator[Sample]:
    """Send *units* on *count* round trips, each verified, and sample ten times on the way.

    Plans are made anew for each tenth trip; the others take the same steps again.
    """
    home = driver(units[0])
    bind, release = _plans(agent)
    for number in range(1, _WARM_TRIPS + count + 1):
        if number % 10 == 0:
            bind, release = _plans(agent)
        for plan, reached in ((bind, ("vfio-pci", "vfio-pci")), (release, (home, "(null)"))):
            report = executor.execute(agent.host, plan, agent.journal)
            assert not report.failures, report
            assert {(driver(unit), override(unit)) for unit in units} == {reached}
        done = number - _WARM_TRIPS
        if done >= 0 and done % max(1, count // _SAMPLES) == 0:
            yield _sample(done * len(units))


def _plans(agent: Agent) -> tuple[Plan, Plan]:
    """Return what binds and publishes the units, and what gives them back; they are after."""
    host, settings = agent.host, agent.settings
    _, bind = node.make_plan(host, settings, agent.blueprint, agent.journal.ledger)
    assert not agent.converge().report.failures
    release = node.make_release(host, settings, agent.journal.ledger, None)
    assert not executor.execute(host, release, agent.journal).failures
    return bind, release


def _sample(done: int) -> Sample:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        trips=done,
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
