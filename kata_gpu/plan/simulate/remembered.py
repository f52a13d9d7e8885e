"""Answers that hold until something of a node changes, so that like questions are asked once."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_MOST: Final = 200_000


class Remembered(Generic[T]):
    """What was found out of a node for a question, and how old the node was then."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, T]] = {}

    def answer(self, node: str, question: str, age: int, find: Callable[[], T]) -> T:
        """Return the answer to *question* of a node of that *age*, found anew if need be."""
        before = self._found.get((node, question))
        if before is not None and before[0] == age:
            return before[1]
        found = find()
        if len(self._found) >= _MOST:
            self._found.clear()
        self._found[node, question] = (age, found)
        return found
