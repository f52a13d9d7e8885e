"""How fast an agent may be, given that the same agent runs on every node of the cluster."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kata_gpu.publish.kubernetes.errors import ApiError

_RANDOM: Final = random.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """Times, all monotonic; the defaults are for a cluster of many nodes."""

    start_spread_s: float = 30.0
    """Within which the agents of a cluster that starts as a whole first ask."""

    sync_delay_s: float = 30.0
    """How long others' changes are left: kubelet deletes again what comes back too soon."""

    watch_s: tuple[int, int] = (300, 600)
    """Shortest and longest time of a watch: they shall not all end together."""

    retry_s: float = 1.0
    retry_max_s: float = 300.0
    now: Callable[[], float] = time.monotonic

    def start_delay_s(self) -> float:
        """Return how long this agent waits before it first asks."""
        return _RANDOM.uniform(0, self.start_spread_s)

    def watch_timeout_s(self) -> int:
        """Return how long the next watch lasts."""
        return _RANDOM.randint(*self.watch_s)


class BackOff:
    """Longer and longer pauses, until something succeeds."""

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing
        self._failures = 0

    def succeeded(self) -> None:
        """Begin with the shortest pause again."""
        self._failures = 0

    def failed(self, error: ApiError) -> float:
        """Return how long to wait now; never less than the server asked for."""
        longest_s = self._pacing.retry_max_s
        pause_s = min(self._pacing.retry_s * 2 ** min(self._failures, 30), longest_s)
        self._failures += 1
        asked_s = min(error.retry_after_s or 0.0, longest_s)
        return asked_s + pause_s * _RANDOM.uniform(0.5, 1.0)
