"""The daemon: a turn at the start, at every hint of a change, and once in a while.

Turns run one after another in a worker thread; the event loop answers the status socket
meanwhile with the state the last turn left. The end of the daemon changes nothing on the
node: devices stay bound, files stay written, VMs run on.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from kata_gpu.act.journal import Journal
from kata_gpu.agent import node, temporaries
from kata_gpu.agent.drift import Watchman
from kata_gpu.agent.hints import Reasons, Sources, Watching, listening, paths_to_watch
from kata_gpu.agent.node import Turn
from kata_gpu.errors import EndingError, HostError, KataGpuError, LedgerError
from kata_gpu.host import Host, locks, systemd
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.plan import Setback
from kata_gpu.model.report import NodeState, Report, Result
from kata_gpu.model.unit import UnitState
from kata_gpu.observe import server
from kata_gpu.observe.document import document
from kata_gpu.settings.agent import Settings

log = logging.getLogger(__name__)

LoadBlueprint = Callable[[], Blueprint]

STATUS: Final = "/v1/status"
CLEAR: Final = "/v1/clear"


async def run(
    host: Host, settings: Settings, load_blueprint: LoadBlueprint, sources: Sources
) -> None:
    """Hold the node to the blueprint until SIGTERM or SIGINT; SIGHUP reads it again.

    So does a change to its file.

    Raises:
        HeldError: another agent holds this node, or serves the status socket.
        InvalidBlueprint: the blueprint is wrong; nothing was changed.
    """
    with locks.exclusive(host.path(settings.lock)):
        watching = Watching(sources)
        watching.follow(())  # first: no change between reading the blueprint and watching it
        daemon = _Daemon(host, settings, load_blueprint)
        async with server.serve(
            host.path(settings.socket),
            {STATUS: daemon.status},
            commands={CLEAR: daemon.clear},
            mode=settings.socket_mode,
        ):
            with listening(sources, host.sysfs.give_up) as reasons:
                await daemon.turn()
                _notify(f"READY=1\nSTATUS={daemon.summary()}")
                await _turn_until_stopped(daemon, reasons, settings, watching)
            _notify("STOPPING=1")
    log.info("stopped; every device stays bound as it is")


def _notify(message: str) -> None:
    """Tell the service manager; one that cannot be told is no reason to end."""
    try:
        systemd.notify(message)
    except HostError as error:
        log.warning("%s", error)


async def _turn_until_stopped(
    daemon: "_Daemon", reasons: Reasons, settings: Settings, watching: Watching
) -> None:
    """Take a turn whenever there is a reason to, until a signal says stop.

    However fast the hints come, there is at most one turn in *settle_s*.
    """
    while not reasons.stop.is_set():
        if watching.follow(daemon.watchable()):
            reasons.wake.set()
        await _wait(reasons.wake, settings.rescan_interval_s)
        await _wait(reasons.stop, settings.settle_s)  # let what belongs together arrive
        reasons.wake.clear()
        if reasons.stop.is_set():
            return
        if reasons.reload.is_set():
            reasons.reload.clear()
            daemon.reload()
        opened = set(reasons.opened)
        reasons.opened.clear()
        log.debug("look again")
        await daemon.turn(opened)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


class _Daemon:
    """The state between turns: the blueprint in force, the ledger, and the latest answer."""

    def __init__(self, host: Host, settings: Settings, load_blueprint: LoadBlueprint) -> None:
        self._host = host
        self._settings = settings
        self._load_blueprint = load_blueprint
        self._blueprint = load_blueprint()
        self._journal: Journal | None = None
        self._read_only: str | None = None
        self._watchman = Watchman()
        self._failed: dict[str, tuple[Setback, float]] = {}
        self._last_report = Report()
        self._number = 0
        self._state: NodeState | None = None
        self._complaint: str | None = None
        self._trouble: str | None = None
        self._turning = asyncio.Lock()

    async def turn(self, opened: Iterable[str] = ()) -> None:
        """Take one turn off the loop, and let readers have its state.

        *opened* are device nodes that somebody was seen to open. A node that cannot be looked
        at ends the first turn with the reason, for there is nothing to show yet; later the
        last state stays, with the reason beside it.
        """
        async with self._turning:
            self._number += 1
            hopeless = self._not_yet()
            units = self._units_of(opened)
            try:
                turn = await asyncio.to_thread(self._take, hopeless, units)
            except EndingError as error:
                log.info("left turn %d: %s", self._number, error)
                return
            except KataGpuError as error:
                if self._state is None:
                    raise
                self._trouble = str(error)
                log.error("skipped turn %d: %s", self._number, error)  # noqa: TRY400 - no bug
                return
            self._trouble = None
            self._remember(turn, hopeless)
            if turn.taken:
                self._last_report = turn.report
            before = self._state
            self._state = self._describe(turn)
            self._watchman.learn(turn, self._state)
            _log_changes(before, self._state)

    def _take(self, hopeless: Mapping[str, Setback], opened: frozenset[str]) -> Turn:
        """Do what the blueprint asks for; only look where the ledger cannot be trusted."""
        try:
            if self._journal is None:
                self._journal = node.open_journal(self._host, self._settings)
                temporaries.sweep(self._host, self._settings, self._journal.ledger)
        except LedgerError as error:
            if self._read_only is None:
                log.error("read-only: %s", error)  # noqa: TRY400 - no bug
            self._read_only = str(error)
            return node.survey(self._host, self._settings, self._blueprint, str(error))
        self._read_only = None
        return node.converge(
            self._host,
            self._settings,
            self._blueprint,
            self._journal,
            failed={**hopeless, **self._watchman.contested()},
            opened=opened,
            kept=self._watchman.kept(self._blueprint.drift),
        )

    def _describe(self, turn: Turn) -> NodeState:
        return node.describe(
            turn,
            self._settings,
            self._blueprint,
            Ledger() if self._journal is None else self._journal.ledger,
            number=self._number,
            last_report=self._last_report,
        )

    def _units_of(self, nodes: Iterable[str]) -> frozenset[str]:
        """Return the units that the device nodes give to a VM."""
        known = self._state.units if self._state else ()
        seen = set(nodes)
        return frozenset(
            unit.id for unit in known if seen & {str(self._host.path(n)) for n in unit.nodes}
        )

    async def clear(self, wish: dict[str, object]) -> dict[str, object]:
        """Answer POST /v1/clear: take a unit out of quarantine, and look what comes of it."""
        unit = str(wish.get("unit"))
        if self._journal is None:
            raise HostError(f"cannot clear {unit}: nothing is changed: {self._read_only}")
        async with self._turning:
            await asyncio.to_thread(node.clear, self._journal, unit)
        self._failed.pop(unit, None)
        await self.turn()
        units = self._state.units if self._state else ()
        return {"unit": unit, "state": next((u.state for u in units if u.id == unit), None)}

    def reload(self) -> None:
        """Read the blueprint again; a wrong one is complained of, and the old one stays."""
        try:
            self._blueprint = self._load_blueprint()
        except KataGpuError as error:
            self._complaint = str(error)
            log.error("kept blueprint %s: %s", self._blueprint.version, error)  # noqa: TRY400
        else:
            self._complaint = None
            self._failed.clear()
            self._watchman.forget()
            log.info("read blueprint %s", self._blueprint.version)

    def status(self) -> dict[str, object]:
        """Return the answer to GET /v1/status."""
        answer: dict[str, object] = {"ready": self._state is not None}
        if self._read_only:
            answer["read_only"] = self._read_only
        if self._complaint:
            answer["blueprint_error"] = self._complaint
        if self._trouble:
            answer["turn_error"] = self._trouble
        return answer if self._state is None else {**answer, **document(self._state)}

    def watchable(self) -> tuple[Path, ...]:
        """Return what the latest state depends on and no uevent tells of."""
        return paths_to_watch(self._host, self._settings, self._state) if self._state else ()

    def summary(self) -> str:
        """Return one line for the service manager."""
        units = self._state.units if self._state else ()
        states = [unit.state.value for unit in units]
        counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
        return f"blueprint {self._blueprint.version}: {counts or 'no units'}"

    def _not_yet(self) -> dict[str, Setback]:
        """Return the units whose last failure is too fresh to try again.

        A failed move makes events itself: without a pause the agent would chase them.
        """
        now = time.monotonic()
        return {unit: why for unit, (why, until) in self._failed.items() if until > now}

    def _remember(self, turn: Turn, hopeless: Mapping[str, Setback]) -> None:
        until = time.monotonic() + self._settings.rescan_interval_s
        self._failed = {
            unit: self._failed[unit]
            if unit in hopeless
            else (why, math.inf if why.is_final else until)
            for unit, why in turn.failed.items()
            if why.state is UnitState.FAILED  # who waits is tried as soon as something is heard
        }


def _log_changes(before: NodeState | None, after: NodeState) -> None:
    """Say once what changed for each unit; what failed was logged where it failed."""
    known = {unit.id: unit.state for unit in before.units} if before else {}
    for unit in after.units:
        if known.get(unit.id) is not unit.state:
            log.info("unit %s is %s: %s", unit.id, unit.state, unit.reason)
    for outcome in after.last_report.outcomes if before is None else ():
        if outcome.result is Result.SKIPPED:
            log.warning("skipped: %s: %s", outcome.step, outcome.detail)
