"""Eight GPUs in groups of their own on a kernel that takes a second to take each away."""

import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from kata_gpu.agent import node
from tests import memory
from tests.kernel import nodes
from tests.passthrough import EVERY_GPU, SETTINGS, journal_of

_UNBIND_S: Final = 1.0
_TARGET: Final = 1.3


def main() -> None:
    """Print how long an apply takes, against the slowest unit alone."""
    logging.disable(logging.CRITICAL)
    with TemporaryDirectory(prefix="kata-gpu-", dir=memory.folder()) as folder:
        kernel = nodes.eight_gpus(Path(folder))
        kernel.delay = lambda path, _value: _UNBIND_S if path.endswith("/unbind") else 0.0
        started = time.perf_counter()
        turn = node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
        elapsed_s = time.perf_counter() - started
    bound = sum(outcome.step.startswith("bind ") for outcome in turn.report.outcomes)
    failed = len(turn.report.failures)
    print(f"{bound} units of {_UNBIND_S:g} s each, {failed} failed: {elapsed_s:.2f} s")
    print(f"target: at most {_UNBIND_S * _TARGET:.2f} s, that is {_TARGET:g} times the slowest")
