"""A DRA driver as kubelet sees it: registration, claims and health, in all versions it speaks.

Every claim of a request has an entry in the answer, with devices or with an error, and is
handled beside the others: one that waits holds up no other.

Source: k8s.io/kubelet pkg/apis/dra v1 and v1beta1; kubelet's cm/dra manager.go.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kata_gpu.errors import HeldError, KataGpuError
from kata_gpu.host import locks
from kata_gpu.model.kubernetes import DRIVERS, Device, Door
from kata_gpu.model.text import printable
from kata_gpu.publish.kubelet import device_health, plugin_sockets
from kata_gpu.publish.kubelet.checkpoint import Checkpoint
from kata_gpu.publish.kubelet.device_health import HealthStream
from kata_gpu.publish.kubelet.device_metadata import DeviceMetadata
from kata_gpu.publish.kubelet.news import News
from kata_gpu.publish.kubelet.plugin_registration import PluginRegistration, Registration
from kata_gpu.publish.kubelet.plugin_sockets import PluginSockets
from kata_gpu.publish.kubelet.prepared import ClaimName, Claims, Home, PreparedClaim
from kata_gpu.publish.kubelet.preparing import Agent, Patience, Preparer
from kata_gpu.publish.kubelet.protos import dra_v1_pb2, dra_v1beta1_pb2
from kata_gpu.publish.kubelet.sockets import Context, Service

log = logging.getLogger(__name__)

_LOCK_S: Final = 1.0  # whoever looks whether we live holds it for a moment
_ERROR_MAX: Final = 512  # it is the text of an event


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverSettings:
    """What tells one driver of one agent from another, and how long things take."""

    driver: str
    """GPU_DRIVER or FABRIC_DRIVER."""

    pool: str
    """The node's name: its devices are in one pool."""

    agent: str
    """This agent's name among those of the node: its pod's uid, or a random word."""

    kubelet: Path
    boot_id: str
    cdi_directory: Path
    device_metadata: bool = False
    """Whether workloads may read of their devices; a file in the CDI directory mounts it."""

    patience: Patience = field(default_factory=Patience)
    health_again_s: float = device_health.AGAIN_S
    look_every_s: float = 10.0
    """How often the sockets are looked after where the kernel does not tell of their end."""

    clean_every_s: float = 600.0
    """How often claims are looked for that went while an agent died preparing them."""


class DraDriver:
    """One driver; :meth:`serve` it, and tell it of changes."""

    def __init__(self, settings: DriverSettings, agent: Agent) -> None:
        self._settings = settings
        self._agent = replace(agent, devices=lambda: _of_driver(agent, settings.driver))
        self._home = _home(settings, settings.driver)
        boot = settings.boot_id
        others = (_home(settings, name) for name in DRIVERS if name != settings.driver)
        self._checkpoint = Checkpoint(
            self._home.checkpoint,
            boot_id=boot,
            others=[Checkpoint(other.checkpoint, boot_id=boot) for other in others],
        )
        self._paths = plugin_sockets.paths(settings.kubelet, settings.driver, settings.agent)
        self._registration = PluginRegistration(settings.driver, self._paths.plugin)
        self._news = News()
        self._metadata = DeviceMetadata(
            self._home, settings.cdi_directory, is_wanted=settings.device_metadata
        )

    @property
    def registration(self) -> Registration:
        """How the driver stands with kubelet now."""
        return self._registration.now

    def claims(self) -> Claims:
        """Return what is prepared, or on its way, by uid; any thread may ask.

        Raises:
            KataGpuError: the checkpoint cannot be read or trusted.
        """
        return self._checkpoint.claims()

    def claimed_units(self) -> frozenset[str]:
        """Return the units of all these claims: they belong on VFIO. Any thread may ask.

        Raises:
            KataGpuError: nobody can say, so nothing must be given back.
        """
        return frozenset(unit for claim in self.claims().values() for unit in claim.units)

    def changed(self) -> None:
        """Say that the devices are as a further turn left them; for the event loop's thread."""
        self._news.tell()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve kubelet, once, until the block ends; then both sockets are gone.

        What is being prepared then is left as begun: the next agent undoes it and begins anew.

        Raises:
            HeldError: another agent of the same name serves this driver.
            HostError: a socket cannot be made where kubelet looks for it.
        """
        async with AsyncExitStack() as stack:
            lock = locks.exclusive_within(self._home.lock_of(self._home.agent), _LOCK_S)
            await asyncio.to_thread(stack.enter_context, lock)
            self._clear_after_the_dead()
            stack.push_async_callback(self._checkpoint.close)
            preparer = Preparer(
                self._home,
                self._checkpoint,
                self._agent,
                news=self._news,
                patience=self._settings.patience,
                metadata=self._metadata,
            )
            stack.push_async_callback(preparer.close)
            sockets = PluginSockets(
                self._paths, self._services(preparer), (self._registration.service(),)
            )
            stack.push_async_callback(sockets.close)
            await sockets.open()
            keep = partial(sockets.keep, look_every_s=self._settings.look_every_s)
            for work in (keep, partial(self._clean, preparer)):
                stack.push_async_callback(_end, _chore(work))
            yield

    def _services(self, preparer: Preparer) -> tuple[Service, ...]:
        health = HealthStream(
            self._settings.pool,
            self._agent.devices,
            self._claimed_devices,
            self._news,
            again_s=self._settings.health_again_s,
        )
        return (
            *(_service(wire, preparer) for wire in (dra_v1_pb2, dra_v1beta1_pb2)),
            *health.services(),
        )

    def _claimed_devices(self) -> frozenset[str]:
        try:
            claims = self.claims()
        except KataGpuError:  # who prepares is told; health is not worth an end of its stream
            return frozenset()
        return frozenset(d.device for claim in claims.values() for d in claim.devices)

    def _clear_after_the_dead(self) -> None:
        """Remove the sockets that agents left which were killed."""
        for name in self._home.agents():
            if name == self._home.agent:
                continue
            try:
                self._clear_after(name)
            except HeldError:  # it lives
                continue
            except KataGpuError as error:  # whoever left that there: it keeps nobody from serving
                log.warning("cannot clear up after agent %s: %s", name, error)
        try:
            self._metadata.sweep(self.claims())
        except KataGpuError as error:
            log.warning("cannot look for metadata that a killed agent left: %s", error)

    def _clear_after(self, agent: str) -> None:
        settings, lock = self._settings, self._home.lock_of(agent)
        with locks.exclusive(lock):
            plugin_sockets.clear(plugin_sockets.paths(settings.kubelet, settings.driver, agent))
            with suppress(OSError):  # whoever may not remove it can live with it
                lock.unlink()

    async def _clean(self, preparer: Preparer) -> None:
        while True:
            await asyncio.sleep(self._settings.clean_every_s)
            try:
                await preparer.reconcile()
            except KataGpuError as error:
                log.warning("cannot look for claims that are gone: %s", error)


def _home(settings: DriverSettings, driver: str) -> Home:
    return Home(
        driver=driver,
        pool=settings.pool,
        agent=settings.agent,
        directory=settings.kubelet / "plugins" / driver,
    )


def _chore(work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    async def guarded() -> None:
        try:
            await work()
        except Exception:
            log.exception("a bug: a chore of the DRA driver has ended")
            raise

    return asyncio.create_task(guarded())


async def _end(chore: asyncio.Task[None]) -> None:
    chore.cancel()
    await asyncio.gather(chore, return_exceptions=True)


def _of_driver(agent: Agent, driver: str) -> dict[str, Device]:
    devices = agent.devices()
    return {n: d for n, d in devices.items() if d.driver == driver and d.door is Door.DRA}


def _service(wire: ModuleType, preparer: Preparer) -> Service:
    """Return what answers in one version; the two differ in nothing that is used."""

    async def prepare(request: Any, _context: Context) -> Any:
        async def one(claim: ClaimName) -> Any:
            return _prepared(wire, await preparer.prepare(claim))

        response = wire.NodePrepareResourcesResponse()
        await _each(request, response, one, wire.NodePrepareResourceResponse)
        return response

    async def unprepare(request: Any, _context: Context) -> Any:
        async def one(claim: ClaimName) -> Any:
            await preparer.unprepare(claim)
            return wire.NodeUnprepareResourceResponse()

        response = wire.NodeUnprepareResourcesResponse()
        await _each(request, response, one, wire.NodeUnprepareResourceResponse)
        return response

    methods = {"NodePrepareResources": prepare, "NodeUnprepareResources": unprepare}
    return Service(wire, "DRAPlugin", methods)


async def _each(
    request: Any,
    response: Any,
    handle: Callable[[ClaimName], Awaitable[Any]],
    refusal: Callable[..., Any],
) -> None:
    """Put an answer for every claim of *request* into *response*."""

    async def answer(claim: Any) -> Any:
        try:
            name = ClaimName(namespace=claim.namespace, name=claim.name, uid=claim.uid)
            return await handle(name)
        except (KataGpuError, ValueError) as error:
            return refusal(error=_line(str(error)) or "cannot handle the claim")

    answers = await asyncio.gather(*map(answer, request.claims))
    for claim, made in zip(request.claims, answers, strict=True):
        response.claims[claim.uid].CopyFrom(made)


def _line(text: str) -> str:
    """Return an error as the text of an event: on one line, for it may repeat a claim's words."""
    return printable(text[:_ERROR_MAX])


def _prepared(wire: Any, prepared: PreparedClaim | None) -> Any:
    devices = () if prepared is None else prepared.devices
    return wire.NodePrepareResourceResponse(
        devices=[
            wire.Device(
                request_names=_base_names(device.requests),
                pool_name=device.pool,
                device_name=device.device,
                cdi_device_ids=device.cdi_names,
            )
            for device in devices
        ]
    )


def _base_names(requests: tuple[str, ...]) -> list[str]:
    """Return them as containers name them: without their subrequests, each once."""
    return list(dict.fromkeys(request.partition("/")[0] for request in requests))
