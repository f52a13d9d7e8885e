"""ResourceClaims for tests, as the API server would answer them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kata_gpu.errors import KataGpuError
from kata_gpu.model.kubernetes import GPU_DRIVER

NAMESPACE: Final = "tenants"
POOL: Final = "node-1"


def allocated(
    device: str, request: str = "gpu", *, driver: str = GPU_DRIVER, pool: str = POOL, **more: Any
) -> dict[str, Any]:
    """Return one result of an allocation."""
    return {"request": request, "driver": driver, "pool": pool, "device": device, **more}


def opaque(
    parameters: Mapping[str, Any],
    *,
    source: str = "FromClaim",
    requests: Sequence[str] = (),
    driver: str = GPU_DRIVER,
) -> dict[str, Any]:
    """Return one configuration of an allocation; kind and version are added."""
    kind = {"apiVersion": "gpu.kata-passthrough.io/v1alpha1", "kind": "KataGpuConfig"}
    return {
        "source": source,
        "requests": list(requests),
        "opaque": {"driver": driver, "parameters": {**kind, **parameters}},
    }


@dataclass
class ClaimStore:
    """The API server's claims; a name that is used again gets another uid."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    reads: int = 0
    is_down: bool = False
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def put(
        self, name: str, *results: dict[str, Any], config: Sequence[dict[str, Any]] = ()
    ) -> str:
        """Store a claim with an allocation of *results*, and return its uid."""
        uid = f"{next(self._numbers):08x}-0000-4000-8000-000000000000"
        self.objects[name] = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"namespace": NAMESPACE, "name": name, "uid": uid, "generation": 1},
            "status": {"allocation": {"devices": {"results": list(results), "config": [*config]}}},
        }
        return uid

    def give(self, name: str, *devices: str) -> str:
        """Store a claim that has these devices of this node."""
        return self.put(name, *(allocated(device) for device in devices))

    def delete(self, name: str) -> None:
        """Remove a claim."""
        del self.objects[name]

    async def get(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Answer as the agent is answered; KataGpuError while the API server is down."""
        self.reads += 1
        if self.is_down:
            raise KataGpuError("cannot read the claim: connection refused")
        return self.objects.get(name) if namespace == NAMESPACE else None
