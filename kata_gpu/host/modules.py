"""Kernel modules: which PCI drivers they give, and loading one."""

from pathlib import Path
from typing import Final

from kata_gpu.host.commands import Run

_LOAD_TIMEOUT_S: Final = 30.0


def load(run: Run, module: str, *, root: Path = Path("/")) -> None:
    """Load a module and what it depends on; nothing happens when it is loaded already.

    It comes from the modules of the host whose file system is mounted at *root*.
    """
    where = () if root == Path("/") else ("-d", str(root))
    run(("modprobe", *where, "--", module), timeout_s=_LOAD_TIMEOUT_S)
