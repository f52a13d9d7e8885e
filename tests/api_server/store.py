"""The objects of the API server, their versions, and what happened to them."""

import copy
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

Json = dict[str, Any]
Key = tuple[str, str, str]
"""Resource, namespace and name."""

_OWN: Final = ("uid", "creationTimestamp", "resourceVersion")


class Refusal(Exception):  # noqa: N818 - it is the server's answer
    """The answer to a request that is not granted."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch."""

    version: int
    kind: str
    """ADDED, MODIFIED or DELETED."""

    resource: str
    object: Json


class Store:
    """All objects; each change has a version, and waiters are told of it."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 100
        self.oldest = 0
        """A watch from before this version is too late."""

        self._objects: dict[Key, Json] = {}
        self._changes: list[Change] = []

    def all(self, resource: str) -> list[Json]:
        """Return copies of the objects of a resource, by name."""
        with self.changed:
            keys = sorted(key for key in self._objects if key[0] == resource)
            return [copy.deepcopy(self._objects[key]) for key in keys]

    def has(self, key: Key) -> bool:
        with self.changed:
            return key in self._objects

    def get(self, key: Key) -> Json:
        with self.changed:
            if key not in self._objects:
                raise Refusal(404, "NotFound", f'{key[0]} "{key[2]}" not found')
            return copy.deepcopy(self._objects[key])

    def create(self, key: Key, body: Json) -> Json:
        with self.changed:
            if key in self._objects:
                raise Refusal(409, "AlreadyExists", f'{key[0]} "{key[2]}" already exists')
            stored = copy.deepcopy(body)
            metadata = stored.setdefault("metadata", {})
            metadata.update(name=key[2], uid=metadata.get("uid") or str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
            if key[1]:
                metadata["namespace"] = key[1]
            stored["metadata"] = _without_empty(metadata)
            return self._keep("ADDED", key, stored)

    def replace(self, key: Key, body: Json) -> Json:
        """Store *body* in place of what is there, if it was made from what is there."""
        with self.changed:
            before = self.get(key)
            _check_meant(key, before, body.get("metadata") or {})
            after = copy.deepcopy(body)
            metadata = after.setdefault("metadata", {})
            metadata.update({field: before["metadata"][field] for field in _OWN})
            after["metadata"] = _without_empty(metadata)
            if after == before:
                return before
            return self._keep("MODIFIED", key, after)

    def delete(self, key: Key, preconditions: Mapping[str, object]) -> Json:
        with self.changed:
            before = self.get(key)
            _check_preconditions(key, before, preconditions)
            del self._objects[key]
            self.version += 1
            before["metadata"]["resourceVersion"] = str(self.version)
            self._tell(Change(self.version, "DELETED", key[0], before))
            return before

    def expire(self) -> None:
        """Forget what happened until now."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self._changes.clear()
            self.changed.notify_all()

    def since(self, resource: str, version: int, wants: Callable[[Json], bool]) -> Iterator[Change]:
        """Return what happened after *version*; the caller holds the lock."""
        for change in self._changes:
            if change.version > version and change.resource == resource and wants(change.object):
                yield change

    def _keep(self, kind: str, key: Key, body: Json) -> Json:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self._objects[key] = body
        self._tell(Change(self.version, kind, key[0], copy.deepcopy(body)))
        return copy.deepcopy(body)

    def _tell(self, change: Change) -> None:
        self._changes.append(change)
        self.changed.notify_all()


def _without_empty(metadata: Json) -> Json:
    """Return metadata as it is stored: what is empty is not there."""
    return {field: value for field, value in metadata.items() if value not in ({}, [], "")}


def _check_meant(key: Key, stored: Json, meant: Mapping[str, object]) -> None:
    """Refuse a write that was made from another object, or from another version of it."""
    found = stored["metadata"]
    if meant.get("uid") and meant["uid"] != found["uid"]:
        raise _conflict(
            key,
            f"Precondition failed: UID in precondition: {meant['uid']}, "
            f"UID in object meta: {found['uid']}",
        )
    if meant.get("resourceVersion") and meant["resourceVersion"] != found["resourceVersion"]:
        raise _conflict(
            key,
            "the object has been modified; please apply your changes to the latest version "
            "and try again",
        )


def _check_preconditions(key: Key, stored: Json, meant: Mapping[str, object]) -> None:
    for field, name in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        found = stored["metadata"][field]
        if meant.get(field) and meant[field] != found:
            raise _conflict(
                key,
                f"the {name} in the precondition ({meant[field]}) does not match the {name} in "
                f"record ({found})",
            )


def _conflict(key: Key, why: str) -> Refusal:
    return Refusal(409, "Conflict", f'Operation cannot be fulfilled on {key[0]} "{key[2]}": {why}')
