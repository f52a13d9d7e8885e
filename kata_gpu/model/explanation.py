"""Why a device is in the state it is in: what the agent said, and the answer in sentences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kata_gpu.model.pci import PciAddress
from kata_gpu.model.plan import Finding
from kata_gpu.model.report import Outcome
from kata_gpu.model.unit import UnitState


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the running agent said of the node: it alone knows what it tried."""

    agent: str
    """Its version."""

    blueprint: str
    """Version label of the one it goes by."""

    read_at: datetime
    states: Mapping[str, tuple[UnitState, str]]
    """State and reason of each unit."""

    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]
    """Of the last turn that had something to do."""

    troubles: tuple[str, ...]
    """Why what it said may not be what is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaid:
    """There is no word of an agent."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleUse:
    """Who uses the module of a driver: more than one device may be meant."""

    driver: str
    module: str | None
    """None for a driver that is built into the kernel."""

    count: int | None
    """How often it is in use; None where the kernel does not say."""

    users: tuple[str, ...]
    """Modules that use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Sentences about one side of the matter."""

    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer to "why is this device not available?"."""

    address: PciAddress
    """What was asked about."""

    unit: str | None
    """The unit that it belongs to; None without one."""

    state: UnitState | None
    """The unit's; None without one."""

    is_in_order: bool
    """Whether it can be had, is had, or is where the blueprint wants it."""

    headline: str
    source: str
    """Who says so, and when."""

    sections: tuple[Section, ...] = field(default=())
    actions: tuple[str, ...] = field(default=())
    """What makes it available, or how a pod asks for it, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What keeps a pod from its devices, and its mend."""

    what: str
    mend: str
    source: str
    """How it is known: the place in Kata, or what was looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodExplanation:
    """The answer to "why does this pod not get its GPU?"."""

    pod: str
    """``namespace/name``."""

    uid: str | None
    handler: str | None
    is_in_order: bool
    """Whether nothing was found that keeps it from its devices."""

    headline: str
    source: str
    causes: tuple[Cause, ...] = field(default=())
    """The likeliest first."""

    sections: tuple[Section, ...] = field(default=())
    actions: tuple[str, ...] = field(default=())


def lines(explanation: Explanation | PodExplanation) -> tuple[str, ...]:
    """Return the explanation as a person reads it, each sentence in a line of its own."""
    found = [explanation.headline, f"({explanation.source})"]
    for section in explanation.sections:
        found += ["", section.title, *(f"  {sentence}" for sentence in section.sentences)]
    found += ["", "What to do"]
    found += [f"  {number}. {action}" for number, action in enumerate(explanation.actions, 1)]
    return tuple(found)
