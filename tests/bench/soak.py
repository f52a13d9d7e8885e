"""A thousand round trips between driver and VFIO, eight GPUs at a time: does the agent grow?"""

from typing import Final

from tests.bench import lab

_TRIPS: Final = 1000
_TIMEOUT_S: Final = 7200.0


def main() -> None:
    """Print resident memory and descriptors after every tenth of the trips."""
    lab.run("eight", "-m", "tests.soak", str(_TRIPS), timeout_s=_TIMEOUT_S)
