"""Kernel modules: which PCI drivers they give, and loading one."""

from typing import Final

from kata_gpu.host.commands import Run

_LOAD_TIMEOUT_S: Final = 30.0


def load(run: Run, module: str) -> None:
    """Load a module and what it depends on; nothing happens when it is loaded already."""
    run(("modprobe", "--", module), timeout_s=_LOAD_TIMEOUT_S)
