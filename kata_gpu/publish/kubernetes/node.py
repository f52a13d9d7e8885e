"""Writes this node's labels when they change, or are gone: to a file, or to the Node.

The file is for node-feature-discovery, and needs no rights on nodes, which are rights on every
node of the cluster. On the Node, server-side apply leaves everybody else's labels alone. A Node
may be made anew, and anybody may take a label away: each few minutes it is looked at, and written
to if something of ours is missing.

Source: node-feature-discovery, feature files: ``key=value`` lines; files whose names begin
with a dot are passed over.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import KataGpuError
from kata_gpu.host import files
from kata_gpu.model.slices import Object
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import NotFoundError
from kata_gpu.publish.kubernetes.pacing import BackOff, Pacing

log = logging.getLogger(__name__)

MANAGER: Final = "kata-gpu"
FEATURE_FILE: Final = "kata-gpu"
_OWNED: Final = "f:"
"""What a field's name begins with in FieldsV1."""

Labels = Mapping[str, str]
Write = Callable[[Labels], Coroutine[Any, Any, bool]]
"""Has the node have these labels of ours, and tells whether it had others."""


def to_node(client: KubernetesClient, node: str) -> Write:
    """Return a function that has the Node have these labels of ours, and no others.

    It looks for the Node first: to apply to one that is not there is to create it, which is
    refused for want of a right that an agent must not have, or done if it has it.
    """

    async def write(labels: Labels) -> bool:
        try:
            found = await client.get_node(node)
        except NotFoundError as error:
            raise NotFoundError(
                f"cannot label the node: the cluster has no node {node}; "
                f"set kubernetes.node_name in agent.toml"
            ) from error
        if _has(found, labels):
            return False
        await client.apply_node_labels(node, labels, manager=MANAGER)
        return True

    return write


def _has(node: Object, labels: Labels) -> bool:
    """Tell whether our manager has exactly these labels of a Node, and nobody changed one."""
    there = _within(node, ("metadata", "labels"))
    is_ours = set(owned_labels(node)) == set(labels)
    return is_ours and all(there.get(key) == labels[key] for key in labels)


def owned_labels(node: Object) -> Iterator[str]:
    """Yield the keys of a Node's labels that our field manager applied."""
    entries = node["metadata"].get("managedFields")
    for entry in entries if isinstance(entries, list) else ():
        known = entry if isinstance(entry, Mapping) else {}
        if (known.get("manager"), known.get("operation")) == (MANAGER, "Apply"):
            labels = _within(known, ("fieldsV1", "f:metadata", "f:labels"))
            yield from (k.removeprefix(_OWNED) for k in labels if k.startswith(_OWNED))


def _within(found: Mapping[str, Any], keys: Iterable[str]) -> Mapping[str, Any]:
    for key in keys:
        inner = found.get(key)
        found = inner if isinstance(inner, Mapping) else {}
    return found


def to_feature_file(directory: Path) -> Write:
    """Return a function that has node-feature-discovery set these labels.

    A file that says so already is not written.
    """
    path = directory / FEATURE_FILE

    def replace(labels: Labels) -> bool:
        text = "".join(f"{key}={labels[key]}\n" for key in sorted(labels))
        if files.read(path) == text:
            return False
        files.replace(path, text, staging=directory)
        return True

    async def write(labels: Labels) -> bool:
        return await asyncio.to_thread(replace, labels)

    return write


class LabelPublisher:
    """Has the latest labels written, once for each change, and looks whether they stay."""

    def __init__(self, write: Write, pacing: Pacing | None = None) -> None:
        self._write = write
        self._pacing = pacing or Pacing()
        self._wanted: Labels | None = None
        self._written: Labels | None = None
        self._look_at_s = 0.0
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
            await self._wait()
            wanted, before = self._wanted, self._written
            is_due = self._pacing.now() >= self._look_at_s
            if wanted is None or (wanted == before and not is_due):
                continue
            try:
                is_changed = await self._write(wanted)
            except KataGpuError as error:
                self._wake.set()
                await asyncio.sleep(self._back_off.failed(error))
                continue
            if is_changed:
                lost = {} if before is None or wanted == before else before
                log.info("labelled the node: %s", _changes(lost, wanted))
            self._written = wanted
            self._look_at_s = self._pacing.now() + self._pacing.watch_timeout_s()
            self._back_off.succeeded()

    async def _wait(self) -> None:
        """Wait until somebody calls, or it is time to look."""
        left_s = max(self._look_at_s - self._pacing.now(), 0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self._written is None else left_s):
                await self._wake.wait()
        self._wake.clear()


def _changes(before: Labels, after: Labels) -> str:
    changed = [f"{key}={after[key]}" for key in sorted(after) if before.get(key) != after[key]]
    return ", ".join([*changed, *(f"no {key}" for key in sorted({*before} - {*after}))])
