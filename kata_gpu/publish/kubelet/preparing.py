"""Claims are prepared and unprepared: whose a device is, and that it is there for a VM.

- A claim has all of its devices or none; what was begun for one that fails is undone.
- What was prepared is answered again as it was, without asking anybody.
- Nothing is kept between calls but the checkpoint: the next call may be another agent's.
- A wait ends with its caller's patience, the work does not: the caller that comes again finds it.

Order: the claim is recorded before its units are brought to VFIO, and completed after; its
record is removed before they are let go, as the agent brings whatever a record names.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from kata_gpu.errors import HeldError, KataGpuError
from kata_gpu.host import locks
from kata_gpu.model.kubernetes import Device, Door
from kata_gpu.publish.kubelet import allocation, claim_changes
from kata_gpu.publish.kubelet.allocation import AllocatedDevice
from kata_gpu.publish.kubelet.checkpoint import Checkpoint
from kata_gpu.publish.kubelet.device_metadata import DeviceMetadata
from kata_gpu.publish.kubelet.news import News
from kata_gpu.publish.kubelet.prepared import (
    ClaimName,
    Home,
    PreparedClaim,
    PreparedDevice,
    Progress,
)

log = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 0.25
"""How often another agent's record is looked at while a claim waits for it."""

Units = frozenset[str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What the rest of the agent does for a driver."""

    get_claim: Callable[[str, str], Awaitable[Mapping[str, Any] | None]]
    """Namespace and name → the ResourceClaim; None where there is none. KataGpuError."""

    devices: Callable[[], Mapping[str, Device]]
    """Every device of the driver as the last turn left it, by name."""

    bring: Callable[[Units], Awaitable[Mapping[str, Device]]]
    """Take a turn that has every claimed unit on VFIO; return the devices after it.

    The turn begins after the call: one that runs already may not know of the claim. Calls that
    come together may share one. KataGpuError when one of these units did not get there.
    """

    let_go: Callable[[Units], Awaitable[object]]
    """Take a turn that gives back what no claim has; KataGpuError when it could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long callers wait."""

    call_s: float = 40.0
    """For an answer: kubelet gives a call 45 s, and comes again after 60 to 90 s."""

    settle_s: float = 10.0
    """For a device that is still another's, or not healthy yet: its last pod may just have gone."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A claim that is being prepared."""

    task: asyncio.Task[PreparedClaim | None]
    abandoned: asyncio.Event


class _NotYetError(KataGpuError):
    """It may be another thing in a moment, without anybody's doing."""


class Preparer:
    """Prepares the claims of one driver on this node; close it after its last use."""

    def __init__(
        self,
        home: Home,
        checkpoint: Checkpoint,
        agent: Agent,
        *,
        news: News,
        patience: Patience,
        metadata: DeviceMetadata,
    ) -> None:
        self._home = home
        self._checkpoint = checkpoint
        self._agent = agent
        self._news = news
        self._patience = patience
        self._metadata = metadata
        self._jobs: dict[str, _Job] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def prepare(self, claim: ClaimName) -> PreparedClaim | None:
        """Return what kubelet is answered; None for a claim without a device of this driver.

        Raises:
            KataGpuError: it cannot be prepared, or not in the time there is: then the work
                goes on, and the next call finds it.
        """
        done = self._checkpoint.claims().get(claim.uid)
        job = self._jobs.get(claim.uid)
        is_at_rest = job is None and claim.uid not in self._turns  # it may be leaving
        if is_at_rest and done is not None and done.progress is Progress.COMPLETED:
            return done
        if job is None or job.abandoned.is_set():
            abandoned = asyncio.Event()
            job = _Job(self._start(lambda: self._prepare(claim, abandoned)), abandoned)
            self._jobs[claim.uid] = job
            job.task.add_done_callback(lambda task: self._forget_job(claim.uid, task))
        return await self._wait(job.task, f"preparing claim {claim.uid}")

    async def unprepare(self, claim: ClaimName) -> None:
        """Take the claim's devices from it; one that is unknown has none. No API is asked.

        Raises:
            KataGpuError: it cannot be done, or not in the time there is: try again.
        """
        job = self._jobs.get(claim.uid)
        if job is not None:
            job.abandoned.set()
        turn = self._turn(claim.uid)  # from now on: who prepares it next comes after
        await self._wait(
            self._start(lambda: self._unprepare(claim.uid, turn)), f"unpreparing {claim.uid}"
        )

    async def reconcile(self) -> None:
        """Unprepare what a dead agent began to prepare for claims that are gone since.

        Raises:
            KataGpuError: the checkpoint, or the API server, cannot be read.
        """
        for prepared in tuple(self._checkpoint.claims().values()):
            claim = prepared.claim
            if prepared.progress is Progress.COMPLETED or claim.uid in self._jobs:
                continue
            if self._is_anothers(prepared) or await self._is_there(claim):
                continue
            log.warning("claim %s was deleted while it was prepared: undo it", claim.uid)
            await self.unprepare(claim)

    async def close(self) -> None:
        """End the work; what was begun is in the checkpoint, and the next agent's to undo."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Waiting

    def _start(self, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        task = asyncio.create_task(_guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("%s", error)

    async def _wait(self, task: asyncio.Task[T], what: str) -> T:
        """Return what *task* does; it goes on when nobody waits for it any longer."""
        await asyncio.wait({task}, timeout=self._patience.call_s)
        if not task.done():
            raise KataGpuError(
                f"cannot answer yet: still {what} after {self._patience.call_s:g} s; the work goes "
                f"on, and kubelet asks again"
            )
        if task.cancelled():
            raise KataGpuError("cannot answer: the agent ends; kubelet asks the next one")
        return task.result()

    def _forget_job(self, uid: str, task: asyncio.Task[Any]) -> None:
        job = self._jobs.get(uid)
        if job is not None and job.task is task:
            del self._jobs[uid]

    def _turn(self, uid: str) -> asyncio.Lock:
        """Return what whoever works on a claim holds meanwhile."""
        return self._turns.setdefault(uid, asyncio.Lock())

    # Preparing

    async def _prepare(self, claim: ClaimName, abandoned: asyncio.Event) -> PreparedClaim | None:
        async with self._turn(claim.uid):
            found = await self._in_time(lambda: self._settled(claim.uid), abandoned)
            if found is not None:
                return found
            obj = await self._agent.get_claim(claim.namespace, claim.name)
            wanted = allocation.devices(obj, claim, driver=self._home.driver)
            if obj is None or not wanted:
                return None
            begun = await self._in_time(lambda: self._settled_or_begun(claim, wanted), abandoned)
            if begun.progress is Progress.COMPLETED:
                return begun
            try:
                return await self._bring(begun, obj, abandoned)
            except KataGpuError:
                await self._undo(begun)
                raise

    async def _settled(self, uid: str) -> PreparedClaim | None:
        """Return the claim if it is completed; nothing of it is left where it was begun."""
        found = self._checkpoint.claims().get(uid)
        if found is None or found.progress is Progress.COMPLETED:
            return found
        if self._is_anothers(found):
            raise _NotYetError("cannot prepare the claim: another agent of this node is at it")
        log.warning("an agent ended while it prepared claim %s: undo it first", uid)
        await self._forget(found)
        await self._let_go(found.units)
        return None

    async def _settled_or_begun(
        self, claim: ClaimName, wanted: tuple[AllocatedDevice, ...]
    ) -> PreparedClaim:
        return await self._settled(claim.uid) or await self._begin(claim, wanted)

    async def _begin(self, claim: ClaimName, wanted: tuple[AllocatedDevice, ...]) -> PreparedClaim:
        """Record the claim: completed, when nothing has to be done for it."""
        now = self._agent.devices()
        devices = [self._usable(now, one) for one in wanted]
        is_brought = any(device.on_claim or not device.is_ready for device in devices)
        is_done = not is_brought and not self._metadata.is_wanted
        prepared = PreparedClaim(
            claim=claim,
            progress=Progress.COMPLETED if is_done else Progress.STARTED,
            owner=self._home.agent,
            is_brought=is_brought,
            devices=tuple(map(_prepared, wanted, devices)),
        )
        await self._checkpoint.update(claim_changes.adding(prepared, self._checkpoint.elsewhere))
        if is_done:
            log.info("prepared claim %s: %s", claim.uid, _told(prepared))
        return prepared

    def _usable(self, now: Mapping[str, Device], wanted: AllocatedDevice) -> Device:
        device = now.get(wanted.device)
        if device is None or wanted.pool != self._home.pool or not self._is_ours(device):
            raise _NotYetError(
                f"cannot prepare device {wanted.device} of pool {wanted.pool}: this node has none "
                f"such now"
            )
        objection = wanted.config.objection(device.attributes)
        if objection is not None:
            raise KataGpuError(f"cannot prepare device {device.name}: {objection}")
        if not device.is_healthy:
            raise _NotYetError(f"cannot prepare device {device.name}: {device.reason}")
        if device.is_in_use:
            raise _NotYetError(
                f"cannot prepare device {device.name}: an earlier VM has it still: {device.reason}"
            )
        return device

    def _is_ours(self, device: Device) -> bool:
        return device.door is Door.DRA and device.driver == self._home.driver

    async def _bring(
        self, begun: PreparedClaim, obj: Mapping[str, Any], abandoned: asyncio.Event
    ) -> PreparedClaim:
        now = self._agent.devices()
        if begun.is_brought:
            now = await self._agent.bring(begun.units)
        if abandoned.is_set():
            raise KataGpuError("cannot prepare the claim: it was unprepared meanwhile")
        for one in begun.devices:
            device = now.get(one.device)
            if device is None or not (device.is_ready and device.is_healthy):
                reason = "it is gone" if device is None else device.reason
                raise KataGpuError(f"cannot prepare device {one.device}: {reason}")
        done = replace(begun, progress=Progress.COMPLETED)
        if self._metadata.is_wanted:
            done = await asyncio.to_thread(self._metadata.write, done, now, obj)
        await self._checkpoint.update(claim_changes.completing(done))
        log.info("prepared claim %s: %s", done.claim.uid, _told(done))
        return done

    async def _in_time(self, attempt: Callable[[], Awaitable[T]], abandoned: asyncio.Event) -> T:
        """Return what *attempt* does, tried again while it may come right by itself."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._patience.settle_s
        while True:
            change = self._news.next()
            try:
                return await attempt()
            except (_NotYetError, HeldError):
                left_s = ends_at - loop.time()
                if abandoned.is_set() or left_s <= 0:
                    raise
            await change.wait(timeout_s=min(left_s, _LOOK_AGAIN_S))

    def _is_anothers(self, prepared: PreparedClaim) -> bool:
        """Tell whether an agent that lives prepares it, and is not this one."""
        if prepared.owner == self._home.agent:
            return False
        return locks.is_held(self._home.lock_of(prepared.owner))

    async def _is_there(self, claim: ClaimName) -> bool:
        found = await self._agent.get_claim(claim.namespace, claim.name)
        metadata = None if found is None else found.get("metadata")
        return isinstance(metadata, Mapping) and metadata.get("uid") == claim.uid

    # Undoing

    async def _undo(self, begun: PreparedClaim) -> None:
        """Leave nothing of what was begun; what cannot be undone is in the checkpoint still."""
        try:
            await self._forget(begun)
        except KataGpuError as error:
            log.warning("claim %s stays half prepared: %s", begun.claim.uid, error)
            return
        await self._let_go(begun.units)

    async def _unprepare(self, uid: str, turn: asyncio.Lock) -> None:
        async with turn:
            found = self._checkpoint.claims().get(uid)
            if found is None:
                return
            await self._forget(found)
            log.info("unprepared claim %s: %s", uid, _told(found))
            if found.is_brought:
                await self._let_go(found.units)
            else:
                self._start(lambda: self._let_go(found.units))

    async def _forget(self, prepared: PreparedClaim) -> None:
        if self._metadata.may_be_there(prepared):
            if prepared.progress is Progress.COMPLETED:  # or it is answered without what goes now
                begun = replace(prepared, progress=Progress.STARTED, owner=self._home.agent)
                await self._checkpoint.update(claim_changes.reopening(prepared, begun))
                prepared = begun
            try:
                await asyncio.to_thread(self._metadata.remove, prepared)
            except KataGpuError as error:  # it names this claim's uid, and so nobody's after it
                log.warning("%s; it is removed at the agent's next start", error)
        await self._checkpoint.update(claim_changes.removing(prepared))
        self._news.tell()

    async def _let_go(self, units: Units) -> None:
        """Have units given back; what cannot be now, the agent's next turns try again."""
        try:
            await self._agent.let_go(units)
        except KataGpuError as error:
            log.warning("cannot give %s back yet: %s", ", ".join(sorted(units)), error)


async def _guarded(work: Callable[[], Awaitable[T]]) -> T:
    """Turn what must not happen into an answer, and say where it did."""
    try:
        return await work()
    except KataGpuError:
        raise
    except Exception as error:
        log.exception("a bug: a claim cannot be handled")
        raise KataGpuError(
            f"cannot handle the claim: {type(error).__name__}; the agent's log says where"
        ) from error


def _prepared(wanted: AllocatedDevice, device: Device) -> PreparedDevice:
    return PreparedDevice(
        requests=wanted.requests,
        pool=wanted.pool,
        device=wanted.device,
        units=device.units,
        cdi_names=device.cdi_names,
    )


def _told(prepared: PreparedClaim) -> str:
    return ", ".join(device.device for device in prepared.devices)
