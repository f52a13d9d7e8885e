"""The agent's own settings: where things lie and how long things take.

The file is optional and so is every key in it; what the node should *be* is the blueprint's
matter, not this one's. ``settings.agent_file`` reads it.
"""

from dataclasses import dataclass
from typing import Final

DEFAULT_PATH: Final = "/etc/kata-gpu/agent.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the agent's files lie, below the host's root, and how often it looks."""

    blueprint: str = "/etc/kata-gpu/blueprint.toml"
    state_directory: str = "/var/lib/kata-gpu"
    """Holds ledger.json: it must survive an upgrade of the agent."""

    socket: str = "/run/kata-gpu/status.sock"
    socket_mode: int = 0o660
    cdi_directory: str = "/var/run/cdi"
    kata_prefixes: tuple[str, ...] = ()
    """Where else than below /opt/kata, /opt/kata-* and /usr Kata is installed."""

    rescan_interval_s: float = 60.0
    """How long the agent trusts that it missed no event."""

    settle_s: float = 0.2
    """How long it waits after an event for others of the same cause."""

    operation_timeout_s: float = 30.0
    """How long an unbind, a bind or a reset may take before its unit counts as stuck."""

    @property
    def ledger(self) -> str:
        """The ledger's path."""
        return f"{self.state_directory}/ledger.json"

    @property
    def quarantine(self) -> str:
        """Where foreign files are kept that the blueprint has out of the way."""
        return f"{self.state_directory}/quarantined"

    @property
    def lock(self) -> str:
        """Path of the lock that the one agent of this node holds."""
        return f"{self.state_directory}/agent.lock"
