"""Kubelet's plugin watcher and DRA manager, as far as a driver can tell.

Its waits are the real ones divided where a test would have to sit them out; its deadlines, the
order of its questions, and what it refuses are the real ones.

Source: kubelet's pkg/kubelet/pluginmanager and pkg/kubelet/cm/dra, 1.36.
"""

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import grpc

from kata_gpu.publish.kubelet.protos import (
    dra_health_v1_pb2,
    dra_health_v1alpha1_pb2,
    dra_v1_pb2,
    dra_v1beta1_pb2,
    plugin_registration_v1_pb2,
)
from kata_gpu.publish.kubelet.sockets import PATH_MAX_BYTES, Client
from tests.kubelet.claims import NAMESPACE, ClaimStore

GET_INFO_S: Final = 1.0
NOTIFY_S: Final = 5.0
CALL_S: Final = 45.0
UNHEARD_S: Final = 30.0
AWAY_S: Final = 30.0
_DRA: Final = {"v1.DRAPlugin": dra_v1_pb2, "v1beta1.DRAPlugin": dra_v1beta1_pb2}
_HEALTH: Final = {
    "v1.DRAResourceHealth": dra_health_v1_pb2,
    "v1alpha1.DRAResourceHealth": dra_health_v1alpha1_pb2,
}
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_STATUS: Final = {0: "Unknown", 1: "Healthy", 2: "Unhealthy"}


class PrepareError(Exception):
    """A pod does not start, or stays Terminating; kubelet comes again."""


@dataclass
class Plugin:
    """One driver's registration by one of its sockets."""

    driver: str
    endpoint: Path
    versions: tuple[str, ...]
    dra: ModuleType
    client: Client
    watcher: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.endpoint))
            except OSError:
                return False
        return True

    async def close(self) -> None:
        if self.watcher is not None:
            self.watcher.cancel()
            await asyncio.gather(self.watcher, return_exceptions=True)
        await self.client.close()


@dataclass
class ClaimInfo:
    """What kubelet keeps of a claim, on disk too but for *is_prepared*."""

    name: str
    uid: str
    pods: set[str]
    devices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By driver; whoever prepares again appends."""

    is_prepared: bool = False


@dataclass
class Heard:
    """The health of one device as it was heard last."""

    health: str
    message: str
    at: float
    timeout_s: float


class DraManager:
    """One run of kubelet below *root*; :meth:`run` it."""

    def __init__(
        self,
        root: Path,
        claims: ClaimStore,
        *,
        knows: Iterable[str] = ("v1.DRAPlugin", "v1beta1.DRAPlugin", *_HEALTH),
        every_s: float = 0.02,
        clock: Callable[[], float] = time.monotonic,
        on_wipe: Callable[[str | None], None] = lambda _driver: None,
    ) -> None:
        """*on_wipe* deletes the node's ResourceSlices: of one driver, or all at the start."""
        self.root = root
        self.claims = claims
        self.plugins: dict[Path, Plugin] = {}
        self.errors: list[str] = []
        self.messages: list[dict[tuple[str, str], str]] = []
        """Each health message that came: by driver and device."""

        self._knows = frozenset(knows)
        self._every_s = every_s
        self._clock = clock
        self._on_wipe = on_wipe
        self.seen_at: dict[str, float] = {}
        """When a plugin of each driver was connected last."""

        self._health: dict[str, dict[str, Heard]] = {}
        self._sockets: dict[Path, tuple[int, int]] = {}
        self._state = root / "dra_manager_state.json"
        self._infos = self._restored()

    @asynccontextmanager
    async def run(self) -> AsyncIterator["DraManager"]:
        """Watch for plugins until the block ends; then the process is gone, its state is not."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            for plugin in self.plugins.values():
                await plugin.close()

    # Plugins

    async def _watch(self) -> None:
        registry = self.root / "plugins_registry"
        registry.mkdir(parents=True, exist_ok=True)
        self._on_wipe(None)
        while True:
            self._wipe()
            found = _sockets(registry)
            for path in [p for p, identity in self._sockets.items() if found.get(p) != identity]:
                del self._sockets[path]
                if (gone := self.plugins.pop(path, None)) is not None:
                    self._health.pop(gone.driver, None)
                    await gone.close()
            for path, identity in found.items():
                if path not in self._sockets and await self._register(path):
                    self._sockets[path] = identity
            await asyncio.sleep(self._every_s)

    def _wipe(self) -> None:
        """Delete the slices of each driver that nobody has served for a while."""
        for plugin in self.plugins.values():
            if plugin.is_connected:
                self.seen_at[plugin.driver] = self._clock()
        for driver, seen_at in tuple(self.seen_at.items()):
            if self._clock() - seen_at > AWAY_S:
                del self.seen_at[driver]
                self._on_wipe(driver)

    async def _register(self, path: Path) -> bool:
        client = Client(path)
        wire, info = plugin_registration_v1_pb2, None
        try:
            info = await client.ask(
                wire, "Registration.GetInfo", wire.InfoRequest(), timeout_s=GET_INFO_S
            )
            error = self._validate(info)
            status = wire.RegistrationStatus(plugin_registered=not error, error=error)
            await client.ask(
                wire, "Registration.NotifyRegistrationStatus", status, timeout_s=NOTIFY_S
            )
        except grpc.aio.AioRpcError as failure:
            error = f"{failure.code().name}: {failure.details()}"
        finally:
            await client.close()
        if error:
            self.errors.append(f"{path.name}: {error}")
            return False
        self.plugins[path] = self._plugin(info)
        return True

    def _validate(self, info: Any) -> str:
        """Return why the plugin is refused; nothing when it is not."""
        endpoint = Path(info.endpoint)
        is_path = info.endpoint and endpoint.is_absolute() and ".." not in endpoint.parts
        fits = len(os.fsencode(endpoint)) <= PATH_MAX_BYTES and endpoint.is_relative_to(self.root)
        is_name = _SUBDOMAIN.fullmatch(info.name) and len(info.name) <= 63
        rules = {
            f"no handler for plugin type {info.type!r}": info.type == "DRAPlugin",
            f"invalid driver name {info.name!r}": is_name,
            f"invalid endpoint {info.endpoint!r}": is_path and fits,
            f"endpoint {info.endpoint!r} already registered": endpoint
            not in {plugin.endpoint for plugin in self.plugins.values()},
            f"no supported version in {list(info.supported_versions)}": self._dra_version(
                info.supported_versions
            ),
        }
        return next((error for error, holds in rules.items() if not holds), "")

    def _dra_version(self, versions: Iterable[str]) -> str | None:
        return next((v for v in versions if v in _DRA and v in self._knows), None)

    def _plugin(self, info: Any) -> Plugin:
        version = self._dra_version(info.supported_versions)
        assert version is not None
        endpoint = Path(info.endpoint)
        plugin = Plugin(
            driver=info.name,
            endpoint=endpoint,
            versions=tuple(info.supported_versions),
            dra=_DRA[version],
            client=Client(endpoint),
        )
        plugin.watcher = asyncio.create_task(self._hear(plugin))
        return plugin

    def newest(self, driver: str) -> Plugin:
        """Return the plugin that is asked: the newest connected one, else the newest."""
        found = [plugin for plugin in self.plugins.values() if plugin.driver == driver]
        if not found:
            raise PrepareError(f"DRA driver {driver} is not registered")
        return next((p for p in reversed(found) if p.is_connected), found[-1])

    # Claims

    async def start_pod(self, pod: str, *claims: str, timeout_s: float = CALL_S) -> list[str]:
        """Prepare the claims of a pod, and return the CDI ids that its sandbox is given."""
        infos = [self._info(name, pod) for name in claims]
        by_driver: dict[str, list[ClaimInfo]] = {}
        for info in infos:
            for driver in self._drivers(info.name) if not info.is_prepared else ():
                self.newest(driver)
                by_driver.setdefault(driver, []).append(info)
        for driver, asked in by_driver.items():
            await self._prepare(driver, asked, timeout_s)
        for info in infos:
            info.is_prepared = True
        self._keep()
        return [cdi for info in infos for cdi in self.cdi_ids(info.name)]

    async def retry_pod(self, pod: str, *claims: str, within_s: float = 30) -> list[str]:
        """Start a pod as kubelet does when its first call met a connection that was broken."""
        ends_at = time.monotonic() + within_s
        while True:
            try:
                return await self.start_pod(pod, *claims)
            except PrepareError as error:
                if "UNAVAILABLE" not in str(error) or time.monotonic() > ends_at:
                    raise
            await asyncio.sleep(self._every_s)

    def cdi_ids(self, claim: str) -> list[str]:
        """Return the CDI ids of a claim as the container runtime gets them, repeated or not."""
        devices = [d for found in self._infos[claim].devices.values() for d in found]
        return [cdi for device in devices for cdi in device["cdi"]]

    def requests(self, claim: str) -> list[str]:
        """Return the requests that the claim's devices are for, as containers name them."""
        devices = [d for found in self._infos[claim].devices.values() for d in found]
        return [request for device in devices for request in device["requests"]]

    async def stop_pod(self, pod: str, *, timeout_s: float = CALL_S) -> None:
        """Unprepare the claims that no other pod has; the objects may be gone already."""
        for info in [info for info in self._infos.values() if pod in info.pods]:
            if info.pods == {pod}:
                for driver in info.devices or {}:
                    await self._unprepare(driver, info, timeout_s)
                del self._infos[info.name]
            info.pods.discard(pod)
        self._keep()

    def _info(self, name: str, pod: str) -> ClaimInfo:
        found = self.claims.objects.get(name)
        if found is None:
            raise PrepareError(f"failed to fetch ResourceClaim {name}")
        uid = found["metadata"]["uid"]
        info = self._infos.setdefault(name, ClaimInfo(name=name, uid=uid, pods=set()))
        if info.uid != uid:
            raise PrepareError(f"old ResourceClaim with same name {name} and different UID exists")
        info.pods.add(pod)
        for driver in self._drivers(name):
            info.devices.setdefault(driver, [])
        self._keep()
        return info

    def _drivers(self, name: str) -> list[str]:
        results = self.claims.objects[name]["status"]["allocation"]["devices"]["results"]
        return list(dict.fromkeys(result["driver"] for result in results))

    async def _prepare(self, driver: str, infos: list[ClaimInfo], timeout_s: float) -> None:
        answers = await self._call(driver, "Prepare", infos, timeout_s)
        for info in infos:
            answer = answers[info.uid]
            if answer.error:
                raise PrepareError(f"NodePrepareResources failed for {info.name}: {answer.error}")
            info.devices[driver] += [
                {
                    "requests": list(device.request_names),
                    "device": device.device_name,
                    "cdi": list(device.cdi_device_ids),
                }
                for device in answer.devices
            ]

    async def _unprepare(self, driver: str, info: ClaimInfo, timeout_s: float) -> None:
        answers = await self._call(driver, "Unprepare", [info], timeout_s)
        if answers[info.uid].error:
            raise PrepareError(
                f"NodeUnprepareResources failed for {info.name}: {answers[info.uid].error}"
            )

    async def _call(
        self, driver: str, verb: str, infos: list[ClaimInfo], timeout_s: float
    ) -> dict[str, Any]:
        plugin = self.newest(driver)
        wire: Any = plugin.dra
        claims = [wire.Claim(namespace=NAMESPACE, uid=i.uid, name=i.name) for i in infos]
        method = f"Node{verb}Resources"
        request = getattr(wire, f"{method}Request")(claims=claims)
        try:
            response = await plugin.client.ask(
                wire, f"DRAPlugin.{method}", request, timeout_s=timeout_s
            )
        except grpc.aio.AioRpcError as error:
            raise PrepareError(f"{method} failed: {error.code().name}") from error
        answers = dict(response.claims)
        asked = {info.uid for info in infos}
        if unknown := answers.keys() - asked:
            raise PrepareError(f"{method} answered for unknown claims {sorted(unknown)}")
        if skipped := asked - answers.keys():
            raise PrepareError(f"{method} skipped {len(skipped)} ResourceClaims")
        return answers

    # State

    def _keep(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        state = [
            {"name": i.name, "uid": i.uid, "pods": sorted(i.pods), "devices": i.devices}
            for i in self._infos.values()
        ]
        self._state.write_text(json.dumps(state))

    def _restored(self) -> dict[str, ClaimInfo]:
        if not self._state.exists():
            return {}
        return {
            entry["name"]: ClaimInfo(**{**entry, "pods": set(entry["pods"])})
            for entry in json.loads(self._state.read_text())
        }

    # Health

    def health(self, driver: str, device: str) -> str:
        """Return what a pod's status would say of the device now."""
        heard = self._health.get(driver, {}).get(device)
        if heard is None or self._clock() - heard.at > heard.timeout_s:
            return "Unknown"
        return heard.health

    def message(self, driver: str, device: str) -> str:
        """Return what came with it."""
        return self.heard(driver, device).message

    def heard(self, driver: str, device: str) -> Heard:
        """Return all that came last of the device."""
        return self._health[driver][device]

    async def _hear(self, plugin: Plugin) -> None:
        """Hold the health stream; begin it again when it ends, as 1.36 does every 5 s."""
        known = [v for v in _HEALTH if v in plugin.versions and v in self._knows]
        while known:
            wire: Any = _HEALTH[known[0]]
            with suppress(grpc.aio.AioRpcError):
                stream = plugin.client.stream(
                    wire, "DRAResourceHealth.NodeWatchResources", wire.NodeWatchResourcesRequest()
                )
                try:
                    async for message in stream:
                        self._heard(plugin.driver, message)
                finally:
                    stream.cancel()
            self._health.pop(plugin.driver, None)
            await asyncio.sleep(self._every_s)

    def _heard(self, driver: str, message: Any) -> None:
        now = self._clock()
        self._health[driver] = {
            said.device.device_name: Heard(
                health=_STATUS[said.health],
                message=said.message if len(said.message) <= 1024 else said.message[:1021] + "...",
                at=now,
                timeout_s=said.health_check_timeout_seconds or UNHEARD_S,
            )
            for said in message.devices
        }
        self.messages.append(
            {(driver, name): heard.health for name, heard in self._health[driver].items()}
        )


def _sockets(registry: Path) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in sorted(registry.rglob("*")):
        with suppress(FileNotFoundError):
            if path.is_socket() and not path.name.startswith("."):
                seen = path.stat()
                found[path] = (seen.st_ino, seen.st_ctime_ns)
    return found
