"""Time whole processes in turn, A B A B, so that a machine's moods meet both."""

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final

_KEEPS_NONE: Final = "PYTHONDONTWRITEBYTECODE"


def run_s(argv: Sequence[str]) -> float:
    """Return how long one run of *argv* takes, in seconds.

    Compiled modules are kept, as those of an installed package are, whatever is set here.
    """
    kept = {name: value for name, value in os.environ.items() if name != _KEEPS_NONE}
    started = time.perf_counter()
    subprocess.run(argv, env=kept, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def in_turn(commands: Mapping[str, Sequence[str]], *, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each command's runs; one round before them is not counted."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, argv in commands.items():
            elapsed_s = run_s(argv)
            if number:
                times[name].append(elapsed_s)
    return times


def median_ms(times_s: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(times_s) * 1000
