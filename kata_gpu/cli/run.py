"""``kata-gpu run``: the daemon."""

import argparse
import asyncio
import gc
import logging
from contextlib import ExitStack
from functools import partial

from kata_gpu.agent import asking, daemon
from kata_gpu.agent.hints import Sources
from kata_gpu.cli import configuration, context
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.host.detour import Guardian
from kata_gpu.host.uevents import Uevents
from kata_gpu.host.watches import Watches
from kata_gpu.settings.agent import Settings

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Hold the node to the blueprint until a signal ends it."""
    gc.enable()
    settings = configuration.settings(options)
    host = context.working_host(options, settings.operation_timeout_s)
    load = partial(configuration.blueprint, options, settings)
    files = (
        configuration.blueprint_path(options, settings).absolute(),
        configuration.settings_path(options).absolute(),
    )
    with ExitStack() as stack:
        guardian = _guardian(stack, host, settings)
        sources = Sources(uevents=Uevents.subscribe(), watches=_watches(stack), configuration=files)
        asyncio.run(
            daemon.run(host, settings, load, sources, waits=options.wait, guardian=guardian)
        )
    return ExitCode.OK


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
