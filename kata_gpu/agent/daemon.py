"""The daemon: a turn at the start, at every hint of a change, and once in a while.

Turns run one after another in a worker thread; the event loop answers the status socket
meanwhile with the state the last turn left. The end of the daemon changes nothing on the
node: devices stay bound, files stay written, VMs run on.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kata_gpu import __version__
from kata_gpu.act.journal import Journal
from kata_gpu.agent import asking, node, succession, temporaries
from kata_gpu.agent.drift import Watchman
from kata_gpu.agent.hints import Reasons, Sources, Watching, listening, paths_to_watch
from kata_gpu.agent.node import Turn
from kata_gpu.agent.offered import Turned
from kata_gpu.agent.setbacks import Setbacks
from kata_gpu.errors import EndingError, HostError, KataGpuError, LedgerError
from kata_gpu.host import Host, systemd
from kata_gpu.host.detour import Guardian
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.report import NodeState, Report, Result
from kata_gpu.model.restraint import Setback
from kata_gpu.observe import metrics, server
from kata_gpu.observe.document import document
from kata_gpu.observe.metrics import Measures
from kata_gpu.settings.agent import Settings

if TYPE_CHECKING:
    from kata_gpu.agent.kubernetes import Publishing

log = logging.getLogger(__name__)

LoadBlueprint = Callable[[], Blueprint]

STATUS: Final = "/v1/status"
CLEAR: Final = "/v1/clear"
METRICS: Final = "/metrics"


async def run(
    host: Host,
    settings: Settings,
    load_blueprint: LoadBlueprint,
    sources: Sources,
    *,
    waits: bool = False,
    guardian: Guardian | None = None,
) -> None:
    """Hold the node to the blueprint until SIGTERM or SIGINT; SIGHUP reads it again.

    So does a change to its file. One that *waits* begins when the agent before it has ended.
    With a *guardian* Kata is led through this agent; without, it asks kubelet.

    Raises:
        HeldError: another agent holds this node, or serves the status socket.
        InvalidBlueprint: the blueprint is wrong; nothing was changed.
    """
    if waits:
        load_blueprint()  # what is wrong with it is said at once
    async with succession.alone(host.path(settings.lock), waits=waits):
        watching = Watching(sources)
        watching.follow(())  # first: no change between reading the blueprint and watching it
        asking.settle(host, settings)  # before a drop-in leads Kata there
        daemon = _Daemon(host, settings, load_blueprint, guardian)
        async with (
            server.serve(
                host.path(settings.socket),
                {STATUS: daemon.status, METRICS: daemon.metrics},
                commands={CLEAR: daemon.clear},
                mode=settings.socket_mode,
            ),
            _public(settings, daemon),
        ):
            with listening(sources, end=host.sysfs.give_up, hear=daemon.hear) as reasons:
                daemon.wake = reasons.wake.set
                await daemon.turn()
                gc.enable()  # the command line does without, and what was made so far stays
                if not reasons.stop.is_set():  # or there may be nothing to show
                    async with daemon.publishing():
                        summary = daemon.summary()
                        log.info("ready: %s", summary)
                        _notify(f"READY=1\nSTATUS={summary}")
                        await _turn_until_stopped(daemon, reasons, settings, watching)
            _notify("STOPPING=1")
    log.info("stopped; every device stays bound as it is")


@asynccontextmanager
async def _public(settings: Settings, daemon: "_Daemon") -> AsyncIterator[None]:
    """Let anybody read the metrics, where the settings say so."""
    if settings.metrics is None:
        yield
        return
    address, port = settings.metrics.address, settings.metrics.port
    async with server.serve_all(address, port, {METRICS: daemon.metrics}):
        log.info("metrics are served on %s port %d", address, port)
        yield


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
        log.debug("look again")
        if reasons.reload.is_set():
            reasons.reload.clear()
            await daemon.reload()
        opened = set(reasons.opened)
        reasons.opened.clear()
        await daemon.turn(opened)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


class _Daemon:
    """The state between turns: the blueprint in force, the ledger, and the latest answer."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        load_blueprint: LoadBlueprint,
        guardian: Guardian | None,
    ) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Asks for a turn soon."""

        self._host = host
        self._settings = settings
        self._load_blueprint = load_blueprint
        self._publishing = self._open_publishing(guardian)  # which takes a while
        self._blueprint = load_blueprint()
        self._journal: Journal | None = None
        self._read_only: str | None = None
        self._watchman = Watchman()
        self._setbacks = Setbacks()
        self._last_report = Report()
        self._number = 0
        self._has_read_modes = False
        self._state: NodeState | None = None
        self._complaint: str | None = None
        self._trouble: str | None = None
        self._turning = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._measures = Measures(version=__version__, state=None)

    async def turn(self, opened: Iterable[str] = ()) -> None:
        """Take one turn off the loop, and let readers have its state.

        *opened* are device nodes that somebody was seen to open. A node that cannot be looked
        at ends the first turn with the reason, for there is nothing to show yet; later the
        last state stays, with the reason beside it.
        """
        async with self._turning:
            await self._turn(opened)

    async def look(self) -> None:
        """Take a turn that begins after this call; those who ask meanwhile share it."""
        if self._next is None:
            self._next = asyncio.create_task(self._take_next())
        await asyncio.shield(self._next)

    async def _take_next(self) -> None:
        async with self._turning:
            self._next = None  # what is asked for from now on, this turn may not see
            await self._turn(())

    async def _turn(self, opened: Iterable[str]) -> None:
        self._number += 1
        hopeless = self._setbacks.fresh()
        units = self._units_of(opened)
        started_at = time.monotonic()
        try:
            turn = await asyncio.to_thread(self._take, hopeless, units)
        except EndingError as error:
            log.info("left turn %d: %s", self._number, error)
            return
        except KataGpuError as error:
            if self._state is None:
                raise
            self._trouble = str(error)
            failed = self._measures.failed_turns + 1
            self._measures = replace(self._measures, failed_turns=failed)
            log.error("skipped turn %d: %s", self._number, error)  # noqa: TRY400 - no bug
            return
        self._trouble = None
        self._setbacks.learn(turn.failed, hopeless, pause_s=self._settings.rescan_interval_s)
        if turn.taken:
            self._last_report = turn.report
        before = self._state
        self._state = self._describe(turn)
        self._watchman.learn(turn, self._state)
        self._measures = replace(
            self._measures,
            turn_s=time.monotonic() - started_at,
            operations=len(turn.inventory.operations),
            set_aside=len(turn.inventory.set_aside),
        )
        _log_changes(before, self._state)
        if self._publishing is not None:
            self._publish(self._publishing, turn, self._state)

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
        turn = node.converge(
            self._host,
            self._settings,
            self._blueprint,
            self._journal,
            failed={**hopeless, **self._watchman.contested()},
            opened=opened,
            kept=self._watchman.kept(self._blueprint.drift),
            claimed=None if self._publishing is None else self._publishing.claimed(),
        )
        if self._has_read_modes:
            return turn
        self._has_read_modes = True
        return node.read_modes(self._host, self._settings, self._blueprint, self._journal, turn)

    def _open_publishing(self, guardian: Guardian | None) -> "Publishing | None":
        if self._settings.kubernetes is None:
            return None
        from kata_gpu.agent.kubernetes import Publishing  # noqa: PLC0415 - grpc, for who serves

        kubernetes = self._settings.kubernetes
        return Publishing(
            self._host, self._settings, kubernetes, self.look, self._ask, guardian=guardian
        )

    def _ask(self) -> None:
        self.wake()  # which is known when the daemon listens

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Offer what there is to Kubernetes until the block ends, where the settings say so."""
        if self._publishing is None:
            yield
            return
        async with self._publishing.serve():
            yield

    def hear(self) -> None:
        """Pass on that something was heard, be it kubelet's socket."""
        if self._publishing is not None:
            self._publishing.hear()

    def _publish(self, publishing: "Publishing", turn: Turn, state: NodeState) -> None:
        cdi = self._settings.cdi_directory
        publishing.update(Turned.of(turn, state, self._blueprint, self._ledger, cdi_directory=cdi))

    @property
    def _ledger(self) -> Ledger:
        return Ledger() if self._journal is None else self._journal.ledger

    def _describe(self, turn: Turn) -> NodeState:
        return node.describe(
            turn,
            self._settings,
            self._blueprint,
            self._ledger,
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
        self._setbacks.forget(unit)
        await self.turn()
        units = self._state.units if self._state else ()
        return {"unit": unit, "state": next((u.state for u in units if u.id == unit), None)}

    async def reload(self) -> None:
        """Read the blueprint again; a wrong one is complained of, and the old one stays."""
        try:
            self._blueprint = await asyncio.to_thread(self._load_blueprint)
        except KataGpuError as error:
            self._complaint = str(error)
            log.error("kept blueprint %s: %s", self._blueprint.version, error)  # noqa: TRY400
        else:
            self._complaint = None
            self._setbacks.forget_all()
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
        if self._publishing is not None:
            answer["kubernetes"] = document(self._publishing.status())
        return answer if self._state is None else {**answer, **document(self._state)}

    async def metrics(self) -> server.Text:
        """Return the answer to GET /metrics, made off the loop: its import takes a while."""
        measures = replace(
            self._measures,
            state=self._state,
            turns=self._number,
            is_read_only=self._read_only is not None,
            is_outdated=self._complaint is not None,
            answered={} if self._publishing is None else dict(self._publishing.answered),
        )
        content = await asyncio.to_thread(metrics.render, measures)
        return server.Text(content=content, kind=metrics.CONTENT_TYPE)

    def watchable(self) -> tuple[Path, ...]:
        """Return what the latest state depends on and no uevent tells of."""
        return paths_to_watch(self._host, self._settings, self._state) if self._state else ()

    def summary(self) -> str:
        """Return one line for the service manager."""
        units = self._state.units if self._state else ()
        states = [unit.state.value for unit in units]
        counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
        return f"blueprint {self._blueprint.version}: {counts or 'no units'}"


def _log_changes(before: NodeState | None, after: NodeState) -> None:
    """Say once what changed for each unit; what failed was logged where it failed."""
    known = {unit.id: unit.state for unit in before.units} if before else {}
    for unit in after.units:
        if known.get(unit.id) is not unit.state:
            log.info("unit %s is %s: %s", unit.id, unit.state, unit.reason)
    for outcome in after.last_report.outcomes if before is None else ():
        if outcome.result is Result.SKIPPED:
            log.warning("skipped: %s: %s", outcome.step, outcome.detail)
