"""What each runtime's CDI library takes.

Source: Kata 4.1.0: its Go runtime has container-device-interface 0.6.0, runtime-rs the crate
1.1.1, to which it hands the directories in the opposite order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.cdi import CdiFault

RELEASED: Final = (
    *("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"),
)
"""Versions of the CDI specification, oldest first."""

EARLIEST: Final = "0.3.0"
"""Both libraries know the two before by name, and say that a spec needs at least this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A CDI library as one runtime uses it."""

    name: str
    newest: str
    """The last version of the specification that it takes."""

    directories: tuple[str, ...]
    """Where it looks; a later one overrides an earlier one."""

    reads_below: bool
    """Whether it looks into sub-directories."""

    ignores_case: bool
    """Whether it takes a key whose case is wrong."""

    takes_numbers: bool
    """Whether it takes a number or a boolean where a text must be."""

    takes_no_devices: bool

    def knows(self, version: str) -> bool:
        """Tell whether it takes what came with a released *version*."""
        return RELEASED.index(version) <= RELEASED.index(self.newest)


LIBRARIES: Final[Mapping[Runtime, Library]] = {
    Runtime.GO: Library(
        name="Kata's Go runtime",
        newest="0.6.0",
        directories=("/etc/cdi", "/var/run/cdi"),
        reads_below=False,
        ignores_case=True,  # encoding/json
        takes_numbers=True,  # sigs.k8s.io/yaml, for it knows the type that is wanted
        takes_no_devices=True,
    ),
    Runtime.RUST: Library(
        name="runtime-rs",
        newest="1.1.0",
        directories=("/var/run/cdi", "/etc/cdi"),
        reads_below=True,
        ignores_case=False,
        takes_numbers=False,
        takes_no_devices=False,
    ),
}


def stopped(fault: CdiFault) -> str:
    """Name the runtimes for whose pods *fault* changes anything; ``nobody`` without any."""
    scopes = {Runtime.GO: fault.go, Runtime.RUST: fault.rust}
    names = [library.name for runtime, library in LIBRARIES.items() if scopes[runtime] is not None]
    return " and ".join(names) or "nobody"
