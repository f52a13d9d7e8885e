"""What the daemon is given: the host, what it listens to, and who leads Kata when it is gone."""

import argparse
import asyncio
import logging
from contextlib import ExitStack

from kata_gpu.agent import asking, daemon
from kata_gpu.agent.hints import Sources
from kata_gpu.cli import context
from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.host.detour import Guardian
from kata_gpu.host.uevents import Uevents
from kata_gpu.host.watches import Watches
from kata_gpu.settings.agent import Settings
from kata_gpu.settings.files import Files
from kata_gpu.settings.reading import Reading

log = logging.getLogger(__name__)


def serve(options: argparse.Namespace, files: Files, reading: Reading) -> None:
    """Run the daemon until a signal ends it; to be called before any thread starts."""
    settings = reading.settings()
    host = context.working_host(options, settings.operation_timeout_s)
    configuration = (files.blueprint(settings).absolute(), files.settings.absolute())
    with ExitStack() as stack:
        guardian = _guardian(stack, host, settings)
        sources = Sources(
            uevents=Uevents.subscribe(), watches=_watches(stack), configuration=configuration
        )
        asyncio.run(
            daemon.run(
                host, settings, reading.blueprint, sources, waits=options.wait, guardian=guardian
            )
        )


def _guardian(stack: ExitStack, host: Host, settings: Settings) -> Guardian | None:
    """Return who leads Kata past this agent when it ends, however it does."""
    way = asking.detour(host, settings)
    return None if way is None else stack.enter_context(asking.guarded(way))


def _watches(stack: ExitStack) -> Watches | None:
    """Return watches that end with the *stack*; a node without any is looked at by the rescan."""
    try:
        return stack.enter_context(Watches.open())
    except HostError as error:
        log.warning("%s; until then the rescan finds what changes in files", error)
        return None
