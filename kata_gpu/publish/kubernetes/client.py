"""The API server, as a node's agent uses it: a few requests, each with a deadline.

Objects are plain JSON, for the typed models of the client library drop what they do not know.
The library waits for answers in threads: a request takes one of a few, a watch has its own,
and a watch that is closed ends at once, whatever its thread waits for.

Source: the Kubernetes API.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from kata_gpu.errors import HostError
from kata_gpu.model.slices import Object, is_of
from kata_gpu.publish.kubernetes import library, shapes, threads
from kata_gpu.publish.kubernetes.errors import ApiError, clip, refusal, text_of
from kata_gpu.publish.kubernetes.library import JSON, Server
from kata_gpu.publish.kubernetes.watching import Watch

_RESOURCE_API: Final = "/apis/resource.k8s.io/v1"
_SLICES: Final = f"{_RESOURCE_API}/resourceslices"
TIMEOUT_S: Final = 15.0
_CONNECT_TIMEOUT_S: Final = 5.0
_THREADS: Final = 4
ANSWER_MAX_BYTES: Final = 16 * 1024 * 1024
_PIECE_BYTES: Final = 64 * 1024
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Objects, and the version of the collection they are."""

    items: tuple[Object, ...]
    version: str


@asynccontextmanager
async def connected(kubeconfig: str | None, *, agent: str) -> AsyncIterator["KubernetesClient"]:
    """Yield a client that goes by *kubeconfig*, or by the service account of this pod.

    Nothing is asked of the server yet. *agent* is the name and version it sees.

    Raises:
        HostError: there is neither, or it cannot be read.
    """
    client = KubernetesClient(await asyncio.to_thread(_server, kubeconfig), agent)
    try:
        yield client
    finally:
        client.close()


def _server(kubeconfig: str | None) -> Server:
    """Import the library, which takes a while."""
    try:
        if kubeconfig is None:
            return library.service_account(connections=_THREADS)
        return library.kubeconfig(kubeconfig, connections=_THREADS)
    except HostError as error:
        whence = kubeconfig or "the service account of this pod"
        raise HostError(
            f"cannot reach the API server by {whence}: {error}; set kubernetes.kubeconfig in "
            f"agent.toml, or kubernetes.api = false to do without it"
        ) from error


class KubernetesClient:
    """Requests to the API server; each raises ApiError, or a kind of it that says more."""

    def __init__(self, server: Server, agent: str) -> None:
        self._server = server
        self._agent = agent
        self._slots = asyncio.Semaphore(_THREADS)
        self._is_closed = False
        self._watches: set[Watch] = set()

    def close(self) -> None:
        """End every watch, and begin nothing more; a request on its way is not waited for."""
        for watch in tuple(self._watches):
            watch.close()
        self._is_closed = True
        self._server.close()

    async def get_node(self, name: str) -> Object:
        """Return a Node."""
        found = await self._ask("GET", _path("/api/v1/nodes", name))
        return shapes.identified(found, f"get node {name}")

    async def get_claim(self, namespace: str, name: str, *, timeout_s: float = TIMEOUT_S) -> Object:
        """Return a ResourceClaim."""
        found = await self._ask("GET", _claim_path(namespace, name), timeout_s=timeout_s)
        return shapes.identified(found, f"get ResourceClaim {namespace}/{name}")

    async def list_slices(self, driver: str, node: str) -> Listing:
        """Return the ResourceSlices of a driver's pool on a node, as they are at this moment.

        Whatever else the server returns is passed over: who lists may delete.

        Raises:
            NotFoundError: the server has no ``resource.k8s.io/v1``.
        """
        found = await self._ask("GET", _SLICES, {"fieldSelector": _selector(driver, node)})
        what = "list ResourceSlices"
        items = found.get("items") or []
        told = items if isinstance(items, list) else [items]
        slices = [shapes.resource_slice(item, what) for item in told]
        return Listing(
            items=tuple(found for found in slices if is_of(found, driver, node)),
            version=shapes.version(found, what),
        )

    async def create_slice(self, body: Object) -> Object:
        """Create a ResourceSlice, and return it as stored."""
        return shapes.resource_slice(
            await self._ask("POST", _SLICES, body=body), "create a ResourceSlice"
        )

    async def replace_slice(self, body: Object) -> Object:
        """Replace the ResourceSlice of that name, uid and version; return it as stored."""
        name = body["metadata"]["name"]
        found = await self._ask("PUT", _path(_SLICES, name), body=body)
        return shapes.resource_slice(found, f"replace ResourceSlice {name}")

    async def delete_slice(self, stored: Object) -> None:
        """Delete a ResourceSlice if it still is what was *stored*."""
        metadata = stored["metadata"]
        meant = {key: metadata[key] for key in ("uid", "resourceVersion")}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": meant}
        await self._ask("DELETE", _path(_SLICES, metadata["name"]), body=options)

    def watch_slices(
        self, driver: str, node: str, *, version: str, timeout_s: int, wake: Callable[[], None]
    ) -> Watch:
        """Return what happens to the slices of a driver and node after *version*.

        The server ends the watch after *timeout_s*. *wake* is called on this loop whenever
        there is something to take.
        """
        query = {
            "watch": "true",
            "fieldSelector": _selector(driver, node),
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_s),
        }
        timeouts = (_CONNECT_TIMEOUT_S, timeout_s + TIMEOUT_S)
        loop = asyncio.get_running_loop()

        def begin() -> Any:
            return self._request("GET", _SLICES, query, timeouts=timeouts)

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(wake)

        watch = Watch(begin, tell, self._watches.discard)
        self._watches.add(watch)
        watch.start()
        return watch

    async def apply_node_labels(
        self, name: str, labels: Mapping[str, str], *, manager: str
    ) -> Object:
        """Have *manager* own exactly these labels of a node; those of others are untouched.

        One that has none is no manager of the node's any more.
        """
        metadata = {"name": name, **({"labels": dict(labels)} if labels else {})}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        return await self._apply(_path("/api/v1/nodes", name), body, manager)

    async def create_event(self, body: Object) -> Object:
        """Create an ``events.k8s.io/v1`` Event."""
        path = _events_path(body["metadata"]["namespace"])
        return shapes.identified(await self._ask("POST", path, body=body), "create an Event")

    async def patch_event(self, namespace: str, name: str, body: Object) -> Object:
        """Merge *body* into an Event."""
        path = _path(_events_path(namespace), name)
        return await self._ask("PATCH", path, body=body, kind=_MERGE)

    async def _apply(self, path: str, body: Object, manager: str) -> Object:
        query = {"fieldManager": manager, "force": "true"}
        return await self._ask("PATCH", path, query, body=body, kind=_APPLY)

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Object | None = None,
        kind: str = JSON,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        timeouts = (min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s)

        def ask() -> dict[str, Any]:
            until_s = time.monotonic() + timeout_s
            response = self._request(method, path, query, body=body, kind=kind, timeouts=timeouts)
            return self._answer(response, f"{method} {path}", until_s)

        async with self._slots:
            if self._is_closed:
                raise ApiError(f"cannot {method} {path}: the agent ends")
            return await threads.call(ask, name="kubernetes")

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        *,
        timeouts: tuple[float, float],
        body: Object | None = None,
        kind: str = JSON,
    ) -> Any:
        """Return the response of urllib3, its body not yet read. Blocks."""
        try:
            return self._server.request(
                method, path, query, agent=self._agent, timeouts_s=timeouts, body=body, kind=kind
            )
        except self._server.failures as error:
            raise _failure(error, f"{method} {path}") from error

    def _answer(self, response: Any, what: str, until_s: float) -> dict[str, Any]:
        try:
            raw = _whole(response, what, until_s)
        except self._server.failures as error:
            response.close()
            raise _failure(error, what) from error
        except ApiError:
            response.close()
            raise
        response.release_conn()
        if not 200 <= response.status < 300:  # noqa: PLR2004 - success
            raise refusal(what, response.status, raw, response.headers.get("Retry-After"))
        return _object(raw, what)


def _whole(response: Any, what: str, until_s: float) -> bytes:
    """Return the body, as it was sent: no encoding was asked for."""
    raw = bytearray()
    while piece := response.read1(_PIECE_BYTES, decode_content=False):
        raw += piece
        if len(raw) > ANSWER_MAX_BYTES:
            raise ApiError(f"cannot {what}: the answer has more than {ANSWER_MAX_BYTES} bytes")
        if time.monotonic() > until_s:
            raise ApiError(f"cannot {what}: the answer was not whole in time")
    return bytes(raw)


def _failure(error: Exception, what: str) -> ApiError:
    return ApiError(f"cannot {what}: {clip(str(error))}")


def _object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except RecursionError as error:  # a claim may hold what its author likes
        raise ApiError(f"cannot {what}: the answer is nested too deeply") from error
    except ValueError as error:
        raise ApiError(f"cannot {what}: the answer is no JSON: {text_of(raw)}") from error
    if not isinstance(found, dict):
        raise ApiError(f"cannot {what}: the answer is no JSON object: {text_of(raw)}")
    return found


def _path(collection: str, name: str) -> str:
    return f"{collection}/{quote(name, safe='')}"


def _claim_path(namespace: str, name: str) -> str:
    return _path(f"{_path(f'{_RESOURCE_API}/namespaces', namespace)}/resourceclaims", name)


def _events_path(namespace: str) -> str:
    return f"{_path('/apis/events.k8s.io/v1/namespaces', namespace)}/events"


def _selector(driver: str, node: str) -> str:
    return f"spec.driver={driver},spec.nodeName={node}"
