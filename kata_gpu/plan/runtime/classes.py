"""RuntimeClasses and DeviceClasses for the cluster, as plain documents.

A RuntimeClass leads a pod to a node whose agent says that it is ready, by labels that are this
agent's own, and adds to the pod what its VM takes beside it.

Source: kata-deploy 4.1.0, runtimeclasses.yaml (overhead); resource.k8s.io/v1, DeviceClass.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER

READY: Final = "kata-gpu.io/ready"
_OVERHEAD: Final = {"memory": "10240Mi", "cpu": "1"}
_KATA_DEPLOY: Final = ("kata-qemu-nvidia-gpu", "kata-")
_OURS: Final = "kata-gpu"
_NAME_MAX: Final = 63

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClass:
    """Name of a RuntimeClass, and the handler behind it."""

    name: str
    handler: str
    tee: str
    """``snp`` or ``tdx``; ``none`` for a VM that the host can look into."""


def runtime_classes(blueprint: Blueprint) -> tuple[RuntimeClass, ...]:
    """Return a class for each handler of ours; without any, for each of Kata's.

    No two of Kata's handlers get one name: where it is taken, a handler keeps its own.
    """
    own = blueprint.wiring.handlers
    if own:
        tees = {handler.name: handler.tee for handler in blueprint.handlers}
        return tuple(RuntimeClass(name=h.name, handler=h.name, tee=tees[h.base]) for h in own)
    taken = {handler.name for handler in blueprint.handlers}
    found = []
    for handler in blueprint.handlers:
        short = class_name(handler.name)
        name = handler.name if short in taken or len(short) > _NAME_MAX else short
        taken.add(name)
        found.append(RuntimeClass(name=name, handler=handler.name, tee=handler.tee))
    return tuple(found)


def class_name(handler: str) -> str:
    """Return what the RuntimeClass of a handler of Kata's is called."""
    if handler == _OURS or handler.startswith(f"{_OURS}-"):
        return handler
    for prefix in _KATA_DEPLOY:
        if handler.startswith(prefix):
            rest = handler.removeprefix(prefix).removeprefix("-")
            return f"{_OURS}-{rest}" if rest else _OURS
    return f"{_OURS}-{handler}"


def documents(blueprint: Blueprint) -> dict[str, Document]:
    """Return every class, by the name of its file."""
    runtime = {f"{c.name}.yaml": _runtime_class(c) for c in runtime_classes(blueprint)}
    device = {f"deviceclass-{name}.yaml": _device_class(name, cel) for name, cel in _CEL.items()}
    return {**runtime, **device}


def _runtime_class(found: RuntimeClass) -> Document:
    selector = {READY: "true"}
    if found.tee != "none":
        selector[f"kata-gpu.io/{found.tee}.ready"] = "true"
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": _metadata(found.name),
        "handler": found.handler,
        "overhead": {"podFixed": dict(_OVERHEAD)},
        "scheduling": {"nodeSelector": selector},
    }


_OF_GPU: Final = f"device.attributes['{GPU_DRIVER}']"
_ONE: Final = f"device.driver == '{GPU_DRIVER}' && {_OF_GPU}.?unit.orValue('') != 'bundle'"
_CEL: Final = {
    "kata-gpu": f"{_ONE} && {_OF_GPU}.?ccMode.orValue('off') == 'off'",
    "kata-gpu-bundle": f"device.driver == '{GPU_DRIVER}' && "
    f"{_OF_GPU}.?unit.orValue('') == 'bundle'",
    "kata-gpu-confidential": f"{_ONE} && {_OF_GPU}.?confidential.orValue(false)",
    "kata-fabric": f"device.driver == '{FABRIC_DRIVER}'",
}
"""What each class selects; the driver comes first, as it ends the search for most devices.

An attribute that a device has not would be an error that ends the allocation, without ``?``.
A bundle is a device beside its members: who asks for a GPU must not be given the whole board.
A GPU in a confidential mode works in no other VM. Which TEE it is says the RuntimeClass, by
labels of the node, so there is a class for all of them.

None has an ``extendedResourceName``: the pool's resource is the device plugin's name, which
kubelet takes from one side alone, and each class has the implicit name
``deviceclass.resource.kubernetes.io/NAME`` anyhow.
"""


_CONFIG: Final[Mapping[str, Document]] = {
    "kata-gpu-confidential": {
        "apiVersion": f"{GPU_DRIVER}/v1alpha1",
        "kind": "KataGpuConfig",
        "confidential": "required",
        "requireReset": True,
    },
}
"""What the driver holds a device of the class to when its claim is prepared, which may be long
after it was selected."""


def _device_class(name: str, expression: str) -> Document:
    spec: dict[str, Any] = {"selectors": [{"cel": {"expression": expression}}]}
    if name in _CONFIG:
        opaque = {"driver": GPU_DRIVER, "parameters": dict(_CONFIG[name])}
        spec["config"] = [{"opaque": opaque}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": _metadata(name),
        "spec": spec,
    }


def _metadata(name: str) -> Document:
    return {"name": name, "labels": {"app.kubernetes.io/name": "kata-gpu"}}


def by_handler(classes: Iterable[RuntimeClass]) -> dict[str, str]:
    """Return the name of each handler's class."""
    return {found.handler: found.name for found in classes}
