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
    """Return a ResourceSlice that is one of a pool; else ApiError."""
    pool = _in(_in(identified(found, what), "spec"), "pool")
    if not isinstance(pool.get("generation", 0), int):
        raise ApiError(f"cannot {what}: the answer is no ResourceSlice: {found!s:.100}")
    return dict(found)


def version(found: Any, what: str) -> str:
    """Return the version of a list, or of what a bookmark tells; else ApiError."""
    told = _in(found, "metadata").get("resourceVersion")
    if not isinstance(told, str):
        raise ApiError(f"cannot {what}: the answer has no version: {found!s:.100}")
    return told


def _in(found: Any, key: str) -> Mapping[str, Any]:
    inner = found.get(key) if isinstance(found, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
