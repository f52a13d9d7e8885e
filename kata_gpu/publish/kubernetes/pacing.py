"""How fast an agent may be, given that the same agent runs on every node of the cluster."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kata_gpu.errors import KataGpuError
from kata_gpu.publish.kubernetes.errors import ApiError

log = logging.getLogger(__name__)

_FORGETS_AFTER_S: Final = 120.0
"""What worked for so long may fail anew, as if it were the first time."""

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

    watch_held_s: float = 10.0
    """What breaks after so long is no failure: a proxy may cut a watch that has nothing to tell."""

    retry_s: float = 1.0
    retry_max_s: float = 300.0
    now: Callable[[], float] = time.monotonic

    def start_delay_s(self) -> float:
        """Return how long this agent waits before it first asks."""
        return _RANDOM.uniform(0, self.start_spread_s)

    def retry_delay_s(self) -> float:
        """Return how long to wait before what is cut by the way is begun again."""
        return self.retry_s * _RANDOM.uniform(0.5, 1.0)

    def watch_timeout_s(self) -> int:
        """Return how long the next watch lasts."""
        return _RANDOM.randint(*self.watch_s)


class BackOff:
    """Longer and longer pauses until something succeeds; says once what is wrong."""

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing
        self._failures = 0
        self._forgets_at_s = 0.0
        self.trouble: str | None = None
        """What went wrong last; None when it works."""

    def works(self) -> None:
        """Say that it works again, if it did not; the next pause is no shorter for that."""
        if self.trouble is not None:
            log.info("it works again; before: %s", self.trouble)
        self.trouble = None

    def succeeded(self) -> None:
        """Begin with the shortest pause again."""
        self.works()
        self._failures = 0

    def failed(self, error: KataGpuError) -> float:
        """Return how long to wait now; never less than the server asked for."""
        now_s = self._pacing.now()
        if now_s >= self._forgets_at_s:
            self._failures = 0
        longest_s = self._pacing.retry_max_s
        grown_s = min(self._pacing.retry_s * 2.0 ** min(self._failures, 30), longest_s)
        asked_s = (error.retry_after_s or 0.0) if isinstance(error, ApiError) else 0.0
        pause_s = min(asked_s, longest_s) + grown_s * _RANDOM.uniform(0.5, 1.0)
        self._failures += 1
        self._forgets_at_s = now_s + pause_s + _FORGETS_AFTER_S
        if str(error) != self.trouble:
            log.warning("%s; trying again in %.0f s", error, pause_s)
        self.trouble = str(error)
        return pause_s
