"""What of pods' devices is ours, in tests of those who say it to Kata."""

from typing import Any, Final

from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.publish.kubelet.kata_devices import Ours
from tests.kubelet.pod_resources import claim

PGPU: Final = "nvidia.com/pgpu"
SWITCH: Final = "nvidia.com/nvswitch"
NAMES: Final = {
    (GPU_DRIVER, "node-a", "0000-41-00-0"): (f"{PGPU}=0000:41:00.0",),
    (GPU_DRIVER, "node-a", "0000-81-00-0"): (f"{PGPU}=0000:81:00.0",),
    (FABRIC_DRIVER, "node-a", "switches"): (f"{SWITCH}=0000:c1:00.0", f"{SWITCH}=0000:c0:00.0"),
}
OURS: Final = Ours(
    drivers=frozenset({GPU_DRIVER, FABRIC_DRIVER}),
    kinds=frozenset({PGPU, SWITCH}),
    names=lambda *key: NAMES.get(key, ()),
)


def cdi_names(pod: Any) -> list[str]:
    """Return the names that Kata makes of an answer."""
    return [
        f"{devices.resource_name}={id_}"
        for part in pod.containers
        for devices in part.devices
        for id_ in devices.device_ids
    ]


def gpu_claim(*names: str) -> Any:
    """Return a claim of such GPUs."""
    devices = [(name, NAMES[GPU_DRIVER, "node-a", name]) for name in names]
    return claim("gpus", GPU_DRIVER, devices)
