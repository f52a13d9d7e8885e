"""Keeps the ResourceSlices of one driver on this node what they should be.

In steady state nothing is written and one watch waits. What others do to our slices - kubelet
deletes them at its start, and when our driver was away for long - is put right after a while.

Source: k8s.io/dynamic-resource-allocation, resourceslicecontroller.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.model.kubernetes import Device, Door
from kata_gpu.model.slices import NodeIdentity, Object, Settled, SliceChanges
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import (
    ApiError,
    ExpiredError,
    NotFoundError,
    TooManyRequestsError,
)
from kata_gpu.publish.kubernetes.mirror import Mirror
from kata_gpu.publish.kubernetes.pacing import BackOff, Pacing
from kata_gpu.publish.kubernetes.watching import Watch

log = logging.getLogger(__name__)

_INDEXES: Final = re.compile(r"\[\d+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRules:
    """What to publish: pure functions of devices, of what is stored, and of the time."""

    settle: Callable[[Settled, Sequence[Device], float], Settled]
    plan: Callable[[str, NodeIdentity, Sequence[Device], Sequence[Object]], SliceChanges]
    differences: Callable[[Object, Object], Iterable[str]]
    """Names the fields in which a stored slice is not what was written."""


class SlicePublisher:
    """Publishes the devices of one driver; nothing before it is told of any."""

    def __init__(
        self,
        client: KubernetesClient,
        driver: str,
        node: str,
        rules: SliceRules,
        pacing: Pacing | None = None,
    ) -> None:
        self._client = client
        self._driver = driver
        self._node = node
        self._rules = rules
        self._pacing = pacing or Pacing()
        self._devices: tuple[Device, ...] | None = None
        self._settled = Settled()
        self._identity: NodeIdentity | None = None
        self._mirror = Mirror()
        self._truncated: dict[str, tuple[Object, Object]] = {}
        self._warned: set[str] = set()
        self._wake = asyncio.Event()
        self._is_wanted = False
        self._is_stale = False
        self._others_at_s: float | None = None
        self._not_before_s = 0.0
        self._reading = BackOff(self._pacing)
        self._writing = BackOff(self._pacing)

    @property
    def trouble(self) -> str | None:
        """Why what is published may not be what it should be; None when it is."""
        return self._writing.trouble or self._reading.trouble

    def update(self, devices: Sequence[Device]) -> None:
        """Have these devices published; those of other drivers and doors are passed over."""
        ours = tuple(d for d in devices if d.driver == self._driver and d.door is Door.DRA)
        if ours != self._devices:
            self._devices = ours
            self._is_wanted = True
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled; what is published then stays."""
        await asyncio.sleep(self._pacing.start_delay_s())
        while True:
            try:
                await self._look()
                self._is_wanted = True
                self._reading.works()
                await self._follow()
            except ApiError as error:
                await asyncio.sleep(self._reading.failed(error))

    async def _look(self) -> None:
        """Learn who this node is, and which slices it has now."""
        try:
            node = await self._client.get_node(self._node)
        except NotFoundError as error:
            raise NotFoundError(
                f"cannot publish ResourceSlices: the cluster has no node {self._node}; "
                f"set kubernetes.node_name in agent.toml"
            ) from error
        try:
            listing = await self._client.list_slices(self._driver, self._node)
        except NotFoundError as error:
            raise NotFoundError(
                "cannot publish ResourceSlices: the API server has no resource.k8s.io/v1; "
                "Kubernetes 1.34 and later have it, so use the device plugin here"
            ) from error
        self._identity = NodeIdentity(name=self._node, uid=str(node["metadata"]["uid"]))
        self._mirror.reset(listing.items, listing.version)
        self._is_stale = False

    async def _follow(self) -> None:
        """Hold the slices to the devices, one watch after another, until a list is needed."""
        while True:
            began_s = self._pacing.now()
            watch = self._client.watch_slices(
                self._driver,
                self._node,
                version=self._mirror.version,
                timeout_s=self._pacing.watch_timeout_s(),
                wake=self._wake.set,
            )
            try:
                await self._hold(watch)
            finally:
                watch.close()
            is_held = watch.is_begun and self._pacing.now() - began_s >= self._pacing.watch_held_s
            match watch.failure:
                case None:
                    self._reading.succeeded()
                case ExpiredError() as error:
                    raise error  # to list again, after a pause
                case error if is_held and not isinstance(error, TooManyRequestsError):
                    log.debug("begin again: %s", error)
                    self._reading.succeeded()
                    await asyncio.sleep(self._pacing.retry_delay_s())
                case error:
                    await asyncio.sleep(self._reading.failed(error))

    async def _hold(self, watch: Watch) -> None:
        while True:
            self._wake.clear()
            if watch.is_begun:
                self._reading.works()
            is_over = watch.is_over  # first: what is told before the end is taken
            for event in watch.take():
                self._reading.succeeded()
                if self._mirror.hear(event):
                    self._others_at_s = self._pacing.now() + self._pacing.sync_delay_s
            if is_over:
                return
            if self._is_due():
                await self._sync()
            await self._wait()

    def _is_due(self) -> bool:
        """Let taints settle, and tell whether there may be something to write."""
        if self._devices is None:
            return False
        now_s = self._pacing.now()
        settled = self._rules.settle(self._settled, self._devices, now_s)
        if settled.devices != self._settled.devices:
            self._is_wanted = True
        self._settled = settled
        if self._others_at_s is not None and self._others_at_s <= now_s:
            self._others_at_s = None
            self._is_wanted = True
        return self._is_wanted and now_s >= self._not_before_s

    async def _wait(self) -> None:
        """Wait until somebody calls, or something is due; nothing is before devices are known."""
        if self._devices is None:
            await self._wake.wait()
            return
        times = [self._others_at_s, self._settled.look_again_at_s]
        if self._is_wanted:
            times.append(self._not_before_s)
        until_s = min((t for t in times if t is not None), default=None)
        timeout_s = None if until_s is None else max(until_s - self._pacing.now(), 0.0)
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _sync(self) -> None:
        """Write what is missing; after a failure, try again later."""
        self._is_wanted = False
        try:
            if self._is_stale:
                await self._look()
            changes = self._plan()
            if changes.creates:  # what is not known to be there may be there all the same
                await self._look()
                changes = self._plan()
            await self._write(changes)
        except ApiError as error:
            self._is_wanted = True
            self._is_stale = not isinstance(error, TooManyRequestsError)
            self._not_before_s = self._pacing.now() + self._writing.failed(error)
        else:
            self._writing.succeeded()
            self._not_before_s = 0.0

    def _plan(self) -> SliceChanges:
        if self._identity is None:
            return SliceChanges()
        there = {str(found["metadata"]["uid"]) for found in self._mirror.objects}
        self._truncated = {uid: spec for uid, spec in self._truncated.items() if uid in there}
        stored = [self._as_meant(found) for found in self._mirror.objects]
        return self._rules.plan(self._driver, self._identity, self._settled.devices, stored)

    def _as_meant(self, found: Object) -> Object:
        """Return a slice as it was written, if all that it lacks are fields the server drops."""
        written = self._truncated.get(str(found["metadata"]["uid"]))
        if written is None or written[0] != found["spec"]:
            return found
        return {**found, "spec": written[1]}

    async def _write(self, changes: SliceChanges) -> None:
        for stored in changes.deletes:
            await self._delete(stored)
        for body in changes.replaces:
            self._learn(await self._client.replace_slice(body), body)
        for body in changes.creates:
            self._learn(await self._client.create_slice(body), body)
        if changes:
            log.info(
                "published %d devices of %s: %d slices created, %d replaced, %d deleted",
                len(self._settled.devices),
                self._driver,
                len(changes.creates),
                len(changes.replaces),
                len(changes.deletes),
            )

    async def _delete(self, stored: Object) -> None:
        try:
            await self._client.delete_slice(stored)
        except NotFoundError:
            log.debug("ResourceSlice %s is gone already", stored["metadata"]["name"])
        self._mirror.drop(stored)

    def _learn(self, stored: Object, written: Mapping[str, Any]) -> None:
        """Know what was stored; fields that the server dropped are warned of once."""
        self._mirror.keep(stored)
        uid = str(stored["metadata"]["uid"])
        lost = {_INDEXES.sub("", path) for path in self._rules.differences(stored, written)}
        if not lost:
            self._truncated.pop(uid, None)
            return
        self._truncated[uid] = (stored["spec"], written["spec"])
        new = sorted(lost - self._warned)
        self._warned |= lost
        if new:
            log.warning(
                "the API server does not keep %s of ResourceSlices; is a feature gate off?",
                ", ".join(new),
            )
