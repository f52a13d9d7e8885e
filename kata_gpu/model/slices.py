"""ResourceSlices on their way to the API server, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kata_gpu.model.kubernetes import Device, Effect, Taint

Object = Mapping[str, Any]
"""An object of the API as JSON has it: a field that we do not know stays what it is."""


def is_of(found: Object, driver: str, node: str) -> bool:
    """Tell whether a slice is one of the pool that *driver* has on *node*, which has its name.

    Neither of the three ever changes of a slice.
    """
    spec = found["spec"]
    told = (spec.get("driver"), spec.get("nodeName"), spec["pool"].get("name"))
    return told == (driver, node, node)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """The Node object that owns a slice: with it, the slice goes."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceChanges:
    """What makes the API server's slices the desired ones, in this order; mostly nothing."""

    deletes: tuple[Object, ...] = ()
    """As stored, with the uid and the version that are meant."""

    replaces: tuple[Object, ...] = ()
    """Desired, with name, uid and version of the stored one."""

    creates: tuple[Object, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.deletes or self.replaces or self.creates)


TaintId = tuple[str, str, Effect]
"""Name of the device, key, and effect: what a taint stays the same by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTaint:
    """One taint of one device: what is published, and what will be."""

    published: Taint | None
    wanted: Taint | None
    since_s: float | None
    """When they began to differ, monotonic; None while they do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Devices with the taints to publish, which follow the devices' own with a delay."""

    devices: tuple[Device, ...] = ()
    look_again_at_s: float | None = None
    """When a taint will be due, monotonic; None when none waits."""

    held: Mapping[TaintId, HeldTaint] = field(default_factory=dict)
