"""The floor: the only room that touches the operating system. It knows no policy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from kata_gpu.host.answers import Answers
from kata_gpu.host.children import Children
from kata_gpu.host.commands import Run, run
from kata_gpu.host.sysfs import Sysfs

LOOK_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One node's operating system, with everything that is a path under a movable root."""

    root: Path
    sysfs: Sysfs
    run: Run
    answers: Answers = field(default_factory=Answers, compare=False)
    """What programs of this host said before."""

    @classmethod
    def at(
        cls, root: Path = Path("/"), *, timeout_s: float = LOOK_TIMEOUT_S, threads: bool = False
    ) -> Self:
        """Return the host whose file system is mounted at *root*.

        No operation on sysfs is waited for longer than *timeout_s*. To use it in *threads* is
        to be said before there are any.
        """
        children = Children(root=root / "sys", timeout_s=timeout_s)
        if threads:
            children.start()
        return cls(root=root, sysfs=Sysfs(root / "sys", children), run=run)

    def path(self, absolute: str) -> Path:
        """Return where an absolute path of the host lies below the root."""
        return self.root / absolute.removeprefix("/")
