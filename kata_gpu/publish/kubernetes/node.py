"""Writes this node's labels when they change: to a file, or to the Node.

The file is for node-feature-discovery, and needs no rights on nodes, which are rights on every
node of the cluster. On the Node, server-side apply leaves everybody else's labels alone.

Source: node-feature-discovery, feature files: ``key=value`` lines; files whose names begin
with a dot are passed over.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import KataGpuError
from kata_gpu.host import files
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import NotFoundError
from kata_gpu.publish.kubernetes.pacing import BackOff, Pacing

log = logging.getLogger(__name__)

MANAGER: Final = "kata-gpu"
FEATURE_FILE: Final = "kata-gpu"

Labels = Mapping[str, str]
Write = Callable[[Labels], Coroutine[Any, Any, None]]


def to_node(client: KubernetesClient, node: str) -> Write:
    """Return a function that has the Node have these labels of ours, and no others.

    It looks for the Node first: to apply to one that is not there is to create it, which is
    refused for want of a right that an agent must not have, or done if it has it.
    """

    async def write(labels: Labels) -> None:
        try:
            await client.get_node(node)
        except NotFoundError as error:
            raise NotFoundError(
                f"cannot label the node: the cluster has no node {node}; "
                f"set kubernetes.node_name in agent.toml"
            ) from error
        await client.apply_node_labels(node, labels, manager=MANAGER)

    return write


def to_feature_file(directory: Path) -> Write:
    """Return a function that has node-feature-discovery set these labels.

    A file that says so already is not written.
    """
    path = directory / FEATURE_FILE

    def replace(labels: Labels) -> None:
        text = "".join(f"{key}={labels[key]}\n" for key in sorted(labels))
        if files.read(path) != text:
            files.replace(path, text, staging=directory)

    async def write(labels: Labels) -> None:
        await asyncio.to_thread(replace, labels)

    return write


class LabelPublisher:
    """Has the latest labels written, once for each change."""

    def __init__(self, write: Write, pacing: Pacing | None = None) -> None:
        self._write = write
        self._pacing = pacing or Pacing()
        self._wanted: Labels | None = None
        self._written: Labels | None = None
        self._wake = asyncio.Event()
        self._back_off = BackOff(self._pacing)

    @property
    def trouble(self) -> str | None:
        """Why the node has other labels; None when it has these."""
        return self._back_off.trouble

    def update(self, labels: Labels) -> None:
        """Have exactly these labels of ours on the node."""
        self._wanted = dict(labels)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled; the labels then stay."""
        await asyncio.sleep(self._pacing.start_delay_s())
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted = self._wanted
            if wanted is None or wanted == self._written:
                continue
            try:
                await self._write(wanted)
            except KataGpuError as error:
                self._wake.set()
                await asyncio.sleep(self._back_off.failed(error))
            else:
                log.info("labelled the node: %s", _changes(self._written or {}, wanted))
                self._written = wanted
                self._back_off.succeeded()


def _changes(before: Labels, after: Labels) -> str:
    changed = [f"{key}={after[key]}" for key in sorted(after) if before.get(key) != after[key]]
    return ", ".join([*changed, *(f"no {key}" for key in sorted({*before} - {*after}))])
