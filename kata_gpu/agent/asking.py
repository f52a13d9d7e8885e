"""How Kata is led to who knows a pod's devices: through this agent, or past it to kubelet."""

from kata_gpu.host import Host
from kata_gpu.host.detour import Detour, own_socket
from kata_gpu.settings.agent import Settings


def detour(host: Host, settings: Settings) -> Detour | None:
    """Return the way for this process, with a socket of its own; None where Kata asks kubelet.

    It is to be settled before any drop-in names it.
    """
    asked = settings.pod_resources
    if asked.link is None:
        return None
    return Detour(
        root=host.root,
        link=asked.link,
        through=own_socket(settings.runtime_directory),
        around=asked.kubelet,
    )


def settle(host: Host, settings: Settings) -> None:
    """Have the path that Kata gets lead to somebody, be it that no agent runs; idempotent.

    Raises:
        HostError: it cannot be made, or something else is there.
    """
    way = detour(host, settings)
    if way is not None:
        way.settle()
