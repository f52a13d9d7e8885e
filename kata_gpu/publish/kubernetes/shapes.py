"""What every object of the API has, without which nothing can be done with it."""

from collections.abc import Mapping
from typing import Any, Final

from kata_gpu.publish.kubernetes.errors import ApiError

_IDENTITY: Final = ("name", "uid", "resourceVersion")


def identified(found: Any, what: str) -> Mapping[str, Any]:
    """Return an object that has a name, a uid and a version; else ApiError."""
    metadata = _in(found, "metadata")
    if not all(isinstance(metadata.get(key), str) for key in _IDENTITY):
        raise ApiError(f"cannot {what}: the answer is no object of the API: {found!s:.100}")
    return dict(found)


def resource_slice(found: Any, what: str) -> Mapping[str, Any]:
    """Return a ResourceSlice that is one of a pool, of devices with names; else ApiError."""
    spec = _in(identified(found, what), "spec")
    devices = spec.get("devices") or []
    is_sound = (
        isinstance(spec.get("pool"), Mapping)
        and isinstance(spec["pool"].get("generation", 0), int)
        and _are_objects(_in(found, "metadata").get("ownerReferences"))
        and _are_objects(devices)
        and all(isinstance(d.get("name"), str) and _are_objects(d.get("taints")) for d in devices)
    )
    if not is_sound:
        raise ApiError(f"cannot {what}: the answer is no ResourceSlice: {found!s:.100}")
    return dict(found)


def version(found: Any, what: str) -> str:
    """Return the version of a list, or of what a bookmark tells; else ApiError."""
    told = _in(found, "metadata").get("resourceVersion")
    if not isinstance(told, str):
        raise ApiError(f"cannot {what}: the answer has no version: {found!s:.100}")
    return told


def _are_objects(found: Any) -> bool:
    return found is None or (
        isinstance(found, list) and all(isinstance(item, Mapping) for item in found)
    )


def _in(found: Any, key: str) -> Mapping[str, Any]:
    inner = found.get(key) if isinstance(found, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
