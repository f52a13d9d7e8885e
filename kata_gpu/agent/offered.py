"""What a turn left, as Kubernetes is to see it, and whether it still stands.

Between two turns a look at a device costs a few links: what does not stand is not given to a
pod, be it that the turn which finds out why is still to come.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from kata_gpu.agent.node import Turn
from kata_gpu.discover.standing import Standing
from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.kubernetes import Device, Effect, Taint
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.report import NodeState, UnitStatus
from kata_gpu.plan import kubernetes
from kata_gpu.plan.kubernetes import labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """What a turn left."""

    blueprint: Blueprint
    state: NodeState
    devices: tuple[Device, ...]
    units: Mapping[str, UnitStatus]
    groups: Mapping[int, IommuGroup]
    labels: Mapping[str, str]
    """Of the Node, by key."""

    @classmethod
    def of(
        cls,
        turn: Turn,
        state: NodeState,
        blueprint: Blueprint,
        ledger: Ledger,
        *,
        cdi_directory: str,
    ) -> Self:
        """Return it for a turn and the state that describes it."""
        found = turn.inventory
        devices = kubernetes.devices(
            blueprint, found, ledger, state.units, cdi_directory=cdi_directory
        )
        return cls(
            blueprint=blueprint,
            state=state,
            devices=devices,
            units={unit.id: unit for unit in state.units},
            groups=found.by_group(),
            labels=labels.labels(
                state,
                blueprint,
                found.by_address(),
                devices,
                labels.cc_mode(found.functions, ledger),
            ),
        )


@dataclass(slots=True)
class Offered:
    """The devices of the latest turn, as they stood when they were last looked at."""

    host: Host
    on_change: Callable[[], None]
    """Called when a device is another than before, or goes to a pod."""

    turned: Turned | None = None
    """None before the first turn."""

    devices: tuple[Device, ...] = ()
    by_name: Mapping[str, Device] = field(default_factory=dict)
    _by_id: Mapping[str, Device] = field(default_factory=dict)
    _standing: Mapping[str, Standing] = field(default_factory=dict)
    """What is to be found of each unit."""

    def update(self, turned: Turned) -> None:
        """Take what a turn left."""
        self.turned = turned
        self._standing = {
            name: Standing.of(self.host, unit, turned.groups) for name, unit in turned.units.items()
        }
        self.look_again()

    def look_again(self) -> bool:
        """Look at every device anew; tell whether one is not what it was."""
        found = () if self.turned is None else self.turned.devices
        devices = tuple(map(self._as_it_stands, found))
        if devices == self.devices:
            return False
        self.devices = devices
        self.by_name = {device.name: device for device in devices}
        self._by_id = {device.id: device for device in devices}
        self.on_change()
        return True

    def verified(self, ids: Sequence[str]) -> Mapping[str, Device]:
        """Return the devices of these ids, which a pod is about to get, after a look at each.

        Raises:
            HostError: one does not stand.
        """
        known = self._by_id
        for name in ids:
            why = self._fault(known[name]) if name in known else "it is gone"
            if why is not None:
                raise HostError(f"cannot give {name} to a pod: {why}")
        self.on_change()
        return {name: known[name] for name in ids}

    def _as_it_stands(self, device: Device) -> Device:
        why = self._fault(device) if device.is_ready and device.is_healthy else None
        if why is None:
            return device
        taint = Taint(key=f"{device.driver}/unhealthy", value="true", effect=Effect.NO_SCHEDULE)
        return replace(device, is_healthy=False, reason=why, taints=(*device.taints, taint))

    def _fault(self, device: Device) -> str | None:
        if self.turned is None:
            return "the agent has not looked yet"
        for name in device.units:
            expected = self._standing.get(name)
            why = f"{name} is gone" if expected is None else expected.fault(self.host)
            if why is not None:
                return why
        return None
