"""Devices as Kubernetes sees them, for tests to change one thing about."""

import dataclasses
from collections.abc import Mapping

from kata_gpu.model.kubernetes import GPU_DRIVER, Attribute, Device, Door, Effect, Taint


def gpu(
    bus: int,
    *,
    attributes: Mapping[str, Attribute] | None = None,
    capacity_bytes: Mapping[str, int] | None = None,
    counts: Mapping[str, int] | None = None,
) -> Device:
    """Return a GPU that is offered through DRA; *bus* may be more than a bus has."""
    return Device(
        id=f"{bus >> 8:04x}:{bus & 255:02x}:00.0",
        name=f"{bus >> 8:04x}-{bus & 255:02x}-00-0",
        door=Door.DRA,
        driver=GPU_DRIVER,
        resource="nvidia.com/pgpu",
        units=(f"{bus >> 8:04x}:{bus & 255:02x}:00.0",),
        is_healthy=True,
        is_ready=True,
        reason="it is ready",
        attributes=dict(attributes or {}),
        capacity_bytes=dict(capacity_bytes or {}),
        counts=dict(counts or {}),
    )


def bundle(name: str, *members: Device) -> Device:
    """Return the device that stands for all of *members*, and takes what they take."""
    return dataclasses.replace(
        members[0],
        id=name,
        name=name,
        units=tuple(unit for member in members for unit in member.units),
        is_bundle=True,
        counts={key: n for member in members for key, n in member.counts.items()},
    )


def with_taint(
    device: Device,
    key: str = "kata-gpu.io/state",
    value: str = "failed",
    effect: Effect = Effect.NO_SCHEDULE,
) -> Device:
    """Return *device* with one taint more."""
    taint = Taint(key=key, value=value, effect=effect)
    return dataclasses.replace(device, taints=(*device.taints, taint))
