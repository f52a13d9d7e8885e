"""Kernel modules: VFIO's for whom, the PCI drivers they gave, their users, and loading one.

Source: modules.alias as depmod writes it; module_add_driver in Linux drivers/base/module.c.
"""

import re
from pathlib import Path
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import files
from kata_gpu.host.commands import Run
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.vfio import VfioAlias

_LOAD_TIMEOUT_S: Final = 30.0
_ALIASES_MAX_BYTES: Final = 16 << 20  # a distribution's kernel has one or two
_DRIVER: Final = re.compile(r"pci:([A-Za-z0-9][A-Za-z0-9_.+-]{0,63})")
_ID: Final = r"(\*|[0-9A-F]{8})"
_CLASS: Final = r"(\*|[0-9A-F]{2})"
_VFIO_ALIAS: Final = re.compile(  # the literal start, no ^, makes it ten times as fast
    rf"\nalias vfio_pci:v{_ID}d{_ID}sv{_ID}sd{_ID}bc{_CLASS}sc{_CLASS}i{_CLASS}"
    r" ([A-Za-z0-9][A-Za-z0-9_-]{0,63})(?=\n|\Z)"
)


def load(run: Run, module: str, *, root: Path = Path("/")) -> None:
    """Load a module and what it depends on; nothing happens when it is loaded already.

    It comes from the modules of the host whose file system is mounted at *root*.
    """
    where = () if root == Path("/") else ("-d", str(root))
    run(("modprobe", *where, "--", module), timeout_s=_LOAD_TIMEOUT_S)


def vfio_aliases(root: Path, release: str) -> tuple[VfioAlias, ...]:
    """Return which functions VFIO's modules of the kernel *release* are made for.

    In the file's order; none when the host has no ``modules.alias``. A line of another form
    than depmod's is passed over.

    Raises:
        HostError: the file cannot be read, or *release* names no folder.
    """
    if "/" in release or release.startswith("."):
        raise HostError(f"cannot read the modules of kernel {release!r}: that is no folder's name")
    path = root / "lib/modules" / release / "modules.alias"
    text = files.read(path, max_bytes=_ALIASES_MAX_BYTES) or ""
    return tuple(
        VfioAlias(
            module=_kernel_name(found[8]),
            ids=tuple(None if text == "*" else int(text, 16) for text in found.groups()[:7]),
        )
        for found in _VFIO_ALIAS.finditer(f"\n{text}")
    )


def pci_drivers(sysfs: Sysfs, module: str) -> tuple[str, ...]:
    """Return the PCI drivers that *module* registered, by name; none when it is not loaded.

    Its two spellings mean the same, as modprobe has it; a driver's are two names.
    """
    entries = sysfs.names(f"module/{_kernel_name(module)}/drivers")
    return tuple(found[1] for found in map(_DRIVER.fullmatch, entries) if found)


def _kernel_name(module: str) -> str:
    return module.replace("-", "_")


def users(sysfs: Sysfs, module: str) -> tuple[int | None, tuple[str, ...]]:
    """Return how often a module is in use, and the modules that use it.

    It explains and never decides: nobody is told which device they use. The count is None
    for a module that is built in, is not loaded, or cannot be unloaded.
    """
    folder = f"module/{_kernel_name(module)}"
    try:
        count = sysfs.attributes(folder, ("refcnt",)).get("refcnt", "")
        return (int(count) if count.isdecimal() else None), tuple(sysfs.names(f"{folder}/holders"))
    except HostError:
        return None, ()
