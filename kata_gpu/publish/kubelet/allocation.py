"""What the scheduler gave a claim of this driver's devices, read from a ResourceClaim.

The object comes from the API server, which has checked it; it may still be newer than we know,
or not be a claim of ours at all, so that nothing in it is taken for granted.

Source: k8s.io/api resource/v1, DeviceRequestAllocationResult and DeviceAllocationConfiguration.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.errors import KataGpuError
from kata_gpu.publish.kubelet import claim_config
from kata_gpu.publish.kubelet.claim_config import KataGpuConfig, OpaqueConfig
from kata_gpu.publish.kubelet.prepared import ClaimName

_RESULTS_MAX: Final = 32
_TEXT_MAX: Final = 253
_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_REQUEST: Final = re.compile(f"{_LABEL}(?:/{_LABEL})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatedDevice:
    """One device that a claim has."""

    pool: str
    device: str
    requests: tuple[str, ...]
    """Names of the requests it is for, subrequests as ``main/sub``."""

    config: KataGpuConfig
    """What is asked of it."""


def devices(
    claim: Mapping[str, Any] | None, name: ClaimName, *, driver: str
) -> tuple[AllocatedDevice, ...]:
    """Return this *driver*'s devices of a claim, each once, in the claim's order.

    Raises:
        KataGpuError: the claim is not there or another by now, has no allocation, asks for
            admin access, or its configuration cannot be used.
    """
    if claim is None:
        raise KataGpuError("cannot prepare the claim: it is gone from the API server")
    uid = _mapping(claim, "metadata").get("uid")
    if uid != name.uid:
        raise KataGpuError(
            f"cannot prepare claim {name.uid}: it was deleted, and its name has claim {uid!s:.64} "
            f"now"
        )
    allocation = _mapping(claim, "status").get("allocation")
    if not isinstance(allocation, Mapping):
        raise KataGpuError("cannot prepare the claim: it is not allocated")
    allotted = _mapping(allocation, "devices")
    results = _sequence(allotted, "results")
    if len(results) > _RESULTS_MAX:
        raise KataGpuError(f"cannot prepare a claim of more than {_RESULTS_MAX} devices")
    ours = [result for result in results if _mapping_of(result).get("driver") == driver]
    configs = claim_config.opaque_configs(_sequence(allotted, "config"), driver=driver)
    return _merged([_device(result, configs) for result in ours])


def _device(result: Mapping[str, Any], configs: Sequence[OpaqueConfig]) -> AllocatedDevice:
    request, device = _request(result), _text(result, "device")
    if result.get("adminAccess"):
        raise KataGpuError(
            f"cannot prepare device {device} with admin access: a VM takes a GPU whole, so that "
            f"nobody can look at one that is another's; ask for it without adminAccess"
        )
    return AllocatedDevice(
        pool=_text(result, "pool"),
        device=device,
        requests=(request,),
        config=claim_config.effective(configs, request),
    )


def _request(result: Mapping[str, Any]) -> str:
    """Return the name of a request, or ``main/sub``: it becomes part of paths."""
    name = _text(result, "request")
    if not _REQUEST.fullmatch(name):
        raise KataGpuError(f"cannot prepare the claim: {name[:80]!r} is no name of a request")
    return name


def _merged(found: Sequence[AllocatedDevice]) -> tuple[AllocatedDevice, ...]:
    """Return each device once, for all its requests and with all that they ask of it."""
    by_name: dict[tuple[str, str], AllocatedDevice] = {}
    for one in found:
        before = by_name.get((one.pool, one.device))
        by_name[one.pool, one.device] = (
            one
            if before is None
            else AllocatedDevice(
                pool=one.pool,
                device=one.device,
                requests=(*before.requests, *one.requests),
                config=claim_config.both(before.config, one.config),
            )
        )
    return tuple(by_name.values())


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _mapping_of(parent.get(key))


def _mapping_of(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(parent: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = parent.get(key)
    return value if isinstance(value, list | tuple) else ()


def _text(parent: Mapping[str, Any], key: str) -> str:
    value = parent.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_MAX or not value.isprintable():
        raise KataGpuError(f"cannot prepare the claim: its allocation has {key} {value!r:.80}")
    return value
