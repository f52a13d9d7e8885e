"""Claims as they are prepared: what kubelet was, or will be, answered."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

_AGENT: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})")
_UID: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,126}[A-Za-z0-9])?")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Who prepares claims here, and where that is written."""

    driver: str
    pool: str
    """Of this node's devices: its name."""

    agent: str
    """This agent's name among those of the node: its pod's uid, or a random word."""

    directory: Path
    """The driver's own, below kubelet's ``plugins``."""

    def __post_init__(self) -> None:
        require_agent(self.agent)

    @property
    def checkpoint(self) -> Path:
        """What all agents of the node have prepared."""
        return self.directory / "checkpoint.json"

    def lock_of(self, agent: str) -> Path:
        """Return what an agent holds for as long as it lives."""
        return self.directory / f"agent-{agent}.lock"

    def agents(self) -> tuple[str, ...]:
        """Return the names of all agents that were here, dead or alive."""
        locks = sorted(path.stem for path in self.directory.glob("agent-*.lock"))
        names = (lock.removeprefix("agent-") for lock in locks)
        return tuple(name for name in names if _AGENT.fullmatch(name))


def require_agent(name: str) -> str:
    """Return an agent's *name*; ValueError for what cannot be part of a file's name."""
    if not _AGENT.fullmatch(name):
        raise ValueError(f"not an agent's name: {name[:80]!r}")
    return name


class Progress(StrEnum):
    """How far a claim is."""

    STARTED = "prepare-started"
    """Its devices are its own, and may be on their way."""

    COMPLETED = "prepare-completed"
    """What kubelet is answered is settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimName:
    """A ResourceClaim, as kubelet names it; its parts can be parts of a path."""

    namespace: str
    name: str
    uid: str

    def __post_init__(self) -> None:
        if not (_UID.fullmatch(self.uid) and ".." not in self.uid):
            raise ValueError(f"not a claim's uid: {self.uid[:80]!r}")
        for text in (self.namespace, self.name):
            if not (_NAME.fullmatch(text) and ".." not in text):
                raise ValueError(f"not a claim's name or namespace: {text[:80]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDevice:
    """One device of a claim."""

    requests: tuple[str, ...]
    """Names of the requests it is for, subrequests as ``main/sub``."""

    pool: str
    device: str
    units: tuple[str, ...]
    cdi_names: tuple[str, ...]
    """What kubelet is told; the first is the same for the device's life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedClaim:
    """One claim with devices of this driver."""

    claim: ClaimName
    progress: Progress
    owner: str
    """The agent that prepares it, or did."""

    is_brought: bool
    """Whether units were, or are, brought to VFIO for it: then they go back after it."""

    devices: tuple[PreparedDevice, ...]

    @property
    def units(self) -> frozenset[str]:
        """Ids of all its units."""
        return frozenset(unit for device in self.devices for unit in device.units)


Claims = Mapping[str, PreparedClaim]
"""By uid."""
