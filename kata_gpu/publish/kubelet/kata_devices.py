"""The DRA devices of a pod, said once more where Kata reads: among those of device plugins.

What always holds:

- what kubelet said stays, in its order and with fields that are unknown here;
- each device is said once in a pod: Kata gives all devices of all containers to the one VM, and
  each of them twice would be one too many;
- what is added is in the order of kind and name, whatever order kubelet has: by it the guest
  counts its GPUs.

Source: getDeviceSpec in Kata 4.1.0 src/runtime/pkg/containerd-shim-v2/device_cold_plug.go, which
makes the CDI name ``resource=id`` of every device; kubelet's container_manager_linux.go lists with
a device also the CDI names of those before it, and a claim in every container that refers to it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from kata_gpu.model.kubernetes import Device, Door

Names = Callable[[str, str, str], Iterable[str]]
"""The CDI names of a device by driver, pool and device; none for one that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """What of an answer is ours to add to."""

    drivers: frozenset[str]
    kinds: frozenset[str]
    """CDI kinds, ``vendor/class``; no other is added, whoever names it."""

    names: Names

    @classmethod
    def of(cls, devices: Iterable[Device], pool: str) -> Self:
        """Return it for *devices* that are published in the ResourceSlice pool *pool*."""
        through_dra = [device for device in devices if device.door is Door.DRA]
        known = {(d.driver, pool, d.name): d.cdi_names for d in through_dra}
        return cls(
            drivers=frozenset(device.driver for device in through_dra),
            kinds=frozenset(device.resource for device in through_dra),
            names=lambda *key: known.get(key, ()),
        )


def add(pod: Any, ours: Ours) -> bool:
    """Add to the message *pod* what is ours in it; tell whether there was anything to add."""
    said = {name for container in pod.containers for name in _said(container)}
    before = len(said)
    for container in pod.containers:
        for kind, device in sorted(_found(container, ours) - said):
            said.add((kind, device))
            container.devices.add(resource_name=kind, device_ids=[device])
    return len(said) > before


def nameless(pod: Any, ours: Ours) -> list[str]:
    """Return the devices of ours in *pod* that nobody has a CDI name for: the VM gets none."""
    return [
        f"{resource.driver_name}/{resource.pool_name}/{resource.device_name}"
        for container in pod.containers
        for resource in _resources(container, ours)
        if not any(_names(resource, ours))
    ]


def _said(container: Any) -> Iterator[tuple[str, str]]:
    for devices in container.devices:
        for device in devices.device_ids:
            yield devices.resource_name, device


def _found(container: Any, ours: Ours) -> set[tuple[str, str]]:
    """Return the kind and name of each DRA device of ours that a container has."""
    return {name for resource in _resources(container, ours) for name in _names(resource, ours)}


def _resources(container: Any, ours: Ours) -> Iterator[Any]:
    for claim in container.dynamic_resources:
        for resource in claim.claim_resources:
            if resource.driver_name in ours.drivers:
                yield resource


def _names(resource: Any, ours: Ours) -> Iterator[tuple[str, str]]:
    known = tuple(ours.names(resource.driver_name, resource.pool_name, resource.device_name))
    for name in known or (device.name for device in resource.cdi_devices):
        kind, _, device = name.partition("=")
        if device and kind in ours.kinds:
            yield kind, device
