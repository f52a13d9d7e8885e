"""Which claims this node has prepared: one JSON file that every agent of the node shares.

During a rolling update two agents are alive, and kubelet prepares with one and unprepares with
the other. So the file is read again under a lock before each change, and it is the file that
decides whose a device is. It is whole as the ledger is (temporary, fsync, rename), with a schema
version and a checksum. What was prepared before the node booted is void: so is its file, and
its name need not be on the disk before a claim is answered.

Each driver has a file of its own, and a unit may change from a device of one to a device of the
other while it is prepared. So whoever changes one file holds the locks of all.

What cannot be read is never replaced by an empty one: a device could be given twice.
"""

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.host import files, locks
from kata_gpu.publish.kubelet import checkpoint_form
from kata_gpu.publish.kubelet.prepared import Claims, PreparedClaim

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S: Final = 5.0
_MODE: Final = 0o600
_REMEDY: Final = (
    "nothing is prepared until it can be read: end the pods that have GPUs of this node, then "
    "remove it"
)

Change = Callable[[Claims], Claims]
"""Makes new claims of the present ones; or raises KataGpuError, and nothing is changed."""

_Identity = tuple[int, int, int]


class CheckpointError(KataGpuError):
    """The checkpoint cannot be trusted: prepare nothing, and give no claimed device back."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The file as it was read last."""

    identity: _Identity | None
    text: str | None
    """None before the first look: an empty file is another thing."""

    claims: Claims


class Checkpoint:
    """The file, and its content as last read; close it after each use.

    Changes that are asked for at once are written at once.
    """

    def __init__(
        self,
        path: Path,
        *,
        boot_id: str,
        timeout_s: float = LOCK_TIMEOUT_S,
        others: Sequence["Checkpoint"] = (),
    ) -> None:
        """Use the file at *path*; *others* are those of the node's other drivers."""
        self.path = path
        self._others = tuple(others)
        self._boot_id = boot_id
        self._timeout_s = timeout_s
        self._seen = _Seen(None, None, _NOTHING)
        self._pending: list[tuple[Change, asyncio.Future[Claims]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._thread = _new_thread()

    def claims(self) -> Claims:
        """Return what the file says now, by uid; it is read again only if it is another.

        Any thread may ask.

        Raises:
            CheckpointError: it is damaged, or of a newer schema than this agent's.
            HostError: it may not be read.
        """
        now = _identity(self.path)
        if now is None:
            return _NOTHING
        return self._seen.claims if self._seen.identity == now else self._look(now)

    def elsewhere(self) -> Iterator[PreparedClaim]:
        """Yield the claims of other drivers; none changes while a change of ours is made.

        Raises:
            CheckpointError, HostError: as of :meth:`claims`.
        """
        for other in self._others:
            yield from other.claims().values()

    async def update(self, change: Change) -> Claims:
        """Make what *change* makes of the claims durable, and return it.

        Raises:
            KataGpuError: whatever *change* raised; or the file could not be read, locked or
                written: then it is as it was.
        """
        done: asyncio.Future[Claims] = asyncio.get_running_loop().create_future()
        self._pending.append((change, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending())
        return await done

    async def close(self) -> None:
        """Wait until what was begun is written; it can be used again."""
        if self._writer is not None:
            await self._writer
        ended, self._thread = self._thread, _new_thread()
        ended.shutdown()

    def _look(self, identity: _Identity | None) -> Claims:
        """Read the file whatever its *identity*, whose stamps are coarse; parse what is new."""
        text, seen = _text(self.path), self._seen
        if text is None:
            return _NOTHING
        claims = seen.claims if seen.text == text else _parse(text, self.path, self._boot_id)
        self._seen = _Seen(identity, text, claims)
        return claims

    async def _write_pending(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            changes = [change for change, _ in batch]
            results: Sequence[Claims | KataGpuError]
            try:
                results = await loop.run_in_executor(self._thread, self._commit, changes)
            except Exception as error:  # who waits would wait for ever
                log.exception("a bug: a change of %s failed", self.path)
                results = [KataGpuError(f"cannot change {self.path}: {error!r:.200}")] * len(batch)
            for (_, done), result in zip(batch, results, strict=True):
                if done.done():  # nobody waits for it any more
                    continue
                if isinstance(result, KataGpuError):
                    done.set_exception(result)
                else:
                    done.set_result(result)

    def _commit(self, changes: Sequence[Change]) -> list[Claims | KataGpuError]:
        """Make the changes one after the other, and write what comes of them once."""
        try:
            with self._locked():
                before = self._look(_identity(self.path))
                after, results = _apply(before, changes)
                if after != before:
                    self._write(after, before)
        except KataGpuError as error:
            return [error] * len(changes)
        return results

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the locks of all files, in the one order in which nobody waits for another.

        Where another driver has no folder it is not served: whoever comes to serve it makes its
        folder first, and then takes our lock, too, before it changes anything.
        """
        others = (other.path for other in self._others if other.path.parent.is_dir())
        with ExitStack() as held:
            for path in sorted((self.path, *others)):
                lock = path.with_name("serialize.lock")
                held.enter_context(locks.exclusive_within(lock, timeout_s=self._timeout_s))
            yield

    def _write(self, claims: Claims, before: Claims) -> None:
        _require_readable([c for uid, c in claims.items() if before.get(uid) != c])
        text = _text_of(checkpoint_form.body(claims, boot_id=self._boot_id))
        files.replace(self.path, text, staging=self.path.parent, mode=_MODE, is_for_this_boot=True)
        self._seen = _Seen(_identity(self.path), text, claims)


_NOTHING: Final[Claims] = MappingProxyType({})


def _new_thread() -> ThreadPoolExecutor:
    """Return a thread, which begins with its first work."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")


def _apply(before: Claims, changes: Sequence[Change]) -> tuple[Claims, list[Claims | KataGpuError]]:
    after = before
    results: list[Claims | KataGpuError] = []
    for change in changes:
        try:
            after = change(after)
        except KataGpuError as error:
            results.append(error)
        else:
            results.append(after)
    return after, results


def _identity(path: Path) -> _Identity | None:
    """Return what tells one replacement of the file from another; None without a file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    return found.st_ino, found.st_ctime_ns, found.st_size


def _parse(text: str, path: Path, boot_id: str) -> Claims:
    try:
        document = json.loads(text)
        schema, body = document["schema"], document["checkpoint"]
        if document["sha256"] == _checksum(body) and schema == checkpoint_form.SCHEMA:
            return checkpoint_form.claims(body) if body["boot_id"] == boot_id else _NOTHING
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"cannot trust {path}: {error!r:.200}; {_REMEDY}") from error
    if isinstance(schema, int) and schema > checkpoint_form.SCHEMA:
        raise CheckpointError(
            f"cannot use {path}: it has schema {schema} and this agent knows up to "
            f"{checkpoint_form.SCHEMA}; install the newer agent again"
        )
    raise CheckpointError(
        f"cannot trust {path}: its checksum does not match its content; {_REMEDY}"
    )


def _text(path: Path) -> str | None:
    try:
        return files.read(path)
    except HostError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        raise CheckpointError(f"cannot trust the checkpoint: {error}; {_REMEDY}") from error


def _require_readable(claims: Iterable[PreparedClaim]) -> None:
    """Raise HostError for claims that we would refuse to read: nothing could be prepared then."""
    try:
        checkpoint_form.require_readable(claims)
    except ValueError as error:
        raise HostError(f"cannot note it in the checkpoint: {error}") from error


def _text_of(body: Mapping[str, Any]) -> str:
    plain = _plain(body)
    head = f'"schema": {checkpoint_form.SCHEMA}, "sha256": "{_sha256(plain)}"'
    return f'{{{head}, "checkpoint": {plain}}}\n'


def _checksum(body: Any) -> str:
    return _sha256(_plain(body))


def _plain(body: Any) -> str:
    """Return the one text that stands for *body*."""
    return json.dumps(body, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
