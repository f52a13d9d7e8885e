"""Takes back what an agent published of its node: ResourceSlices and labels.

Only what is known to be an agent's is touched: the slices of its drivers on its node, and the
labels that its field manager owns. Events end by themselves. No agent of the node may run
meanwhile, or it writes all of it anew.

Source: kubernetes.io, Server-Side Apply: what a manager owned and applies no more goes, unless
another owns it too.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from kata_gpu.model.slices import Object
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import ApiError, NotFoundError
from kata_gpu.publish.kubernetes.node import MANAGER, owned_labels

log = logging.getLogger(__name__)

_FORBIDDEN = 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the API server has of a node that its agent wrote."""

    slices: tuple[Object, ...] = ()
    labels: tuple[str, ...] = ()
    """Their keys, sorted."""

    has_node: bool = True
    """Whether the cluster knows the node at all."""


async def find(client: KubernetesClient, node: str, drivers: Mapping[str, bool]) -> Published:
    """Return what is published of *node*.

    *drivers* says of each whether kubelet has ever known it here: who never did has published
    no slice, so it is no matter if none may be listed.

    Raises:
        ApiError: the server does not answer, or refuses to.
    """
    slices = [s for name in drivers for s in await _slices(client, node, name, drivers[name])]
    try:
        found = await client.get_node(node)
    except NotFoundError:
        return Published(slices=tuple(slices), has_node=False)
    return Published(slices=tuple(slices), labels=tuple(sorted(owned_labels(found))))


async def withdraw(client: KubernetesClient, node: str, published: Published) -> None:
    """Delete the slices, and give the labels up; what is gone already is no error.

    Raises:
        ApiError: one could not be; those before it are gone.
    """
    for stored in published.slices:
        try:
            await client.delete_slice(stored)
        except NotFoundError:
            log.debug("ResourceSlice %s is gone already", stored["metadata"]["name"])
    if published.labels:
        await client.apply_node_labels(node, {}, manager=MANAGER)


async def _slices(
    client: KubernetesClient, node: str, driver: str, is_known: bool
) -> tuple[Object, ...]:
    try:
        return (await client.list_slices(driver, node)).items
    except NotFoundError:  # the server has no ResourceSlices
        return ()
    except ApiError as error:
        if error.status == _FORBIDDEN and not is_known:
            return ()
        raise
