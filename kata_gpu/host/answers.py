"""Answers that are dear to get, kept for as long as something cheap says that they hold."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Answers:
    """What was asked of a host; whoever keeps the host keeps them, and nobody else has them."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def get(
        self, question: Hashable, holds: Callable[[Answer], bool], ask: Callable[[], Answer]
    ) -> Answer:
        """Return the last answer to *question* if it still *holds*, else ask.

        What *ask* raises is raised, and nothing is kept.
        """
        if question in self._kept:
            kept: Answer = self._kept[question]
            if holds(kept):
                return kept
            del self._kept[question]
        answer = self._kept[question] = ask()
        return answer
