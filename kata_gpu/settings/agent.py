"""The agent's own settings: where things lie and how long things take.

The file is optional and so is every key in it; what the node should *be* is the blueprint's
matter, not this one's. ``settings.agent_file`` reads it.
"""

import os
from dataclasses import dataclass

from kata_gpu.model.kubernetes import PodResources


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """How this node's kubelet and its API server are reached."""

    node_name: str | None = None
    """None for $NODE_NAME, and without that the host's name."""

    kubelet_directory: str = "/var/lib/kubelet"
    """The same inside and outside the agent's container: kubelet is told paths below it."""

    kubeconfig: str | None = None
    """None for the service account of the agent's pod."""

    api: bool = True
    """Whether to write ResourceSlices, labels and events; without it, no DRA."""

    start_spread_s: float = 30.0
    """Within which the agents of a cluster that starts as a whole first ask the API server."""

    device_metadata: bool = False
    """Whether a claim's containers get files with their devices' attributes (KEP-5304). Each claim
    then has a CDI file of its own while it is prepared."""

    features_directory: str | None = None
    """Where node-feature-discovery reads labels from files; None to set labels on the node."""

    def plugin_directory(self, driver: str) -> str:
        """Return where kubelet keeps what is a DRA driver's own."""
        return f"{self.kubelet_directory}/plugins/{driver}"


def node_name(kubernetes: Kubernetes) -> str:
    """Return this node's name in the cluster."""
    return kubernetes.node_name or os.environ.get("NODE_NAME") or os.uname().nodename.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A TCP port of one of this node's addresses."""

    address: str
    port: int


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

    metrics: Endpoint | None = None
    """Where anybody may read the metrics; None for the status socket alone."""

    kubernetes: Kubernetes | None = None
    """None where the agent has nothing to do with Kubernetes."""

    @property
    def runtime_directory(self) -> str:
        """The folder of sockets."""
        return self.socket.rpartition("/")[0]

    @property
    def pod_resources_link(self) -> str:
        """Path of the link that leads Kata to whoever answers which devices a pod has."""
        return f"{self.state_directory}/pod-resources.sock"

    @property
    def pod_resources(self) -> PodResources:
        """Whom Kata can ask."""
        if self.kubernetes is None:
            return PodResources()
        kubelet = f"{self.kubernetes.kubelet_directory}/pod-resources/kubelet.sock"
        link = self.pod_resources_link if self.kubernetes.api else None
        return PodResources(kubelet=kubelet, link=link)

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
