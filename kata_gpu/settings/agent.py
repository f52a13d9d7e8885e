"""The agent's own settings file: where things lie and how long things take.

The file is optional and so is every key in it; what the node should *be* is the blueprint's
matter, not this one's.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

from kata_gpu.settings import toml_file
from kata_gpu.settings.toml_file import AbsolutePath, Table

DEFAULT_PATH: Final = "/etc/kata-gpu/agent.toml"
SOCKET_PATH_MAX_BYTES: Final = 107  # sun_path less its final zero, unix(7)


def _fits_sun_path(path: str) -> str:
    length = len(path.encode())
    if length > SOCKET_PATH_MAX_BYTES:
        raise ValueError(
            f"a socket's path has at most {SOCKET_PATH_MAX_BYTES} bytes and this one {length}; "
            f"choose a shorter one, below /run"
        )
    return path


def _octal(text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"0[0-7]{3}", text):
        raise ValueError('expected a file mode in quotes, such as "0660"')
    return int(text, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the agent's files lie, below the host's root, and how often it looks."""

    blueprint: str = "/etc/kata-gpu/blueprint.toml"
    state_directory: str = "/var/lib/kata-gpu"
    """Holds ledger.json: it must survive an upgrade of the agent."""

    socket: str = "/run/kata-gpu/status.sock"
    socket_mode: int = 0o660
    cdi_directory: str = "/var/run/cdi"
    rescan_interval_s: float = 60.0
    """How long the agent trusts that it missed no event."""

    settle_s: float = 0.2
    """How long it waits after an event for others of the same cause."""

    @property
    def ledger(self) -> str:
        """The ledger's path."""
        return f"{self.state_directory}/ledger.json"

    @property
    def lock(self) -> str:
        """Path of the lock that the one agent of this node holds."""
        return f"{self.state_directory}/agent.lock"


_DEFAULTS: Final = Settings()


class SettingsFile(Table):
    """``agent.toml``."""

    blueprint: AbsolutePath = _DEFAULTS.blueprint
    state_directory: AbsolutePath = _DEFAULTS.state_directory
    socket: Annotated[AbsolutePath, AfterValidator(_fits_sun_path)] = _DEFAULTS.socket
    socket_mode: Annotated[int, BeforeValidator(_octal)] = _DEFAULTS.socket_mode
    cdi_directory: AbsolutePath = _DEFAULTS.cdi_directory
    rescan_interval_s: float = Field(_DEFAULTS.rescan_interval_s, ge=1, le=60)
    settle_s: float = Field(_DEFAULTS.settle_s, ge=0, le=10)


def load(path: Path, *, is_required: bool) -> Settings:
    """Return the settings at *path*; the defaults when there is no file and none is required."""
    if not is_required and not path.exists():
        return Settings()
    return Settings(**dict(toml_file.load(path, SettingsFile)))
