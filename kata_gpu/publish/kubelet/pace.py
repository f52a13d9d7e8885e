"""How fast kubelet is asked: a limit of our own, below the one that all its clients share.

Source: kubelet refuses PodResources requests past 100 a second, 10 at once, whoever asks; Kata
does not ask twice, so a pod whose request is refused does not start.
"""

import time
from collections.abc import Callable
from typing import Final

PER_SECOND: Final = 20.0
BURST: Final = 5


class Pace:
    """Gives out turns: *burst* at once, and then *per_second*."""

    def __init__(
        self,
        *,
        per_second: float = PER_SECOND,
        burst: int = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_s = 1 / per_second
        self._credit_s = (burst - 1) / per_second
        self._clock = clock
        self._next_at = 0.0
        """When the next turn would be if there were no bursts."""

    def take(self, *, within_s: float) -> float | None:
        """Take the next turn, and return how many seconds it is away.

        None, and no turn is taken, when it is further away than *within_s*.
        """
        now = self._clock()
        next_at = max(now, self._next_at)
        wait_s = max(0.0, next_at - self._credit_s - now)
        if wait_s > within_s:
            return None
        self._next_at = next_at + self._interval_s
        return wait_s
