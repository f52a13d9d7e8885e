"""A thousand round trips of a GPU between its driver and VFIO: does the agent grow?"""

from typing import Final

from tests.bench import lab

_TRIPS: Final = 1000
_TIMEOUT_S: Final = 7200.0


def main() -> None:
    """Print resident memory and descriptors after every hundredth trip."""
    lab.run("single", "-m", "tests.soak", str(_TRIPS), timeout_s=_TIMEOUT_S)
