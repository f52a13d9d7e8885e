"""The errors this agent raises on purpose, sorted by what a caller can do next.

A class here is a decision: one is added only when some caller acts differently on it.
Anything else that escapes is a bug and may crash its task. Every text starts with
"cannot" and says what, why, and where it helps what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_gpu.model.holder import Holder


class KataGpuError(Exception):
    """Base of every deliberate error."""


class InvalidBlueprint(KataGpuError):  # noqa: N818 - it names what is invalid, for its author
    """A file that an admin writes does not say what it must; nothing was changed."""


class HostError(KataGpuError):
    """The operating system refused an operation; the OSError is ``__cause__``."""


class UnservedError(HostError):
    """No agent serves the status socket, so what it would be asked can be done without it."""


class VerificationError(KataGpuError):
    """Every operation was accepted, yet the host is not in the state asked for."""


class HeldError(KataGpuError):
    """Somebody uses it, so nothing was changed; it may succeed when they are gone.

    :attr:`holders` says who, where it is a device.
    """

    def __init__(self, message: str, holders: tuple[Holder, ...] = ()) -> None:
        super().__init__(message)
        self.holders = holders


class StuckError(KataGpuError):
    """The kernel has not ended an operation in time and works on it: touch nothing near it.

    :attr:`pid` is the process that waits for it, and cannot be ended.
    """

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class EndingError(StuckError):
    """The agent ends and waits for nothing any more: leave everything as it is, and decide nothing.

    :attr:`pid` is 0 for an operation that was not begun.
    """


class LedgerError(KataGpuError):
    """The ledger cannot be trusted: nothing on this node may be changed until it can."""


class RollbackError(KataGpuError):
    """A failed change could not be undone: the host is in neither state.

    The failure that started the rollback is in :attr:`failure`, the one that ended it
    in ``__cause__``. The device must not be offered to anyone.
    """

    def __init__(self, message: str, failure: KataGpuError) -> None:
        super().__init__(message)
        self.failure = failure
