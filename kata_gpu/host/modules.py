"""Kernel modules: who uses one, and loading one."""

from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host.commands import Run
from kata_gpu.host.sysfs import Sysfs

_LOAD_TIMEOUT_S: Final = 30.0


def load(run: Run, module: str, *, root: Path = Path("/")) -> None:
    """Load a module and what it depends on; nothing happens when it is loaded already.

    It comes from the modules of the host whose file system is mounted at *root*.
    """
    where = () if root == Path("/") else ("-d", str(root))
    run(("modprobe", *where, "--", module), timeout_s=_LOAD_TIMEOUT_S)


def users(sysfs: Sysfs, module: str) -> tuple[int | None, tuple[str, ...]]:
    """Return how often a module is in use, and the modules that use it.

    It explains and never decides: nobody is told which device they use. The count is None
    for a module that is built in, is not loaded, or cannot be unloaded.
    """
    folder = f"module/{module}"
    try:
        count = sysfs.attributes(folder, ("refcnt",)).get("refcnt", "")
        return (int(count) if count.isdecimal() else None), tuple(sysfs.names(f"{folder}/holders"))
    except HostError:
        return None, ()
