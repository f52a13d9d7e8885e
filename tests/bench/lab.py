"""Run a benchmark's other half in a guest of the lab, and print what it prints."""

import compileall
import shlex
import sys
import time
from typing import Final

from tests.lab import accelerator, machine, setup
from tests.lab.topologies import TOPOLOGIES

_COMPILED: Final = ("kata_gpu", "tests")


def run(topology: str, *words: str, timeout_s: float) -> None:
    """Run Python's *words* in a guest; end with its status if that is not 0."""
    for folder in _COMPILED:  # which takes long in an emulated machine
        compileall.compile_dir(folder, quiet=2)
    kernel = setup.prepare(setup.Wanted.from_environment())
    chosen = accelerator.choose(kernel, setup.cache())
    command = shlex.join((sys.executable, *words))
    with machine.booted_with_retry(TOPOLOGIES[topology], kernel, chosen) as guest:
        job = guest.start(machine.in_checkout(TOPOLOGIES[topology], command))
        deadline = time.monotonic() + timeout_s
        with job.following(sys.stdout) as follow:
            while (status := guest.status(job)) is None and time.monotonic() < deadline:
                follow()
    if status != 0:
        sys.exit(f"{command}: {f'not done after {timeout_s:g} s' if status is None else status}")
