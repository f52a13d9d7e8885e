"""How what Kubernetes was told of this node is taken back, for good: after this no agent runs.

Slices say that devices can be had, and labels that the node is ready: left behind, they have
the scheduler send pods to where nobody prepares them. What cannot be taken back from here is
told with the commands that do it.
"""

import shlex
from dataclasses import dataclass, replace
from typing import Final

from kata_gpu.errors import KataGpuError
from kata_gpu.host import Host, files, paths
from kata_gpu.model.kubernetes import DRIVERS
from kata_gpu.plan.kubernetes import labels
from kata_gpu.settings import agent
from kata_gpu.settings.agent import Kubernetes, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What Kubernetes was told of this node, as far as it can be known from here."""

    items: tuple[str, ...] = ()
    """What there is to be taken back, or what was."""

    troubles: tuple[str, ...] = ()
    """Why not all of it could be found, or taken back."""

    doubt: str | None = None
    """Why there may be more, though nobody was asked."""

    commands: tuple[str, ...] = ()
    """What takes back the rest, whoever is asked; empty where there is no trouble and no doubt."""


NOTHING: Final = Withdrawal()
_STRANGER: Final = (
    "the cluster has no node {node}, so nothing is left of it there; if this node has another "
    "name in the cluster, set kubernetes.node_name in agent.toml, and say this again"
)


def look(host: Host, settings: Settings) -> Withdrawal:
    """Return what there is to be taken back; nothing is changed. Blocks while it asks."""
    return _withdrawal(host, settings, takes=False)


def carry_out(host: Host, settings: Settings) -> Withdrawal:
    """Take it back, and return what was there; idempotent. Blocks; the lock is held by who calls.

    A trouble is in what is returned: the node is given back without the cluster, too.
    """
    return _withdrawal(host, settings, takes=True)


def _withdrawal(host: Host, settings: Settings, *, takes: bool) -> Withdrawal:
    kubernetes = settings.kubernetes
    if kubernetes is None:
        return _unknown(host, settings)
    found = _of_file(host, kubernetes, takes=takes)
    if not kubernetes.api:
        return found
    import asyncio  # noqa: PLC0415 - for who has somebody to ask

    node = agent.node_name(kubernetes)
    try:
        from_server = asyncio.run(_of_server(host, kubernetes, node, takes=takes))
    except KataGpuError as error:
        trouble = f"cannot take back what the API server was told of node {node}: {error}"
        with_labels = kubernetes.features_directory is None
        return replace(
            found,
            troubles=(*found.troubles, trouble),
            commands=(*found.commands, *_commands(node, with_labels=with_labels)),
        )
    return replace(
        from_server,
        items=(*from_server.items, *found.items),
        troubles=found.troubles,
        commands=found.commands,
    )


def _unknown(host: Host, settings: Settings) -> Withdrawal:
    """Nobody says how Kubernetes is reached: tell whether an agent that knew has been here."""
    link = settings.pod_resources_link
    if not paths.is_there(host.path(link)):
        return NOTHING
    doubt = (
        f"the settings have no [kubernetes], but {link} shows that an agent had one here; what it "
        f"published may be left in the cluster"
    )
    node = agent.node_name(Kubernetes())
    return Withdrawal(doubt=doubt, commands=_commands(node, with_labels=True))


def _of_file(host: Host, kubernetes: Kubernetes, *, takes: bool) -> Withdrawal:
    if kubernetes.features_directory is None:
        return NOTHING
    from kata_gpu.publish.kubernetes.node import FEATURE_FILE  # noqa: PLC0415 - for who asks

    path = f"{kubernetes.features_directory}/{FEATURE_FILE}"
    try:
        if not paths.is_there(host.path(path)):
            return NOTHING
        if takes:
            files.remove(host.path(path))
    except KataGpuError as error:
        return Withdrawal(troubles=(str(error),), commands=(f"rm {shlex.quote(path)}",))
    return Withdrawal(items=(f"{path}, of which node-feature-discovery makes labels",))


async def _of_server(host: Host, kubernetes: Kubernetes, node: str, *, takes: bool) -> Withdrawal:
    from kata_gpu.publish.kubernetes import client, library, withdrawal  # noqa: PLC0415 - for who asks

    drivers = {
        name: paths.is_there(host.path(kubernetes.plugin_directory(name))) for name in DRIVERS
    }
    async with client.connected(kubernetes.kubeconfig, agent=library.USER_AGENT) as api:
        found = await withdrawal.find(api, node, drivers)
        if takes:
            await withdrawal.withdraw(api, node, found)
    return Withdrawal(
        items=(
            *(f"ResourceSlice {stored['metadata']['name']}" for stored in found.slices),
            *(f"label {key} of node {node}" for key in found.labels),
        ),
        doubt=None if found.has_node else _STRANGER.format(node=node),
    )


def _commands(node: str, *, with_labels: bool) -> tuple[str, ...]:
    name = shlex.quote(node)
    slices = (
        f"kubectl delete resourceslices --field-selector spec.nodeName={name},spec.driver={driver}"
        for driver in DRIVERS
    )
    if not with_labels:
        return tuple(slices)
    keys = " ".join(f"{key}-" for key in labels.KEYS)
    return (*slices, f"kubectl label node {name} {keys}")
