"""Keep a device plugin registered with kubelet, whatever becomes of either.

Kubelet forgets us in three ways. When it starts, it removes every socket from its directory
and makes a new one of its own. When it loses the connection to any plugin of a resource, it may
drop whichever is registered for that resource by then: also us, for the stream of an agent that
was killed. And its directory may be replaced. None of it is told to us, so this is compared, at
each wake-up: whether kubelet's socket and our own are those they were, and whether a
ListAndWatch has ended since we registered.

There is one agent on a node, who holds its lock: any other socket of a resource is left by one
that was killed, and is removed.

Source: kubelet's pkg/kubelet/cm/devicemanager, plugin/v1beta1/handler.go.
"""

import asyncio
import contextlib
import logging
import random
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc

from kata_gpu.errors import HostError
from kata_gpu.host import listeners
from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.device_plugin import DevicePlugin, socket_prefix
from kata_gpu.publish.kubelet.protos import device_plugin_v1beta1_pb2 as pb

log = logging.getLogger(__name__)

VERSION: Final = "v1beta1"
KUBELET_SOCKET: Final = "kubelet.sock"

_REGISTER_TIMEOUT_S: Final = 15.0  # kubelet itself takes 10 s to dial us before it answers
_PAUSE_MIN_S: Final = 0.2
_PAUSE_MAX_S: Final = 10.0  # kubelet reports its node's capacity as often
_STEADY_S: Final = 30.0
_SUFFIX: Final = re.compile(r"([0-9a-z]{1,32})\.sock")
_RANDOM: Final = random.SystemRandom()

Identity = tuple[int, int, int]
"""Device, inode and change time: a new file at a path may have the old one's inode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things may take to be found out without a word of them."""

    poll_s: float = 5.0
    """Between two looks at the sockets; 10 s are enough where hints tell of the directory."""

    watch_s: float = 10.0
    """Until kubelet must have called ListAndWatch, which it does as soon as it knows us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationState:
    """Whether kubelet knows a resource."""

    resource: str
    registered_at: datetime | None = None
    """UTC; None while kubelet does not know it."""

    count: int = 0
    """How often it was registered since the agent's start."""

    problem: str | None = None
    """Why it is not registered now, or was not before; None when all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What was when kubelet registered us."""

    kubelet: Identity
    begun: int
    ended: int
    at_s: float


@dataclass(slots=True, kw_only=True)
class _Patience:
    """When to try again."""

    failures: int = 0
    until_s: float = 0.0

    def reset(self) -> None:
        self.failures, self.until_s = 0, 0.0

    def grow(self) -> None:
        pause_s = min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2 ** min(self.failures, 10))
        self.failures += 1
        self.until_s = time.monotonic() + pause_s * _RANDOM.uniform(0.75, 1.0)


class Registration:
    """Serves one plugin and keeps it registered, as long as :meth:`keep` runs."""

    def __init__(self, plugin: DevicePlugin, pace: Pace) -> None:
        self.state = RegistrationState(resource=plugin.resource)
        self._plugin = plugin
        self._pace = pace
        self._kubelet = plugin.directory / KUBELET_SOCKET
        self._known: _Known | None = None
        self._tried: Identity | None = None
        self._patience = _Patience()
        self._woken = asyncio.Event()
        plugin.on_stream = self.hear

    def hear(self) -> None:
        """Look at the sockets now: something in kubelet's directory may have changed."""
        self._woken.set()

    async def keep(self) -> None:
        """Serve the plugin and have it registered until cancelled; the socket is gone then."""
        while True:
            try:
                self._require_directory()
                self._sweep()
                async with sockets.serve(self._plugin.socket, self._plugin.service):
                    await self._while_served()
                self._patience.grow()
                self._forget("its socket was removed; a new one is made")
            except (HostError, OSError) as error:
                self._forget(str(error), logging.WARNING)
                self._patience.grow()
                await self._rest()

    async def _while_served(self) -> None:
        """Register whenever it is needed; return when the socket is not ours any more."""
        own = _identity(self._plugin.socket)
        if own is None:
            raise HostError(
                f"cannot keep {self._plugin.socket}: it is removed as soon as it is made"
            )
        while own == _identity(self._plugin.socket):
            kubelet = _identity(self._kubelet)
            self._notice(kubelet)
            if self._known is None:
                await self._register_if_due(kubelet)
            await self._rest()

    def _notice(self, kubelet: Identity | None) -> None:
        """Find out whether kubelet has forgotten us."""
        if kubelet is not None and kubelet != self._tried:
            self._tried = kubelet
            self._patience.reset()
            if self._known is not None:
                self._forget("kubelet was started again")
        elif self._known is not None and (why := self._loss(self._known)):
            if time.monotonic() - self._known.at_s > _STEADY_S:
                self._patience.reset()
            self._patience.grow()
            self._forget(why)

    def _loss(self, known: _Known) -> str | None:
        streams = self._plugin.streams
        if streams.ended > known.ended:
            return "kubelet's ListAndWatch has ended"
        if streams.begun == known.begun and time.monotonic() > known.at_s + self._pace.watch_s:
            return f"kubelet has not called ListAndWatch within {self._pace.watch_s:g} s"
        return None

    async def _register_if_due(self, kubelet: Identity | None) -> None:
        if kubelet is None:
            self._say(f"kubelet does not serve {self._kubelet}; it is waited for")
        elif time.monotonic() >= self._patience.until_s:
            await self._register(kubelet)

    async def _register(self, kubelet: Identity) -> None:
        streams = self._plugin.streams
        known = _Known(
            kubelet=kubelet,
            begun=streams.begun,
            ended=streams.ended,
            at_s=time.monotonic(),
        )
        request = pb.RegisterRequest(
            version=VERSION,
            endpoint=self._plugin.socket.name,
            resource_name=self._plugin.resource,
            options=pb.DevicePluginOptions(get_preferred_allocation_available=True),
        )
        client = sockets.Client(self._kubelet)
        try:
            await client.ask(pb, "Registration.Register", request, timeout_s=_REGISTER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._patience.grow()
            said = f"{error.code().name}: {error.details()}"
            problem = f"cannot register {self._plugin.resource} at {self._kubelet}: {said[:500]}"
            self._say(problem, logging.WARNING)
        else:
            self._known = known
            self._registered()
        finally:
            await client.close()

    def _registered(self) -> None:
        self.state = replace(
            self.state,
            registered_at=datetime.now(UTC),
            count=self.state.count + 1,
            problem=None,
        )
        log.info(
            "registered %s with kubelet, for the %d. time", self.state.resource, self.state.count
        )

    def _forget(self, why: str, level: int = logging.INFO) -> None:
        self._known = None
        self.state = replace(self.state, registered_at=None)
        self._say(why, level)

    def _say(self, problem: str, level: int = logging.INFO) -> None:
        """Tell why it is not registered, once; kubelet's restart is nothing to warn of."""
        if problem != self.state.problem:
            log.log(level, "%s is not registered: %s", self.state.resource, problem)
        self.state = replace(self.state, problem=problem)

    async def _rest(self) -> None:
        """Wait for a hint, or for what is due next."""
        now_s = time.monotonic()
        due_s = now_s + self._pace.poll_s
        if self._known is None and self._patience.until_s > now_s:
            due_s = min(due_s, self._patience.until_s)
        elif self._known is not None and self._plugin.streams.begun == self._known.begun:
            due_s = min(due_s, self._known.at_s + self._pace.watch_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, due_s - now_s)):
                await self._woken.wait()
        self._woken.clear()

    def _require_directory(self) -> None:
        """Raise HostError without kubelet's folder: what gRPC says of that helps nobody."""
        if not self._plugin.directory.is_dir():
            raise HostError(
                f"cannot serve in {self._plugin.directory}: there is no such folder, which kubelet "
                f"makes when it starts; it is waited for (if kubelet's root is another one, set "
                f"kubernetes.kubelet_directory in agent.toml)"
            )

    def _sweep(self) -> None:
        """Remove what killed agents left; nobody listens there any more."""
        prefix = socket_prefix(self._plugin.resource)
        try:
            found = list(self._plugin.directory.iterdir())
        except OSError:
            return
        for path in found:
            suffix = path.name.removeprefix(prefix)
            if suffix != path.name and _SUFFIX.fullmatch(suffix) and not listeners.is_served(path):
                with contextlib.suppress(OSError):
                    path.unlink()


def new_suffix() -> str:
    """Return a suffix for this agent's sockets, which no other agent of this boot has."""
    return f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000:012x}"  # short: a socket's path is


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
