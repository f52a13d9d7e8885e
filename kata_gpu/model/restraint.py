"""What the agent remembers of earlier turns, and a plan is to respect: what not to touch now."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kata_gpu.model.unit import UnitState


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """Why a unit, or a file of ours, is not to be touched now."""

    reason: str
    state: UnitState = UnitState.FAILED
    """What it makes of the unit."""

    is_final: bool = False
    """Whether to try again would do harm: it takes an admin, or another blueprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How the agent left things that it is not to repair, only to report."""

    units: frozenset[str] = frozenset()
    """And the physical functions whose virtual ones they are."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Content by path."""
