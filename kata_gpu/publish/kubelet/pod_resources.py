"""kubelet's PodResources API on a socket of ours, with the DRA devices where Kata looks for them.

Kata asks for a pod's devices when it makes the VM, and reads those of device plugins alone. Here
it gets kubelet's answer, and ours beside it. What has nothing of ours in it goes through byte by
byte; an error of kubelet's keeps its code and its words.

What always holds:

- kubelet is asked no faster than `pace` says, and once for those who ask the same at a time;
- an answer that was given before is given again while kubelet cannot be reached, for a short
  time, and never for a pod that kubelet says is not there.

Source: kubelet's PodResources server; `sockets` has the size limit.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message

from kata_gpu.publish.kubelet import kata_devices, sockets
from kata_gpu.publish.kubelet.kata_devices import Ours
from kata_gpu.publish.kubelet.pace import Pace
from kata_gpu.publish.kubelet.protos import pod_resources_v1_pb2 as api
from kata_gpu.publish.kubelet.sockets import Client, Context, Service

log = logging.getLogger(__name__)

Look = Callable[[], Ours | None]
"""What is ours by now; None to pass everything through, as where Kata reads DRA itself."""

_SERVICE: Final = "PodResourcesLister"
_UNREACHED: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_PASSING: Final = frozenset(
    {*_UNREACHED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
)
"""Errors that say nothing about the pod."""

_SENDING_S: Final = 0.05
"""Before who asks gives up: an answer that crosses its end on the way is a traceback of grpc's."""

_ANSWER_MAX_BYTES: Final = 65536  # of one pod; a bigger one is not kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long kubelet is waited for, and how long its answers are kept."""

    deadline_s: float = 10.0
    """As long as runtime-rs waits for us."""

    known_deadline_s: float = 3.0
    """The same for a pod whose answer is kept: who asks must not give up before we fall back."""

    kept_s: float = 60.0
    """A restart of kubelet takes seconds; a name may be another pod's a while later."""

    kept_max: int = 1000
    grace_s: float = 1.0
    """For those who are being answered when we end: who is cut off starts no pod."""


@asynccontextmanager
async def serve(
    path: Path,
    kubelet: Path,
    look: Look,
    *,
    limits: Limits = Limits(),
    pace: Pace | None = None,
) -> AsyncIterator["Proxy"]:
    """Answer on the socket at *path* for kubelet's at *kubelet*, until the block ends.

    kubelet need not be there.

    Raises:
        HostError: a path is too long, or the socket cannot be made there.
    """
    async with contextlib.AsyncExitStack() as stack:
        client = Client(kubelet)
        stack.push_async_callback(client.close)
        proxy = Proxy(client, look, limits, pace or Pace())
        stack.push_async_callback(proxy.stop)
        service = Service(
            api,
            _SERVICE,
            {
                "Get": proxy.get,
                "List": proxy.list,
                "GetAllocatableResources": proxy.get_allocatable_resources,
            },
        )
        await stack.enter_async_context(
            sockets.serve(path, service, mode=0o600, grace_s=limits.grace_s)
        )
        yield proxy


class _RefusedError(Exception):
    """kubelet gave no answer, in words for who asked."""

    def __init__(self, code: Any, details: str, metadata: Any = ()) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.metadata = metadata


class Proxy:
    """Who answers."""

    def __init__(self, client: Client, look: Look, limits: Limits, pace: Pace) -> None:
        self._client = client
        self._look = look
        self._limits = limits
        self._pace = pace
        self._kept = _Kept(limits)
        self._asking: dict[tuple[str, bytes, int], asyncio.Task[bytes]] = {}
        self._epoch = 0
        """Counts when devices changed hands: an older answer is no answer to a newer question."""

        self._is_reached = True
        self.answered: Counter[str] = Counter()
        """Answers by whose they were: "kubelet", "kept", or "none" for an error."""

    async def get(self, request: Message, context: Context) -> bytes:
        """Answer for one pod."""
        key, epoch = request.SerializeToString(deterministic=True), self._epoch
        try:
            answer = await self._ask("Get", request, context)
        except _RefusedError as error:
            if error.code not in _PASSING:
                self._kept.forget(key)
            kept = self._kept.get(key) if error.code in _UNREACHED else None
            if kept is None:
                return await self._abort(error, context)
            self.answered["kept"] += 1
            answer = kept
        else:
            if epoch == self._epoch:
                self._kept.put(key, answer)
        return self._with_ours(api.GetPodResourcesResponse, answer)

    async def list(self, request: Message, context: Context) -> bytes:
        """Answer for all pods."""
        answer = await self._ask_or_abort("List", request, context)
        return self._with_ours(api.ListPodResourcesResponse, answer)

    async def get_allocatable_resources(self, request: Message, context: Context) -> bytes:
        """Answer for the node: it has no DRA devices in it, and gets none."""
        return await self._ask_or_abort("GetAllocatableResources", request, context)

    def forget(self) -> None:
        """Give no answer a second time; to be called when a device was given to a pod, or taken.

        A new pod of an old name would get the devices of the old one.
        """
        self._epoch += 1
        self._kept.clear()

    async def stop(self) -> None:
        """Ask no more."""
        tasks = tuple(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_or_abort(self, method: str, request: Message, context: Context) -> bytes:
        try:
            return await self._ask(method, request, context)
        except _RefusedError as error:
            return await self._abort(error, context)

    async def _ask(self, method: str, request: Message, context: Context) -> bytes:
        """Return kubelet's answer; share the question with who asks the same now."""
        key = (method, request.SerializeToString(deterministic=True), self._epoch)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._forward(method, request, key[1]))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._end(key, done))
        left_s = context.time_remaining()  # None for who waits for ever
        try:
            async with asyncio.timeout(None if left_s is None else left_s - _SENDING_S):
                answer = await asyncio.shield(task)  # who gives up does so alone
        except TimeoutError:
            raise self._late() from None
        self.answered["kubelet"] += 1
        return answer

    def _end(self, key: tuple[str, bytes, int], done: "asyncio.Task[bytes]") -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # those who wait have it; where none does, nobody misses it

    async def _forward(self, method: str, request: Message, key: bytes) -> bytes:
        is_known = method == "Get" and self._kept.get(key) is not None
        limit_s = self._limits.known_deadline_s if is_known else self._limits.deadline_s
        wait_s = self._pace.take(within_s=limit_s)
        if wait_s is None:
            raise self._late()
        await asyncio.sleep(wait_s)
        try:
            answer = await self._client.forward(
                api,
                f"{_SERVICE}.{method}",
                request,
                timeout_s=max(limit_s - wait_s, 0.1),
                waits=not is_known,
            )
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
            self._note(reached=code not in _UNREACHED, why=details)
            raise _RefusedError(code, details, error.trailing_metadata() or ()) from error
        self._note(reached=True)
        return answer

    def _note(self, *, reached: bool, why: str | None = None) -> None:
        """Say once that kubelet cannot be reached, and once that it can."""
        if reached == self._is_reached:
            return
        self._is_reached = reached
        if reached:
            log.info("kubelet answers on %s again", self._client.path)
        else:
            log.warning("kubelet does not answer on %s: %s", self._client.path, why)

    async def _abort(self, error: _RefusedError, context: Context) -> bytes:
        self.answered["none"] += 1
        await context.abort(error.code, error.details, error.metadata)
        raise AssertionError("an abort raises")

    def _late(self) -> _RefusedError:
        return _RefusedError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"cannot ask kubelet on {self._client.path}: it would take too long; try again",
        )

    def _with_ours(self, kind: Any, answer: bytes) -> bytes:
        """Return an answer with our devices; as it came, when there are none in it."""
        ours = self._look()
        if ours is None:
            return answer
        try:
            message = kind.FromString(answer)
        except DecodeError as error:
            log.warning("passed on an answer of kubelet's that cannot be read: %s", error)
            return answer
        found = message.pod_resources
        is_one = isinstance(found, api.PodResources)
        added = [kata_devices.add(pod, ours) for pod in ((found,) if is_one else found)]
        if is_one:
            _complain(found, ours)
        changed: bytes = message.SerializeToString() if any(added) else answer
        return changed


def _complain(pod: Any, ours: Ours) -> None:
    for device in kata_devices.nameless(pod, ours):
        log.warning(
            "pod %s/%s has device %s, which has no CDI name: its VM does not get it",
            *(pod.namespace, pod.name, device),
        )


class _Kept:
    """The last good answer for each pod: only so many, and only for so long."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._answers: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def put(self, key: bytes, answer: bytes) -> None:
        self.forget(key)
        if len(answer) <= _ANSWER_MAX_BYTES:
            self._answers[key] = (answer, time.monotonic() + self._limits.kept_s)
        if len(self._answers) > self._limits.kept_max:
            self._answers.popitem(last=False)

    def get(self, key: bytes) -> bytes | None:
        answer, until = self._answers.get(key, (None, 0.0))
        return answer if until > time.monotonic() else None

    def clear(self) -> None:
        self._answers.clear()

    def forget(self, key: bytes) -> None:
        self._answers.pop(key, None)
