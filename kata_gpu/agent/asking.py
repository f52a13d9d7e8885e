"""How Kata is led to who knows a pod's devices: through this agent, or past it to kubelet.

Kata has the path of a link. It leads to kubelet's socket, and while this agent answers, to ours;
`host.detour` says what becomes of it when the agent is killed. A pod with a claim that is made
in between gets no GPU and fails; all others start.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.host.detour import Detour, Guardian, own_socket, sweep
from kata_gpu.settings.agent import Settings

if TYPE_CHECKING:  # grpc is for who serves
    from kata_gpu.publish.kubelet.pod_resources import Look, Proxy

log = logging.getLogger(__name__)


def detour(host: Host, settings: Settings) -> Detour | None:
    """Return the way for this process, with a socket of its own; None where Kata asks kubelet.

    It is to be settled before any drop-in names it.
    """
    asked = settings.pod_resources
    if asked.link is None:
        return None
    return Detour(
        root=host.root,
        link=asked.link,
        through=own_socket(settings.runtime_directory),
        around=asked.kubelet,
    )


def settle(host: Host, settings: Settings) -> None:
    """Have the path that Kata gets lead to somebody, be it that no agent runs; idempotent.

    Raises:
        HostError: it cannot be made, or something else is there.
    """
    way = detour(host, settings)
    if way is not None:
        way.settle()


@contextmanager
def guarded(way: Detour) -> Iterator[Guardian]:
    """Have a guardian of *way* until the block ends; to be entered before there is any thread."""
    guardian = Guardian(way)
    guardian.start()
    if os.getpid() == 1:
        log.warning(
            "cannot lead Kata to kubelet if this process is killed: it is the first of its PID "
            "namespace, and its guardian ends with it; give the pod hostPID"
        )
    try:
        yield guardian
    finally:
        guardian.stop()


@asynccontextmanager
async def answering(guardian: Guardian, look: "Look") -> AsyncIterator["Proxy"]:
    """Answer Kata until the block ends, and lead it through us for as long.

    Raises:
        HostError: our socket, or the link to it, cannot be made.
    """
    from kata_gpu.publish.kubelet import pod_resources  # noqa: PLC0415 - grpc is for who serves

    way = guardian.detour
    through = way.at(way.through)
    through.parent.mkdir(parents=True, exist_ok=True)
    way.settle()
    for left in sweep(through.parent):
        log.warning("removed %s, which a killed agent left", left)
    async with pod_resources.serve(through, way.at(way.around), look) as proxy:
        way.open()
        log.info(
            "Kata's questions to %s come to this agent, and kubelet's answers go back", way.link
        )
        try:
            yield proxy
        finally:
            way.close()


def hold(guardian: Guardian) -> None:
    """Lead Kata through us again where somebody has changed that; for once in a while."""
    way = guardian.detour
    had_guardian = guardian.pid is not None
    if had_guardian and not guardian.is_there():
        log.warning(
            "the guardian of %s is gone: if this agent is killed now, no pod of Kata's starts "
            "until the next one runs; restart it",
            way.link,
        )
    if way.is_open():
        return
    try:
        way.open()
    except HostError as error:
        log.warning("%s", error)
    else:
        log.warning("led %s through this agent again: somebody had changed it", way.link)
