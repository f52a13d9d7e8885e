"""The inventory: what is on this node, as of one moment, with what could not be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.pci import PciAddress, PciFunction
from kata_gpu.model.platform import Platform

if TYPE_CHECKING:  # `kata-gpu inventory` need not pay for them
    from kata_gpu.model.cdi import CdiSpecs
    from kata_gpu.model.holder import Holder
    from kata_gpu.model.kata import Configuration
    from kata_gpu.model.operation import Operation
    from kata_gpu.model.runtime import ContainerRuntime
    from kata_gpu.model.vfio import VfioDriver

DROP_IN_NAME: Final = "60-kata-gpu.toml"
"""Our file in ``config.d``: kata-deploy owns the numbers 10 to 50 and leaves 51 to 89 to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that could not be read; the rest of the inventory stands without it."""

    subject: str
    """What it is about: a PCI address, a path, or "node"."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KataBase:
    """Where one Kata handler's configuration really lies."""

    handler: str
    config: str
    """The path the blueprint names."""

    directory: str | None
    """Folder of the real file behind links, which holds ``config.d``; None without one."""

    reason: str | None
    """Why there is no directory; None when there is."""

    file: str | None = None
    """The real file behind links; None where there is no directory."""

    @property
    def drop_in(self) -> str | None:
        """Path of our drop-in; None where no base file was found."""
        return self.directory and f"{self.directory}/config.d/{DROP_IN_NAME}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileContent:
    """A file that belongs to this agent, or would, as found."""

    path: str
    content: str | None
    """None when there is no such file."""


def quarantine_name(path: str) -> str:
    """Return what the file at *path* is called in the quarantine."""
    return path.replace("%", "%25").replace("/", "%2F")


def quarantined_path(name: str) -> str:
    """Return the path that such a name says."""
    return name.replace("%2F", "/").replace("%25", "%")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A foreign file that was moved out of the way."""

    path: str
    """Where it was."""

    kept: str
    """Where it is."""

    is_half_done: bool
    """Whether the move, or the way back, was cut short: the same file is at both places."""

    is_taken: bool
    """Whether something is where it was, or nobody can look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Every PCI function that matters, the groups they form, and the host around them."""

    functions: tuple[PciFunction, ...]
    """By address. Bridges above them and strangers in their groups are among them."""

    groups: tuple[IommuGroup, ...]
    platform: Platform
    kata: tuple[KataBase, ...]
    files: tuple[FileContent, ...]
    holders: "Mapping[PciAddress, tuple[Holder, ...]]"
    """Who has each function that somebody has; the others are not in it."""

    operations: "tuple[Operation, ...]"
    """What hangs in the kernel: a function that one is about has no binding to rely on."""

    problems: tuple[Problem, ...]
    read_at: datetime  # UTC
    vfio_drivers: "tuple[VfioDriver, ...]" = ()
    """For each function but bridges, by address; empty where they were not looked for."""

    configurations: "tuple[Configuration, ...]" = ()
    """Of *kata*, each real base file once."""
    cdi: "CdiSpecs | None" = None
    """Everybody's CDI files; None where they were not looked for."""

    quarantine: str | None = None
    """Where foreign files are moved to; None where it was not looked for."""

    set_aside: tuple[SetAside, ...] = ()
    """What is there."""
    runtimes: "tuple[ContainerRuntime, ...]" = ()
    """The node's container runtimes; empty where they were not looked for."""

    def by_address(self) -> dict[PciAddress, PciFunction]:
        """Return the functions keyed by address."""
        return {function.address: function for function in self.functions}

    def by_group(self) -> dict[int, IommuGroup]:
        """Return the groups keyed by number."""
        return {group.number: group for group in self.groups}

    def content(self, path: str) -> str | None:
        """Return the text of one of *files*; None when it is absent or was not looked for."""
        return next((file.content for file in self.files if file.path == path), None)
