"""All objects of a kind that a person's kubeconfig lets them see; nothing is written.

They are plain JSON, for the typed models of the client library drop what they do not know.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from kata_gpu.errors import HostError
from kata_gpu.model.text import one_line
from kata_gpu.publish.kubernetes import library

PAGE: Final = 500
"""Objects that are asked for at once."""

OBJECTS_MAX: Final = 200_000
ANSWER_MAX_BYTES: Final = 64 << 20
_TIMEOUTS_S: Final = (5.0, 30.0)
_TEXT_MAX: Final = 300
_ABSENT: Final = 404
_EXPIRED: Final = 410
_OK: Final = 200


@contextmanager
def connected(kubeconfig: str | None = None) -> Iterator["Cluster"]:
    """Yield the cluster of *kubeconfig*, or of where kubectl would look for one.

    Raises:
        HostError: there is none, or it cannot be read.
    """
    try:
        server = library.kubeconfig(kubeconfig, connections=1)
    except HostError as error:
        raise HostError(
            f"cannot ask a cluster: {_clip(str(error))}; set KUBECONFIG, or give ResourceSlices "
            "as files instead of --cluster"
        ) from error
    try:
        yield Cluster(server)
    finally:
        server.close()


class Cluster:
    """An API server, to be read."""

    def __init__(self, server: library.Server) -> None:
        self._server = server

    def list_all(self, path: str) -> list[dict[str, Any]] | None:
        """Return all objects of the collection at *path*, page by page, by their list's order.

        None where the server has no such collection. What changes meanwhile may be either way.

        Raises:
            HostError: it does not answer, refuses, or answers what is no list.
        """
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = self._page(path, token)
            if page is None:
                return None
            found += _items(page, path)
            token = str((page.get("metadata") or {}).get("continue") or "")
            if len(found) > OBJECTS_MAX:
                raise HostError(f"cannot list {path}: there are more than {OBJECTS_MAX}")
            if not token:
                return found

    def _page(self, path: str, token: str) -> dict[str, Any] | None:
        query = {"limit": str(PAGE), **({"continue": token} if token else {})}
        try:
            response = self._server.request(
                "GET", path, query, agent=library.USER_AGENT, timeouts_s=_TIMEOUTS_S
            )
            raw = response.read(ANSWER_MAX_BYTES + 1)
            response.release_conn()
            status = int(response.status)
        except self._server.failures as error:
            raise HostError(f"cannot list {path}: {_clip(str(error))}") from error
        if len(raw) > ANSWER_MAX_BYTES:
            raise HostError(f"cannot list {path}: a page has more than {ANSWER_MAX_BYTES} bytes")
        if status == _ABSENT:
            return None
        if status == _EXPIRED:
            raise HostError(f"cannot list {path}: it took too long, and has changed; try again")
        return _object(raw, path, status)


def _items(page: dict[str, Any], path: str) -> list[dict[str, Any]]:
    items = page.get("items") or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise HostError(f"cannot list {path}: the answer is no list of objects")
    kind, version = str(page.get("kind", "")).removesuffix("List"), page.get("apiVersion")
    return [{"kind": kind, "apiVersion": version, **item} for item in items]


def _object(raw: bytes, path: str, status: int) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        text = _clip(raw.decode(errors="replace"))
        raise HostError(f"cannot list {path}: {status}: no JSON: {text}") from error
    if status != _OK or not isinstance(found, dict):
        message = found.get("message") if isinstance(found, dict) else None
        raise HostError(f"cannot list {path}: {status}: {_clip(str(message or 'no object'))}")
    return found


def _clip(text: str) -> str:
    return one_line(text[: 2 * _TEXT_MAX])[:_TEXT_MAX]
