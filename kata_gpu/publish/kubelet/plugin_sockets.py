"""A DRA driver's two sockets: the one it serves on, and the one by which kubelet finds it.

The first is there before the second. Kubelet forgets a driver whose second is removed, and
somebody may remove either: what is missing is served anew. They have names of their own for each
agent, for during a rolling update two are alive, and each removes its own.

Source: k8s.io/dynamic-resource-allocation kubeletplugin, draplugin.go (names, order).
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host.watches import Watches
from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.sockets import PATH_MAX_BYTES, Service

log = logging.getLogger(__name__)

_DIRECTORY_MODE: Final = 0o750  # as kubelet makes them
_HASH_LENGTH: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the sockets of one agent lie."""

    plugin: Path
    registration: Path


def paths(kubelet: Path, driver: str, agent: str) -> Paths:
    """Return where they lie; a name that makes a path too long is a hash instead."""
    return Paths(
        plugin=_short(kubelet / "plugins" / driver, "dra-", agent, ".sock"),
        registration=_short(kubelet / "plugins_registry", "", f"{driver}-{agent}", "-reg.sock"),
    )


def _short(directory: Path, start: str, name: str, end: str) -> Path:
    path = directory / f"{start}{name}{end}"
    if len(os.fsencode(path)) <= PATH_MAX_BYTES:
        return path
    hashed = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LENGTH]
    return directory / f"{start}{hashed}{end}"


def clear(paths: Paths) -> None:
    """Remove the sockets of an agent that is dead; kubelet dials them in vain otherwise."""
    for path in (paths.registration, paths.plugin):
        with suppress(OSError):  # whoever may not remove it can live with it
            path.unlink()


@dataclass(slots=True)
class _Served:
    """One socket that is served, and what tells it from another at its path."""

    path: Path
    services: Sequence[Service]
    stack: AsyncExitStack | None = None
    identity: tuple[int, int] | None = None
    """None when it is not served, or was removed before it was seen."""

    async def open(self) -> None:
        stack = AsyncExitStack()
        try:
            self.path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            await stack.enter_async_context(sockets.serve(self.path, *self.services))
        except OSError as error:
            raise HostError(f"cannot serve on {self.path}: {error.strerror}") from error
        self.stack, self.identity = stack, _identity(self.path)

    async def close(self) -> None:
        stack, self.stack = self.stack, None
        if stack is not None:
            await stack.aclose()

    @property
    def is_there(self) -> bool:
        is_served = self.stack is not None and self.identity is not None
        return is_served and _identity(self.path) == self.identity


class PluginSockets:
    """Serves both sockets; :meth:`keep` sees to it that they are there."""

    def __init__(
        self, paths: Paths, plugin: Sequence[Service], registration: Sequence[Service]
    ) -> None:
        self._plugin = _Served(paths.plugin, plugin)
        self._registration = _Served(paths.registration, registration)

    async def open(self) -> None:
        """Serve, the plugin's first; HostError when that cannot be."""
        await self._plugin.open()
        await self._registration.open()

    async def close(self) -> None:
        """End, the plugin's first, and remove both."""
        await self._plugin.close()
        await self._registration.close()

    async def mend(self) -> bool:
        """Serve anew what was removed; tell whether anything was."""
        if not self._plugin.is_there:
            log.warning("%s is gone: serve both sockets anew", self._plugin.path)
            await self.close()
            await self.open()
            return True
        if not self._registration.is_there:
            log.warning("%s is gone: serve it anew", self._registration.path)
            await self._registration.close()
            await self._registration.open()
            return True
        return False

    async def keep(self, *, look_every_s: float) -> None:
        """Mend them for ever: at once where the kernel tells of changes, else now and then."""
        changed = asyncio.Event()
        with _watching((self._plugin.path, self._registration.path), changed) as watch:
            while True:
                watch()
                changed.clear()
                try:
                    await self.mend()
                except HostError as error:
                    log.warning("%s; it is tried again", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(look_every_s):
                        await changed.wait()


@contextmanager
def _watching(paths: Sequence[Path], changed: asyncio.Event) -> Iterator[Callable[[], None]]:
    """Set *changed* whenever something happens to *paths*; never without inotify."""
    try:
        opened = Watches.open()
    except HostError as error:
        log.warning("%s; a socket that is removed is missed now and then only", error)
        yield lambda: None
        return
    loop = asyncio.get_running_loop()

    def hear() -> None:
        if opened.drain():
            changed.set()

    def watch() -> None:
        try:
            opened.watch(paths)
        except HostError as error:
            log.warning("%s", error)

    with opened:
        loop.add_reader(opened.fileno(), hear)
        try:
            yield watch
        finally:
            loop.remove_reader(opened.fileno())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
