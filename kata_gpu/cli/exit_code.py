"""Exit statuses: what a script may rely on."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The end of a verb, for scripts."""

    OK = 0
    FAILED = 1
    CHANGES = 2
    """``plan``: there is something to do."""

    REFUSED = 3
    """Nothing to do, or all of it done, but something the blueprint asks for is refused;
    ``doctor``: a check is an error; ``explain``: the device is not available; ``runtime check``:
    a handler is not wired as it should be; ``uninstall``: a unit is held;
    ``simulate``: a pod is not placed.
    """

    USAGE = 64
    """The command line is wrong (EX_USAGE of sysexits.h; 2 is taken by ``plan``)."""
