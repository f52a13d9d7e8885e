"""The floor: the only room that touches the operating system. It knows no policy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kata_gpu.host.commands import Run, run
from kata_gpu.host.sysfs import Sysfs


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One node's operating system, with everything that is a path under a movable root."""

    root: Path
    sysfs: Sysfs
    run: Run

    @classmethod
    def at(cls, root: Path = Path("/")) -> Self:
        """Return the host whose file system is mounted at *root*."""
        return cls(root=root, sysfs=Sysfs(root / "sys"), run=run)

    def path(self, absolute: str) -> Path:
        """Return where an absolute path of the host lies below the root."""
        return self.root / absolute.removeprefix("/")
