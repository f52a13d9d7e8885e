"""``kata-gpu run``: the daemon."""

import argparse
import asyncio
import gc
from functools import partial

from kata_gpu.agent import daemon
from kata_gpu.cli import configuration, context
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.host.uevents import Uevents


def run(options: argparse.Namespace) -> int:
    """Hold the node to the blueprint until a signal ends it."""
    gc.enable()
    settings = configuration.settings(options)
    host = context.working_host(options, settings.operation_timeout_s)
    load = partial(configuration.blueprint, options, settings)
    asyncio.run(daemon.run(host, settings, load, Uevents.subscribe()))
    return ExitCode.OK
