"""What a search for devices starts from, and what it may come to."""

from collections.abc import Mapping
from dataclasses import dataclass

from kata_gpu.plan.simulate.answer import Given, RequestRefusal
from kata_gpu.plan.simulate.cel import Selectors
from kata_gpu.plan.simulate.pools import Pool
from kata_gpu.plan.simulate.values import DeviceClass, DeviceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """All claims have their devices."""

    given: tuple[Given, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """There is no way; *requests* are the choices of the one that it got no further than."""

    requests: tuple[RequestRefusal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """The allocator gives up, here and on every other node."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """It could not be found out."""

    reason: str


Outcome = Allocated | Refused | Aborted | Undecided


@dataclass(slots=True)
class Budget:
    """How many devices may be tried yet, over several searches."""

    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What one node has, and what is gone of it."""

    pools: tuple[Pool, ...]
    taken: Mapping[DeviceId, str]
    """Who has each device that is allocated."""

    classes: Mapping[str, DeviceClass]
    selectors: Selectors
    budget: Budget
