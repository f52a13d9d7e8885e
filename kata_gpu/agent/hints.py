"""Why to take a turn: signals, and hints from whatever the daemon listens to.

What no uevent tells of is watched: files that we wrote or depend on, everybody's CDI files, the
overrides of functions meant for VFIO, and the device nodes that a VM opens. What is not heard,
because it cannot be watched or was lost, is found by the rescan.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kata_gpu.discover.cdi import DIRECTORIES
from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.host.hint import Hint
from kata_gpu.model.report import NodeState, UnitStatus
from kata_gpu.settings.agent import Settings

log = logging.getLogger(__name__)


class Hints(Protocol):
    """Where hints of a change come from."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a hint."""

    def drain(self) -> tuple[Hint, ...]:
        """Take all waiting hints; empty when there are none."""


class Watches(Hints, Protocol):
    """Hints about paths that are chosen after each turn; `kata_gpu.host.watches`."""

    def watch(self, paths: Iterable[Path]) -> bool:
        """Watch exactly these; tell whether one is new. HostError when some cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All that the daemon listens to."""

    uevents: Hints
    watches: Watches | None
    """None where the kernel gives no inotify instance."""

    configuration: tuple[Path, ...]
    """Files whose change has the blueprint read again."""


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why to take a turn now, and how: events that signals and hints set."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    opened: set[str] = field(default_factory=set)
    """Device nodes that somebody opened since the last turn."""

    def hear(self, hint: Hint, configuration: frozenset[str]) -> None:
        """Wake for a hint; a change to one of the *configuration* files is one to read it."""
        if hint.opened is not None:
            self.opened.add(hint.opened)
        if hint.changed in configuration:
            self.reload.set()
        self.wake.set()


@contextmanager
def listening(
    sources: Sources, *, end: Callable[[], None], hear: Callable[[], None]
) -> Iterator[Reasons]:
    """Turn hints and signals into reasons; a turn that runs meanwhile is not disturbed.

    *end* is called when a signal says stop, and *hear* at once whenever something was heard.
    """
    reasons = Reasons()
    loop = asyncio.get_running_loop()
    configuration = frozenset(str(path) for path in sources.configuration)

    def hinted(source: Hints) -> None:
        for hint in source.drain():
            log.debug("heard: %s", hint.text)
            reasons.hear(hint, configuration)
        hear()

    def stopped() -> None:
        reasons.stop.set()
        reasons.wake.set()
        end()

    def reloaded() -> None:
        reasons.reload.set()
        reasons.wake.set()

    heard = [source for source in (sources.uevents, sources.watches) if source is not None]
    for source in heard:
        loop.add_reader(source.fileno(), hinted, source)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)
    loop.add_signal_handler(signal.SIGHUP, reloaded)
    try:
        yield reasons
    finally:
        for source in heard:
            loop.remove_reader(source.fileno())


class Watching:
    """Keeps the watches on what matters now, and says once what cannot be watched."""

    def __init__(self, sources: Sources) -> None:
        self._watches = sources.watches
        self._configuration = sources.configuration
        self._trouble: str | None = None

    def follow(self, paths: Iterable[Path]) -> bool:
        """Watch the configuration and *paths*; tell whether to look again, as one is new."""
        if self._watches is None:
            return False
        trouble, is_new = None, False
        try:
            is_new = self._watches.watch((*self._configuration, *paths))
        except HostError as error:
            trouble = str(error)
        if trouble is not None and trouble != self._trouble:
            log.warning("%s; until then the rescan finds what changes there", trouble)
        self._trouble = trouble
        return is_new


def paths_to_watch(host: Host, settings: Settings, state: NodeState) -> tuple[Path, ...]:
    """Return all that *state* depends on and no uevent tells of."""
    return (
        *(host.path(path) for path in dict.fromkeys((settings.cdi_directory, *DIRECTORIES))),
        *(host.path(file).parent for file in state.files),
        *(host.path(base.config) for base in state.kata),
        *(host.path(f"{base.directory}/config.d") for base in state.kata if base.directory),
        *(path for unit in state.units for path in _of_unit(host, unit)),
        *_of_kubelet(host, settings),
    )


def _of_kubelet(host: Host, settings: Settings) -> Iterator[Path]:
    """Yield the socket that kubelet makes anew when it starts."""
    if settings.kubernetes is not None:
        directory = settings.kubernetes.kubelet_directory
        yield host.path(f"{directory}/device-plugins/kubelet.sock")


def _of_unit(host: Host, unit: UnitStatus) -> Iterator[Path]:
    """Yield the overrides of a unit for VFIO, and the nodes by which somebody has it."""
    if unit.resource is not None:
        for function in unit.functions:
            yield host.sysfs.root / f"bus/pci/devices/{function.address}/driver_override"
        yield from (host.path(f"/dev/vfio/{group}") for group in unit.groups)
    yield from (host.path(node) for node in unit.nodes)
    for holder in unit.holders:
        if holder.device.startswith("/dev/"):
            yield host.path(holder.device)
