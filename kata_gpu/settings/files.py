"""Where the files are that an admin writes, and what they say."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kata_gpu.errors import HostError

if TYPE_CHECKING:  # where the files are is said before anybody imports what they are parsed into
    from kata_gpu.model.blueprint import Blueprint
    from kata_gpu.settings.agent import Settings

SETTINGS: Final = "/etc/kata-gpu/agent.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The settings and the blueprint of a host whose file system is at *root*."""

    root: Path = Path("/")
    named_settings: Path | None = None
    """None for the file at its place, which need not be there."""

    named_blueprint: Path | None = None
    """None for the one that the settings name."""

    @property
    def settings(self) -> Path:
        """Where the settings are, if anywhere."""
        return self.named_settings or self._path(SETTINGS)

    def blueprint(self, settings: "Settings") -> Path:
        """Return where the blueprint is."""
        return self.named_blueprint or self._path(settings.blueprint)

    def read_settings(self) -> "Settings":
        """Return what the settings say.

        Raises:
            HostError: they cannot be looked for.
            InvalidBlueprint: they are wrong, or not where somebody says they are.
        """
        from kata_gpu.settings.agent import Settings  # noqa: PLC0415 - see above

        try:
            if self.named_settings is None and not self.settings.exists():
                return Settings()
        except OSError as error:
            raise HostError(f"cannot read {self.settings}: {error.strerror}") from error
        from kata_gpu.settings import agent_file  # noqa: PLC0415 - pydantic is for who parses

        return agent_file.load(self.settings)

    def read_blueprint(self, settings: "Settings") -> "Blueprint":
        """Return the blueprint; InvalidBlueprint says what is wrong with it."""
        from kata_gpu.settings import blueprint  # noqa: PLC0415 - pydantic is for who parses

        return blueprint.load(self.blueprint(settings))

    def _path(self, absolute: str) -> Path:
        return self.root / absolute.removeprefix("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """By what a file is told from the one that is written in its place."""

    inode: int
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp | None":
        """Return the stamp of the file at *path*; None where there is none to see."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(inode=found.st_ino, size_bytes=found.st_size, changed_ns=found.st_ctime_ns)
