"""What each path of the API server of tests answers."""

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.api_server import applying, validation
from tests.api_server.store import Json, Key, Refusal

if TYPE_CHECKING:
    from tests.api_server import ApiServer, Request

_PATHS: Final = re.compile(
    r"/(?:api/v1|apis/(?P<group>[a-z0-9.]+)/v1)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?"
)
_GROUPS: Final = {
    "nodes": None,
    "resourceslices": "resource.k8s.io",
    "resourceclaims": "resource.k8s.io",
    "events": "events.k8s.io",
}
_NAMESPACED: Final = {"resourceclaims", "events"}
_SELECTABLE: Final = {"spec.driver", "spec.nodeName", "metadata.name"}
_PREFIX_MAX: Final = 58
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"

_suffixes: Final = (f"{number:05x}" for number in itertools.count(0x2BCDF))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that was read to its end."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    body: Any

    def request(self, status: int) -> "Request":
        from tests.api_server import Request  # noqa: PLC0415 - it is above this module

        return Request(
            method=self.method, path=self.path, query=self.query, status=status, body=self.body
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    resource: str
    namespace: str
    name: str | None

    @property
    def key(self) -> Key:
        return (self.resource, self.namespace, self.name or "")


def answer(api: "ApiServer", asked: Asked) -> tuple[int, Json]:
    """Do what is asked, and return the status and the document of the answer."""
    place = _place(api, asked)
    chosen = _HANDLERS.get((asked.method, place.resource))
    if chosen is None:
        raise Refusal(405, "MethodNotAllowed", f"an agent does not {asked.method} {asked.path}")
    with api.store.changed:
        return chosen(api, asked, place)


def _place(api: "ApiServer", asked: Asked) -> _Place:
    match = _PATHS.fullmatch(asked.path)
    resource = match["resource"] if match else ""
    if match is None or resource not in _GROUPS or _GROUPS[resource] != match["group"]:
        raise Refusal(404, "NotFound", "404 page not found")
    if match["group"] == "resource.k8s.io" and not api.has_dra:
        raise Refusal(404, "NotFound", "404 page not found")
    if (match["namespace"] is not None) != (resource in _NAMESPACED):
        raise Refusal(404, "NotFound", "404 page not found")
    return _Place(
        resource=resource,
        namespace=match["namespace"] or "",
        name=match["name"],
    )


def collection(api: "ApiServer", asked: Asked) -> tuple[str, Callable[[Json], bool]]:
    """Return the resource that a list or watch is about, and which of its objects."""
    place = _place(api, asked)
    if place.resource != "resourceslices" or place.name:
        raise Refusal(403, "Forbidden", f"an agent may not list {place.resource}")
    conditions = list(_conditions(asked.query.get("fieldSelector", "")))
    if not any(field == "spec.nodeName" for field, _ in conditions):
        raise Refusal(403, "Forbidden", "an agent asks for slices of its own node alone")
    return place.resource, lambda found: all(_field(found, f) == v for f, v in conditions)


def _conditions(selector: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, selector.split(",")):
        field, _, value = part.replace("==", "=").partition("=")
        if field not in _SELECTABLE:
            raise Refusal(400, "BadRequest", f"field label not supported: {field}")
        yield field, value


def _field(found: Json, path: str) -> object:
    value: Any = found
    for part in path.split("."):
        value = value.get(part) or {}
    return value or ""


def _read(api: "ApiServer", asked: Asked, place: _Place) -> tuple[int, Json]:
    if place.name:
        found = api.store.get(place.key)
        fields = api.owners.managed_fields(place.key) if place.resource == "nodes" else ()
        return 200, _with_managers(found, fields) if fields else found
    resource, wants = collection(api, asked)
    items = [found for found in api.store.all(resource) if wants(found)]
    for item in items:  # as in the lists of the real one
        del item["apiVersion"], item["kind"]
    return 200, {
        "kind": "ResourceSliceList",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"resourceVersion": str(api.store.version)},
        "items": items,
    }


def _with_managers(found: Json, fields: Iterable[Json]) -> Json:
    return {**found, "metadata": {**found["metadata"], "managedFields": list(fields)}}


def _create_slice(api: "ApiServer", asked: Asked, place: _Place) -> tuple[int, Json]:
    body = _checked(asked.body)
    metadata = body["metadata"]
    name = metadata.get("name") or f"{metadata['generateName'][:_PREFIX_MAX]}{next(_suffixes)}"
    return 201, api.store.create((place.resource, "", name), _as_stored(api, body))


def _replace_slice(api: "ApiServer", asked: Asked, place: _Place) -> tuple[int, Json]:
    body = _checked(asked.body)
    before = api.store.get(place.key)
    _check_name(body["metadata"], place)
    for path in ("driver", "nodeName"):
        if body["spec"].get(path) != before["spec"].get(path):
            raise Refusal(422, "Invalid", f"spec.{path}: Invalid value: field is immutable")
    if body["spec"]["pool"]["name"] != before["spec"]["pool"]["name"]:
        raise Refusal(422, "Invalid", "spec.pool.name: Invalid value: field is immutable")
    return 200, api.store.replace(place.key, _as_stored(api, body))


def _check_name(metadata: Json, place: _Place) -> None:
    name = metadata.get("name")
    if name != place.name:
        raise Refusal(
            400,
            "BadRequest",
            f"the name of the object ({name}) does not match the name on the URL ({place.name})",
        )


def _checked(body: Any) -> Json:
    faults = validation.slice_faults(body)
    if faults:
        raise Refusal(422, "Invalid", f"ResourceSlice is invalid: {'; '.join(faults)}")
    return copy.deepcopy(dict(body))


def _as_stored(api: "ApiServer", body: Json) -> Json:
    """Return a slice without empty lists and disabled fields, and with times for its taints."""
    spec = {k: v for k, v in body["spec"].items() if v not in ([], None) and k not in api.dropped}
    if "devices" in spec:
        spec["devices"] = [
            {key: value for key, value in device.items() if key not in api.dropped}
            for device in spec["devices"]
        ]
    for device in spec.get("devices", ()):
        for taint in device.get("taints", ()):
            taint.setdefault("timeAdded", "2026-01-01T00:00:00Z")
    return {**body, "spec": spec}


def _delete(api: "ApiServer", asked: Asked, place: _Place) -> tuple[int, Json]:
    preconditions = (asked.body or {}).get("preconditions") or {}
    api.store.delete(place.key, preconditions)
    return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}


def _patch(api: "ApiServer", asked: Asked, place: _Place) -> tuple[int, Json]:
    """Apply a node's labels on the server's side."""
    manager, is_forced = _manager(asked)
    if not api.store.has(place.key):  # to apply is to create
        raise Refusal(403, "Forbidden", 'User "agent" cannot create resource "nodes"')
    stored = api.store.get(place.key)
    body = asked.body
    if (body.get("apiVersion"), body.get("kind")) != (stored["apiVersion"], stored["kind"]):
        raise Refusal(400, "BadRequest", f"invalid object type: Kind={body.get('kind')}")
    meant = body.get("metadata") or {}
    _check_name(meant, place)
    if meant.get("uid") not in {None, stored["metadata"]["uid"]}:
        fault = f'metadata.uid: Invalid value: "{meant["uid"]}": field is immutable'
        raise Refusal(422, "Invalid", fault)
    after = applying.node_labels(stored, body, api.owners, place.key, manager, is_forced=is_forced)
    return 200, api.store.replace(place.key, after)


def _manager(asked: Asked) -> tuple[str, bool]:
    if asked.content_type != _APPLY:
        raise Refusal(415, "UnsupportedMediaType", f"an agent applies with {_APPLY} only")
    if not asked.query.get("fieldManager"):
        fault = "fieldManager: Required value: is required for apply patch"
        raise Refusal(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {fault}')
    return asked.query["fieldManager"], asked.query.get("force") in {"true", "True"}


def _create_event(api: "ApiServer", asked: Asked, place: _Place) -> tuple[int, Json]:
    if (asked.body.get("metadata") or {}).get("namespace") != place.namespace:
        raise Refusal(
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        )
    faults = validation.event_faults(asked.body)
    if faults:
        raise Refusal(422, "Invalid", f"Event is invalid: {'; '.join(faults)}")
    key = (place.resource, place.namespace, asked.body["metadata"]["name"])
    return 201, api.store.create(key, asked.body)


def _patch_event(api: "ApiServer", asked: Asked, place: _Place) -> tuple[int, Json]:
    if asked.content_type != _MERGE:
        raise Refusal(415, "UnsupportedMediaType", f"use {_MERGE}")
    before = api.store.get(place.key)
    after = _merged(before, asked.body)
    faults = validation.event_update_faults(before, after)
    if faults:
        raise Refusal(422, "Invalid", f"Event is invalid: {'; '.join(faults)}")
    return 200, api.store.replace(place.key, after)


def _merged(before: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(before, dict):
        return patch
    changed = {k: _merged(before.get(k, {}), v) for k, v in patch.items() if v is not None}
    return {**{k: v for k, v in before.items() if k not in patch}, **changed}


_Handler = Callable[["ApiServer", Asked, _Place], tuple[int, Json]]

_HANDLERS: Final[dict[tuple[str, str], _Handler]] = {
    ("GET", "nodes"): _read,
    ("PATCH", "nodes"): _patch,
    ("GET", "resourceclaims"): _read,
    ("GET", "resourceslices"): _read,
    ("POST", "resourceslices"): _create_slice,
    ("PUT", "resourceslices"): _replace_slice,
    ("DELETE", "resourceslices"): _delete,
    ("POST", "events"): _create_event,
    ("PATCH", "events"): _patch_event,
}
"""By method and resource: what the agent's role allows."""
