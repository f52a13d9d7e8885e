"""Who has a device, in the words that an admin looks for: process, user, pod."""

from dataclasses import dataclass
from enum import StrEnum

_CONTAINER_SHOWN = 12  # as every container tool does


class How(StrEnum):
    """What makes a process a holder."""

    OPEN = "open"
    MAPPED = "mapped"
    """It has no descriptor of the device any more, and the mapping keeps it in use."""

    NVML = "NVML"
    """NVIDIA's driver runs its work on the GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process that has one device."""

    pid: int
    command: str
    """The process's own word, 15 characters of it; unprintable ones are ``?``."""

    device: str
    """The node's path as the kernel names it, else its number or the function's address."""

    how: How
    user: str | None = None
    """The name in the host's passwd, else the number; None when the process has just ended."""

    container: str | None = None
    """64 hex digits; None for a process of no container."""

    pod_uid: str | None = None
    """As the API server writes it; None for a process of no pod."""

    pod_namespace: str | None = None
    """None when kubelet keeps no logs of the pod; so is the name."""

    pod_name: str | None = None
    service: str | None = None
    """The host's systemd service that it belongs to; None for a process of none."""

    def __str__(self) -> str:
        facts = [f"pid {self.pid}"]
        if self.user is not None:
            facts.append(f"user {self.user}")
        if self.pod_name is not None:
            facts.append(f"pod {self.pod_namespace}/{self.pod_name}")
        elif self.pod_uid is not None:
            facts.append(f"pod {self.pod_uid}")
        elif self.container is not None:
            facts.append(f"container {self.container[:_CONTAINER_SHOWN]}")
        elif self.service is not None:
            facts.append(f"service {self.service}")
        what = (
            f"runs work on {self.device}"
            if self.how is How.NVML
            else f"has {self.device} {self.how}"
        )
        return f"{self.command} ({', '.join(facts)}) {what}"
