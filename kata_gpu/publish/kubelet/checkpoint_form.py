"""The checkpoint as JSON's own types, and back; every value is checked on its way in."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from kata_gpu.publish.kubelet.prepared import (
    ClaimName,
    Claims,
    PreparedClaim,
    PreparedDevice,
    Progress,
    require_agent,
)

SCHEMA: Final = 1
_TEXT_MAX: Final = 512


def body(claims: Claims, *, boot_id: str) -> dict[str, Any]:
    """Return *claims* in the present schema."""
    return {"boot_id": boot_id, "claims": [_written(prepared) for prepared in claims.values()]}


def claims(body: Mapping[str, Any]) -> Claims:
    """Return the claims that *body* holds; any Python error says that it is none."""
    found = [_read(entry) for entry in body["claims"]]
    by_uid = {prepared.claim.uid: prepared for prepared in found}
    if len(by_uid) != len(found):
        raise ValueError("a claim is in it twice")
    return by_uid


def require_readable(claims: Iterable[PreparedClaim]) -> None:
    """Raise ValueError for what would be refused when it is read again."""
    for prepared in claims:
        _read(_written(prepared))


def _written(prepared: PreparedClaim) -> dict[str, Any]:
    return {
        "uid": prepared.claim.uid,
        "namespace": prepared.claim.namespace,
        "name": prepared.claim.name,
        "state": prepared.progress.value,
        "owner": prepared.owner,
        "is_brought": prepared.is_brought,
        "devices": [
            {
                "requests": list(device.requests),
                "pool": device.pool,
                "device": device.device,
                "units": list(device.units),
                "cdi_names": list(device.cdi_names),
            }
            for device in prepared.devices
        ],
    }


def _read(entry: Mapping[str, Any]) -> PreparedClaim:
    return PreparedClaim(
        claim=ClaimName(
            namespace=_text(entry["namespace"]), name=_text(entry["name"]), uid=_text(entry["uid"])
        ),
        progress=Progress(entry["state"]),
        owner=require_agent(_text(entry["owner"])),
        is_brought=_flag(entry["is_brought"]),
        devices=tuple(
            PreparedDevice(
                requests=_texts(device["requests"]),
                pool=_text(device["pool"]),
                device=_text(device["device"]),
                units=_texts(device["units"]),
                cdi_names=_texts(device["cdi_names"]),
            )
            for device in entry["devices"]
        ),
    )


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"not a list: {value!r:.80}")  # noqa: TRY004 - one error
    return tuple(_text(item) for item in value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MAX or not value.isprintable():
        raise ValueError(f"not a text: {value!r:.80}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"neither true nor false: {value!r:.80}")  # noqa: TRY004 - one error
    return value
