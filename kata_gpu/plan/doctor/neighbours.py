"""Others who move the same devices, or take them back."""

from collections.abc import Iterable
from typing import Final

from kata_gpu.model.doctor import Answer
from kata_gpu.model.node_facts import NodeFacts, Unknown
from kata_gpu.plan.doctor.answers import info, ok, unknown, warning

_NVIDIA_DRIVERS: Final = frozenset({"nvidia", "nouveau", "nova_core"})
_MANAGERS: Final = {
    "vfio-manage": "NVIDIA's VFIO manager",
    "driver-manager": "NVIDIA's driver manager",
    "nvidia-kubevirt": "NVIDIA's device plugin for KubeVirt",
    "nvidia-sandbox-": "NVIDIA's sandbox device plugin",
}
"""By the first 15 bytes of the program's name, which is what the kernel keeps."""

_LIBVIRT: Final = frozenset({"libvirtd", "virtqemud", "virtnodedevd"})


def host_drivers(facts: NodeFacts) -> Iterable[Answer]:
    """At most one driver of the host waits for NVIDIA's GPUs."""
    loaded = facts.modules.loaded
    if isinstance(loaded, Unknown):
        yield unknown(loaded)
        return
    found = sorted(_NVIDIA_DRIVERS & loaded)
    if len(found) > 1:
        yield warning(
            f"{', '.join(found)} are loaded",
            "a GPU that is given back, or has no driver for a moment, goes to whichever is first",
            "blacklist all but the one that the node is meant to use",
        )
    else:
        yield ok(", ".join(found) or "none of " + ", ".join(sorted(_NVIDIA_DRIVERS)))


def managers(facts: NodeFacts) -> Iterable[Answer]:
    """Nobody else rebinds devices."""
    answers = [*_driverctl(facts), *_programs(facts)]
    yield from answers or [ok("none found")]


def _driverctl(facts: NodeFacts) -> Iterable[Answer]:
    found = facts.driverctl
    if isinstance(found, Unknown):
        yield unknown(found)
    elif found:
        yield warning(
            f"/etc/driverctl.d has {', '.join(found)}",
            "driverctl binds these at boot, and two that bind one device undo each other's work",
            "driverctl unset-override each device that a blueprint selects",
        )


def _programs(facts: NodeFacts) -> Iterable[Answer]:
    commands, sees_host = facts.process.commands, facts.process.sees_host
    if isinstance(commands, Unknown):
        yield unknown(commands)
        return
    if sees_host is not True:
        yield unknown(Unknown(reason="programs of the host cannot be seen from here"))
    for name in sorted(_MANAGERS.keys() & commands):
        yield warning(
            f"{_MANAGERS[name]} runs ({name})",
            "two that bind or offer one device undo each other's work",
            "let one of them have the node: in the GPU operator set "
            "nvidia.com/gpu.deploy.operands=false on it",
        )
    for name in sorted(_LIBVIRT & commands):
        yield info(f"{name} runs; its VMs with managed devices rebind them")
