"""Events of this node's units, for ``kubectl describe node``: few, and never a flood.

An Event is about the Node and, by its field path, about one unit. What happens again is
counted, and told at most once in a minute by the series of the Event that is there.

Source: events.k8s.io/v1; k8s.io/client-go/tools/events.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from kata_gpu.model.report import NodeState
from kata_gpu.model.slices import NodeIdentity, Object
from kata_gpu.model.unit import UnitState
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import ApiError, NotFoundError, TooManyRequestsError
from kata_gpu.publish.kubernetes.pacing import BackOff, Pacing

log = logging.getLogger(__name__)

CONTROLLER: Final = "kata-gpu.io/agent"
NAMESPACE: Final = "default"
"""Where Events about what has no namespace are."""

NOTE_MAX_BYTES: Final = 1024
WORD_MAX: Final = 128
_NAME_MAX: Final = 253
SAME_EVERY_S: Final = 60.0
"""How often the same may be told."""

BURST: Final = 25
REFILL_S: Final = 60.0
"""In which time one more may be told, when as many as :data:`BURST` were."""

FORGET_S: Final = 600.0
"""What did not happen for so long is told as something new."""

_KEYS_MAX: Final = 1024
_REFUSED: Final = range(400, 500)

_TOLD: Final = {
    UnitState.QUARANTINED: ("UnitQuarantined", "Clean"),
    UnitState.STUCK: ("UnitStuck", "Move"),
    UnitState.FAILED: ("UnitFailed", "Move"),
    UnitState.FOREIGN: ("UnitForeign", "Observe"),
}
_USABLE: Final = frozenset({UnitState.AVAILABLE, UnitState.IN_USE, UnitState.HOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that happened to a unit, in the words of an Event."""

    unit: str
    reason: str
    action: str
    note: str
    is_warning: bool


def happenings(before: NodeState | None, after: NodeState) -> Iterator[Happening]:
    """Return what is worth telling of the way from *before* to *after*."""
    known = {unit.id: unit.state for unit in before.units} if before else {}
    for unit in after.units:
        old = known.get(unit.id)
        if old is unit.state:
            continue
        if unit.state in _TOLD:
            reason, action = _TOLD[unit.state]
            note = f"unit {unit.id} is {unit.state}: {unit.reason}"
            yield Happening(unit=unit.id, reason=reason, action=action, note=note, is_warning=True)
        elif old in _TOLD and unit.state in _USABLE:
            yield Happening(
                unit=unit.id,
                reason="UnitAvailable",
                action="Observe",
                note=f"unit {unit.id} is {unit.state} again, was {old}",
                is_warning=False,
            )


_Key = tuple[str, str, str]


@dataclass(slots=True, kw_only=True)
class _Series:
    """One kind of happening: how often it was, and how much of that was told."""

    first: Happening
    count: int = 0
    told: int = 0
    name: str | None = None
    """Of the Event; None before there is one."""

    seen_at: datetime
    seen_s: float
    not_before_s: float


class EventPublisher:
    """Tells the API server what happened; what it refuses is not told."""

    def __init__(self, client: KubernetesClient, node: str, pacing: Pacing | None = None) -> None:
        self._client = client
        self._node = node
        self._pacing = pacing or Pacing()
        self._series: dict[_Key, _Series] = {}
        self._tokens = float(BURST)
        self._filled_s = self._pacing.now()
        self._wake = asyncio.Event()
        self._back_off = BackOff(self._pacing)

    @property
    def trouble(self) -> str | None:
        """Why something that happened is not told; None when it is."""
        return self._back_off.trouble

    def report(self, found: Iterable[Happening]) -> None:
        """Have it told soon, or counted if the same was told just now."""
        now_s = self._pacing.now()
        for happening in found:
            key = (happening.unit, happening.reason, happening.action)
            series = self._series.get(key)
            if series is None or self._is_old(series, now_s):
                if series is None and len(self._series) >= _KEYS_MAX:
                    log.debug("not told: %s", happening.note)
                    continue
                series = _Series(
                    first=happening, seen_at=datetime.now(UTC), seen_s=now_s, not_before_s=now_s
                )
                self._series[key] = series
            series.count += 1
            series.seen_at, series.seen_s = datetime.now(UTC), now_s
        self._wake.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        await asyncio.sleep(self._pacing.start_delay_s())
        while True:
            self._wake.clear()
            try:
                await self._tell_what_is_due()
            except ApiError as error:
                await asyncio.sleep(self._back_off.failed(error))
                continue
            await self._wait()

    async def _tell_what_is_due(self) -> None:
        now_s = self._pacing.now()
        self._refill(now_s)
        self._forget(now_s)
        for series in [s for s in self._series.values() if s.count > s.told]:
            if series.not_before_s > now_s or self._tokens < 1:
                continue
            await self._tell(series)
            self._tokens -= 1
            series.not_before_s = now_s + SAME_EVERY_S
            self._back_off.succeeded()

    async def _tell(self, series: _Series) -> None:
        count = series.count
        try:
            if series.name is not None:
                await self._repeat(series)
            else:
                await self._create(series)
        except TooManyRequestsError:
            raise
        except ApiError as error:
            if error.status not in _REFUSED:
                raise
            log.warning("%s; not told: %s", error, series.first.note)
        series.told = count

    async def _create(self, series: _Series) -> None:
        node = await self._client.get_node(self._node)  # which may have been made anew
        identity = NodeIdentity(name=self._node, uid=str(node["metadata"]["uid"]))
        body = event(series.first, identity, series.seen_at)
        if series.count > 1:
            body = {**body, "series": _repeated(series)}
        made = await self._client.create_event(body)
        series.name = str(made["metadata"]["name"])

    async def _repeat(self, series: _Series) -> None:
        try:
            await self._client.patch_event(
                NAMESPACE, series.name or "", {"series": _repeated(series)}
            )
        except NotFoundError:  # Events are kept for an hour or so
            series.name = None
            await self._create(series)

    async def _wait(self) -> None:
        now_s = self._pacing.now()
        waiting = [s.not_before_s for s in self._series.values() if s.count > s.told]
        timeout_s = max(min(waiting) - now_s, 0.0) if waiting else None
        if timeout_s is not None and self._tokens < 1:
            timeout_s = max(timeout_s, REFILL_S * (1 - self._tokens))
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _refill(self, now_s: float) -> None:
        self._tokens = min(self._tokens + (now_s - self._filled_s) / REFILL_S, float(BURST))
        self._filled_s = now_s

    def _forget(self, now_s: float) -> None:
        for key, series in tuple(self._series.items()):
            if self._is_old(series, now_s):
                del self._series[key]

    def _is_old(self, series: _Series, now_s: float) -> bool:
        return series.count == series.told and now_s - series.seen_s > FORGET_S


def _repeated(series: _Series) -> Object:
    return {"count": series.count, "lastObservedTime": _micro_time(series.seen_at)}


def event(happening: Happening, node: NodeIdentity, at: datetime) -> Object:
    """Return the Event that tells of *happening*."""
    suffix = f".{os.urandom(8).hex()}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": node.name[: _NAME_MAX - len(suffix)].rstrip("-.") + suffix,
            "namespace": NAMESPACE,
        },
        "eventTime": _micro_time(at),
        "reportingController": CONTROLLER,
        "reportingInstance": f"kata-gpu-{node.name}"[:WORD_MAX],
        "action": happening.action[:WORD_MAX],
        "reason": happening.reason[:WORD_MAX],
        "regarding": {
            "apiVersion": "v1",
            "kind": "Node",
            "name": node.name,
            "uid": node.uid,
            "fieldPath": f"units{{{happening.unit}}}",
        },
        "note": happening.note.encode(errors="replace")[:NOTE_MAX_BYTES].decode(errors="ignore"),
        "type": "Warning" if happening.is_warning else "Normal",
    }


def _micro_time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
