"""What failed, and for how long it is not tried again.

A failed move makes events itself: without a pause the agent would chase them.
"""

import math
import time
from collections.abc import Mapping

from kata_gpu.model.restraint import Setback
from kata_gpu.model.unit import UnitState


class Setbacks:
    """The units and services whose last failure is remembered."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[Setback, float]] = {}
        """Each with the monotonic time from which on it may be tried."""

    def fresh(self) -> dict[str, Setback]:
        """Return those that are not to be tried now."""
        now = time.monotonic()
        return {name: why for name, (why, until) in self._until.items() if until > now}

    def learn(
        self, tried: Mapping[str, Setback], hopeless: Mapping[str, Setback], *, pause_s: float
    ) -> None:
        """Know what failed in a turn; what was *hopeless* in it was not tried, and waits on.

        Unless it was forgotten meanwhile. Who waits for a holder is not remembered: they are
        tried as soon as something is heard.
        """
        until = time.monotonic() + pause_s
        failed = {name: why for name, why in tried.items() if why.state is UnitState.FAILED}
        self._until = {
            **{name: known for name, known in self._until.items() if name in failed},
            **{
                name: (why, math.inf if why.is_final else until)
                for name, why in failed.items()
                if name not in hopeless
            },
        }

    def forget(self, name: str) -> None:
        """Let one be tried at once."""
        self._until.pop(name, None)

    def forget_all(self) -> None:
        """Let all be tried at once: the blueprint is another."""
        self._until.clear()
