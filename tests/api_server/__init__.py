"""An API server for tests: HTTP over 127.0.0.1, and as strict as the real one.

It knows nodes, ResourceSlices, ResourceClaims and Events, and what a node's agent does with
them; it refuses what Kubernetes refuses, and what a sound agent never asks for. Faults are put
in by a test: answers that fail, watches that end, history that is forgotten, fields that an
administrator disabled.
"""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.api_server.applying import Owners
from tests.api_server.serving import Server
from tests.api_server.store import Change, Json, Key, Store

TOKEN: Final = "a-token-for-tests"  # noqa: S105 - it opens nothing

RESOURCES: Final = {
    "Node": "nodes",
    "ResourceSlice": "resourceslices",
    "ResourceClaim": "resourceclaims",
    "Event": "events",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came, and how it was answered."""

    method: str
    path: str
    query: dict[str, str]
    status: int
    body: Any = None

    @property
    def is_write(self) -> bool:
        return self.method in {"POST", "PUT", "PATCH", "DELETE"}


@dataclass(slots=True, kw_only=True)
class Fault:
    """An answer for requests that would have been granted."""

    status: int
    method: str | None
    path: str
    times: int
    retry_after_s: int | None
    is_after: bool
    """Whether the request is granted first, and only its answer is lost."""


@dataclass(slots=True)
class ApiServer:
    """The server's state, and the hands of a test in it."""

    store: Store = field(default_factory=Store)
    owners: Owners = field(default_factory=Owners)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    """Fields of a slice's devices, or of its spec, that the server forgets."""

    has_dra: bool = True
    """Whether it serves resource.k8s.io/v1."""

    url: str = ""
    bookmarks: int = 0
    watch_epoch: int = 0
    watch_max_s: float = 600.0
    """After this it ends every watch, however long one was asked for."""

    is_ending: bool = False

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for this server, and return its path."""
        cluster = {"name": "tests", "cluster": {"server": self.url}}
        user = {"name": "agent", "user": {"token": TOKEN}}
        context = {"name": "tests", "context": {"cluster": "tests", "user": "agent"}}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [user],
            "contexts": [context],
            "current-context": "tests",
        }
        path.write_text(json.dumps(document))
        return path

    def put(self, body: Json) -> Json:
        """Have an object, as if another client had created or replaced it."""
        metadata = body["metadata"]
        key = (RESOURCES[body["kind"]], metadata.get("namespace", ""), metadata["name"])
        with self.store.changed:
            if any(found["metadata"]["name"] == key[2] for found in self._in(key)):
                meant = {f: v for f, v in metadata.items() if f not in {"uid", "resourceVersion"}}
                return self.store.replace(key, {**body, "metadata": meant})
            return self.store.create(key, body)

    def _in(self, key: Key) -> list[Json]:
        return [o for o in self.objects_of(key[0]) if o["metadata"].get("namespace", "") == key[1]]

    def objects(self, kind: str) -> list[Json]:
        """Return the objects of a kind, by name."""
        return self.objects_of(RESOURCES[kind])

    def objects_of(self, resource: str) -> list[Json]:
        return self.store.all(resource)

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        """Delete an object, as another client would."""
        self.store.delete((RESOURCES[kind], namespace, name), {})

    def wipe(self, node: str) -> int:
        """Delete all slices of a node, as kubelet does at its start; return how many."""
        slices = [s for s in self.objects("ResourceSlice") if s["spec"].get("nodeName") == node]
        for found in slices:
            self.remove("ResourceSlice", found["metadata"]["name"])
        return len(slices)

    @property
    def writes(self) -> list[Request]:
        """Every write that was asked for and granted."""
        return [r for r in list(self.requests) if r.is_write and r.status < 400]

    def asked(self, method: str, path: str = "") -> list[Request]:
        """Return the requests of a method whose path has *path* in it."""
        return [r for r in list(self.requests) if r.method == method and path in r.path]

    def watches(self) -> int:
        """Return how many watches were begun."""
        return sum("watch" in request.query for request in list(self.requests))

    def fail(
        self,
        status: int,
        *,
        method: str | None = None,
        path: str = "",
        times: int = 1,
        retry_after_s: int | None = None,
        is_after: bool = False,
    ) -> None:
        """Answer the next requests that match with *status*; 0 ends their connection instead."""
        self.faults.append(
            Fault(
                status=status,
                method=method,
                path=path,
                times=times,
                retry_after_s=retry_after_s,
                is_after=is_after,
            )
        )

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Return the fault that is meant for a request, and use it up by one."""
        with self.store.changed:
            for fault in self.faults:
                if fault.times and fault.method in {None, method} and fault.path in path:
                    fault.times -= 1
                    return fault
        return None

    def reset_watches(self) -> None:
        """End every watch in the middle of its stream."""
        with self.store.changed:
            self.watch_epoch += 1
            self.store.changed.notify_all()

    def expire(self) -> None:
        """Forget all history: a watch must begin with a new list."""
        self.store.expire()

    def bookmark(self) -> None:
        """Tell every watch which version it has reached."""
        with self.store.changed:
            self.bookmarks += 1
            self.store.version += 1
            self.store.changed.notify_all()

    def end(self) -> None:
        with self.store.changed:
            self.is_ending = True
            self.store.changed.notify_all()

    def changes(self, resource: str, version: int, wants: Callable[[Json], bool]) -> list[Change]:
        """Return what a watch has not yet been told; the caller holds the lock."""
        return list(self.store.since(resource, version, wants))


@contextmanager
def api_server(*, tls: ssl.SSLContext | None = None) -> Iterator[ApiServer]:
    """Serve until the block ends; then every connection and thread is gone."""
    api = ApiServer()
    with Server(api, tls) as server:
        api.url = f"http{'' if tls is None else 's'}://127.0.0.1:{server.port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield api
        finally:
            api.end()
            server.shutdown()
            thread.join()
            server.end_connections()
