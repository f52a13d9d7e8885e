"""The API server, as a node's agent uses it: a few requests, each with a deadline.

Objects are plain JSON, for the typed models of the client library drop what they do not know.
The library waits for answers in threads: a request takes one of a few, a watch has its own,
and a watch that is closed ends at once, whatever its thread waits for.

Source: the Kubernetes API, and kubernetes-client 37.
"""

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import yaml

from kata_gpu.errors import HostError
from kata_gpu.model.slices import Object
from kata_gpu.publish.kubernetes import shapes
from kata_gpu.publish.kubernetes.errors import TEXT_MAX, ApiError, refusal, text_of
from kata_gpu.publish.kubernetes.watching import Watch

_RESOURCE_API: Final = "/apis/resource.k8s.io/v1"
_SLICES: Final = f"{_RESOURCE_API}/resourceslices"
_JSON: Final = "application/json"
TIMEOUT_S: Final = 15.0
_CONNECT_TIMEOUT_S: Final = 5.0
_THREADS: Final = 4
ANSWER_MAX_BYTES: Final = 16 * 1024 * 1024
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"

_NO_KUBECONFIG: Final = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError)
"""What the library raises for a file of another shape, which it does not check."""


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
    client = KubernetesClient(*await asyncio.to_thread(_load, kubeconfig, agent))
    try:
        yield client
    finally:
        client.close()


Failures = tuple[type[Exception], ...]


def _load(kubeconfig: str | None, agent: str) -> tuple[Any, Failures]:
    """Import the library, which takes a while; return a client of it, and what it raises."""
    config = importlib.import_module("kubernetes.config")
    api_client = importlib.import_module("kubernetes.client.api_client")
    settings = importlib.import_module("kubernetes.client.configuration").Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(kubeconfig, client_configuration=settings, persist_config=False)
    except (config.ConfigException, OSError, *_NO_KUBECONFIG) as error:
        whence = kubeconfig or "the service account of this pod"
        raise HostError(
            f"cannot reach the API server by {whence}: {error}; set kubernetes.kubeconfig in "
            f"agent.toml, or kubernetes.api = false to do without it"
        ) from error
    settings.retries = False  # who asks decides
    settings.keep_alive = True
    settings.connection_pool_maxsize = _THREADS
    client = api_client.ApiClient(settings)
    client.user_agent = agent
    return client, (
        importlib.import_module("urllib3.exceptions").HTTPError,
        importlib.import_module("kubernetes.client.exceptions").OpenApiException,
        config.ConfigException,
        OSError,
    )


class KubernetesClient:
    """Requests to the API server; each raises ApiError, or a kind of it that says more."""

    def __init__(self, api: Any, failures: Failures) -> None:
        self._api = api
        self._failures = failures
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="kubernetes")
        self._watches: set[Watch] = set()

    def close(self) -> None:
        """End every watch, and begin nothing more; a request on its way is not waited for."""
        for watch in tuple(self._watches):
            watch.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._api.close()

    async def get_node(self, name: str) -> Object:
        """Return a Node."""
        found = await self._ask("GET", _path("/api/v1/nodes", name))
        return shapes.identified(found, f"get node {name}")

    async def get_claim(self, namespace: str, name: str, *, timeout_s: float = TIMEOUT_S) -> Object:
        """Return a ResourceClaim."""
        found = await self._ask("GET", _claim_path(namespace, name), timeout_s=timeout_s)
        return shapes.identified(found, f"get ResourceClaim {namespace}/{name}")

    async def list_slices(self, driver: str, node: str) -> Listing:
        """Return the ResourceSlices of a driver and a node, as they are at this moment.

        Raises:
            NotFoundError: the server has no ``resource.k8s.io/v1``.
        """
        found = await self._ask("GET", _SLICES, {"fieldSelector": _selector(driver, node)})
        what = "list ResourceSlices"
        items = found.get("items") or ()
        return Listing(
            items=tuple(shapes.resource_slice(item, what) for item in items),
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
        """Have *manager* own exactly these labels of a node; those of others are untouched."""
        metadata = {"name": name, "labels": dict(labels)}
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
        kind: str = _JSON,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        timeouts = (min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s)

        def ask() -> dict[str, Any]:
            response = self._request(method, path, query, body=body, kind=kind, timeouts=timeouts)
            return self._answer(response, f"{method} {path}")

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, ask)
        except RuntimeError as error:  # the pool is shut down
            raise ApiError(f"cannot {method} {path}: the agent ends") from error

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        *,
        timeouts: tuple[float, float],
        body: Object | None = None,
        kind: str = _JSON,
    ) -> Any:
        """Return the response of urllib3, its body not yet read. Blocks."""
        try:
            request = self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": _JSON, "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
            )
            return self._api.call_api(*request, _request_timeout=timeouts).response
        except self._failures as error:
            raise _failure(error, f"{method} {path}") from error

    def _answer(self, response: Any, what: str) -> dict[str, Any]:
        try:
            raw = response.read(ANSWER_MAX_BYTES + 1)
        except self._failures as error:
            response.close()
            raise _failure(error, what) from error
        if len(raw) > ANSWER_MAX_BYTES:
            response.close()
            raise ApiError(f"cannot {what}: the answer has more than {ANSWER_MAX_BYTES} bytes")
        response.release_conn()
        if not 200 <= response.status < 300:  # noqa: PLR2004 - success
            raise refusal(what, response.status, raw, response.headers.get("Retry-After"))
        return _object(raw, what)


def _failure(error: Exception, what: str) -> ApiError:
    return ApiError(f"cannot {what}: {' '.join(str(error).split())[:TEXT_MAX]}")


def _object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
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
