"""Keep a device plugin registered with kubelet, whatever becomes of either.

Kubelet forgets us in three ways. When it starts, it removes every socket from its directory
and makes a new one of its own. When it loses the connection to any plugin of a resource, it may
drop whichever is registered for that resource by then. And its directory may be replaced.
None of it is told to us, so this is compared, at each wake-up: whether kubelet's socket and our
own are those they were, and whether a ListAndWatch has ended since we registered.

Two agents may be alive at once, while one takes the other's place. Their sockets have
different names, and those of later agents sort last. Whenever one comes or goes, or kubelet
forgot somebody, each looks who is there: the latest that answers registers, and the others
leave it at that and go on serving. Before such a registration passes a moment, which grows with
each time: kubelet may still be about to drop us for what it lost, and two that answered each
other's registration at once would never end.

Source: kubelet's pkg/kubelet/cm/devicemanager, plugin/v1beta1/handler.go.
"""

import asyncio
import contextlib
import logging
import random
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc

from kata_gpu.errors import HostError
from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.device_plugin import DevicePlugin, socket_prefix
from kata_gpu.publish.kubelet.protos import device_plugin_v1beta1_pb2 as pb

log = logging.getLogger(__name__)

VERSION: Final = "v1beta1"
KUBELET_SOCKET: Final = "kubelet.sock"

_REGISTER_TIMEOUT_S: Final = 15.0  # kubelet itself takes 10 s to dial us before it answers
_ANSWER_TIMEOUT_S: Final = 2.0
_PAUSE_MIN_S: Final = 0.2
_PAUSE_MAX_S: Final = 10.0  # kubelet reports its node's capacity as often
_STEADY_S: Final = 30.0
_SUFFIX: Final = re.compile(r"([0-9a-z]{1,32})\.sock")
_RANDOM: Final = random.SystemRandom()

Identity = tuple[int, int, int]
"""Device, inode and change time: a new file at a path may have the old one's inode."""

Others = frozenset[tuple[str, Identity | None]]
"""Names of sockets, each with which one it is."""


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
    others: Others
    """Sockets of other agents."""


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
        self._told_at: float | None = None
        """When kubelet was last told of the socket that is served now, by the clock of files."""

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
                async with sockets.serve(self._plugin.socket, self._plugin.service):
                    why = await self._while_served()
                self._patience.grow()
                self._forget(why)
            except (HostError, OSError) as error:
                self._forget(str(error), logging.WARNING)
                self._patience.grow()
                await self._rest()

    async def _while_served(self) -> str:
        """Register whenever it is needed; return why the socket has to be made anew."""
        own = _identity(self._plugin.socket)
        if own is None:
            raise HostError(
                f"cannot keep {self._plugin.socket}: it is removed as soon as it is made"
            )
        self._told_at = None
        while own == _identity(self._plugin.socket):
            kubelet = _identity(self._kubelet)
            others = frozenset(self._others())
            self._notice(kubelet, others)
            if self._known is None and not await self._register_if_due(kubelet, others):
                return "it registered after a later agent, which is told by a new socket"
            await self._rest()
        return "its socket was removed; a new one is made"

    def _notice(self, kubelet: Identity | None, others: Others) -> None:
        """Find out whether kubelet has forgotten us."""
        if kubelet is not None and kubelet != self._tried:
            self._tried = kubelet
            self._patience.reset()
            if self._known is not None:
                self._forget("kubelet was started again")
        elif self._known is not None and (why := self._loss(self._known, others)):
            if time.monotonic() - self._known.at_s > _STEADY_S:
                self._patience.reset()
            self._patience.grow()
            self._forget(why)

    def _loss(self, known: _Known, others: Others) -> str | None:
        streams = self._plugin.streams
        if streams.ended > known.ended:
            return "kubelet's ListAndWatch has ended"
        if streams.begun == known.begun and time.monotonic() > known.at_s + self._pace.watch_s:
            return f"kubelet has not called ListAndWatch within {self._pace.watch_s:g} s"
        if others != known.others:
            # Who came may have registered before or after us; at who went, a kubelet may have
            # taken the resource for gone, whichever stream of it was left.
            return "another agent has come or gone"
        return None

    async def _register_if_due(self, kubelet: Identity | None, others: Others) -> bool:
        """Register, or say why not; tell whether to go on with this socket.

        Two that register at once do not see each other, and kubelet keeps the last and says
        nothing to the first. If that was the later agent, it has to register again.
        """
        if kubelet is None:
            self._say(f"kubelet does not serve {self._kubelet}; it is waited for")
        elif time.monotonic() < self._patience.until_s:
            pass
        elif (later := await self._later()) is not None:
            self._say(f"a later agent serves {later}, so that this one does not register")
            return not self._hides(later)
        else:
            await self._register(kubelet, others)
        return True

    def _hides(self, later: Path) -> bool:
        """Tell whether kubelet may have us for an agent that was there when it was told of us.

        One that came after registers after, by itself.
        """
        made = _identity(later)
        return self._told_at is not None and made is not None and made[2] < self._told_at * 1e9

    async def _register(self, kubelet: Identity, others: Others) -> None:
        streams = self._plugin.streams
        known = _Known(
            kubelet=kubelet,
            begun=streams.begun,
            ended=streams.ended,
            at_s=time.monotonic(),
            others=others,
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
            self._told_at = time.time()
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

    def _siblings(self) -> Iterator[tuple[str, Path]]:
        """Yield the sockets of other agents for this resource, with their suffixes."""
        prefix = socket_prefix(self._plugin.resource)
        try:
            names = sorted(path.name for path in self._plugin.directory.iterdir())
        except OSError:
            return
        for name in names:
            match = (
                _SUFFIX.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
            )
            if match is not None and name != self._plugin.socket.name:
                yield match[1], self._plugin.directory / name

    def _others(self) -> Iterator[tuple[str, Identity | None]]:
        """Yield the sockets that somebody listens on; what killed agents left is removed.

        A later agent's is not: it may be about to listen.
        """
        for suffix, path in self._siblings():
            if not _is_dead(path):
                yield path.name, _identity(path)
            elif _age(suffix) < self._own_age:
                with contextlib.suppress(OSError):
                    path.unlink()

    async def _later(self) -> Path | None:
        """Return the socket of a later agent that answers on it; None without one."""
        for suffix, path in self._siblings():
            if _age(suffix) > self._own_age and await _answers(path):
                return path
        return None

    @property
    def _own_age(self) -> tuple[int, str]:
        prefix = socket_prefix(self._plugin.resource)
        return _age(self._plugin.socket.stem.removeprefix(prefix))


def new_suffix() -> str:
    """Return a suffix for this agent's sockets; those of later agents on this node sort last."""
    return f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000:012x}"  # short: a socket's path is


def _age(suffix: str) -> tuple[int, str]:
    return len(suffix), suffix


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _is_dead(path: Path) -> bool:
    """Tell whether nobody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:  # a full queue, or no right to see: somebody may be there
            return False
    return False


async def _answers(path: Path) -> bool:
    client = sockets.Client(path)
    try:
        await client.ask(
            pb, "DevicePlugin.GetDevicePluginOptions", pb.Empty(), timeout_s=_ANSWER_TIMEOUT_S
        )
    except grpc.aio.AioRpcError:
        return False
    finally:
        await client.close()
    return True
