"""What a node of which an inventory is known would offer, by the agent's own rules.

It is what the agent would offer once its plan was carried out; see `carried_out`. A unit that is
refused is offered as the agent offers it: with a taint, and the reason in a note.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from kata_gpu.model import confidential
from kata_gpu.model.blueprint import Blueprint, Mode, Pool, Selector
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.iommu import forbidden_reason
from kata_gpu.model.kubernetes import Device, Door
from kata_gpu.model.pci import NVIDIA
from kata_gpu.model.plan import MakeVirtuals, Plan, Severity
from kata_gpu.model.report import UnitStatus
from kata_gpu.model.slices import NodeIdentity, Object
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import kubernetes, state
from kata_gpu.plan.kubernetes import slices
from kata_gpu.plan.simulate import carried_out
from kata_gpu.plan.simulate.values import Node

_CDI_DIRECTORY: Final = "/var/run/cdi"  # where it is changes nothing of what is offered
_GPUS: Final = (Selector(class_prefix="03"), Selector(class_prefix="12"))
_SWITCHES: Final = (Selector(vendor=NVIDIA, class_prefix="0680"),)
_TOLD: Final = frozenset({Severity.REFUSED, Severity.WARNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A node, and the blueprint that it is to have."""

    node: str
    inventory: Inventory
    """With the VFIO driver of every endpoint."""

    blueprint: Blueprint | None
    """None for every GPU and NVSwitch, through DRA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What there is to be had on a node."""

    node: Node
    """With its device-plugin resources."""

    slices: tuple[Object, ...]
    """The ResourceSlices, as the agent would publish them first."""

    notes: tuple[str, ...]
    """Why something that a pool selects is not to be had."""


def offer(snapshot: Snapshot) -> Offer:
    """Return what the agent would offer on the node."""
    before = snapshot.inventory
    blueprint = snapshot.blueprint or _everything(before)
    left = carried_out.carry_out(blueprint, before, cdi_directory=_CDI_DIRECTORY)
    known = (blueprint, left.inventory, left.ledger)
    statuses = state.assess(*known, left.plan, cdi_directory=_CDI_DIRECTORY)
    found = kubernetes.devices(*known, statuses, cdi_directory=_CDI_DIRECTORY)
    unnamed = {driver.module for driver in before.vfio_drivers if driver.driver is None}
    devices = [_without_driver(device, unnamed) for device in found]
    about = {
        *(str(function.address) for function in before.functions),
        *(f"pool {pool.name}" for pool in blueprint.pools),
        *(f"bundle {pool.bundle}" for pool in blueprint.pools),
    }
    return Offer(
        node=Node(name=snapshot.node, resources=_resources(devices)),
        slices=tuple(_slices(snapshot.node, blueprint, devices)),
        notes=tuple(
            f"{snapshot.node}: {note}"
            for note in (*_notes(left.plan, about), *_unread(before, statuses))
        ),
    )


def _everything(inventory: Inventory) -> Blueprint:
    """Return the blueprint for every GPU and NVSwitch.

    What must stay comes first, in a pool of its own: it would have the whole pool refused.
    """
    staying = tuple(
        Selector(address=function.address)
        for function in inventory.functions
        if function.is_gpu and forbidden_reason(function) is not None
    )
    pools = (
        Pool(name="staying", mode=Mode.IGNORE, selectors=staying),
        _passing("gpus", _GPUS, "nvidia.com/pgpu"),
        _passing("switches", _SWITCHES, "nvidia.com/nvswitch"),
    )
    return Blueprint(version="(everything)", pools=pools)


def _passing(name: str, selectors: tuple[Selector, ...], resource: str) -> Pool:
    return Pool(
        name=name,
        mode=Mode.PASSTHROUGH,
        selectors=selectors,
        resource=resource,
        door=Door.DRA,
    )


def _without_driver(device: Device, unnamed: Collection[str]) -> Device:
    """Leave out a driver of which the module is known, and not the name."""
    if device.attributes.get("driver") not in unnamed:
        return device
    known = {name: value for name, value in device.attributes.items() if name != "driver"}
    return replace(device, attributes=known)


def _resources(devices: Iterable[Device]) -> dict[str, Fraction]:
    """Return what kubelet has to give of each resource: its healthy devices."""
    found: dict[str, Fraction] = {}
    for device in devices:
        if device.door is Door.DEVICE_PLUGIN:
            found[device.resource] = found.get(device.resource, Fraction(0)) + device.is_healthy
    return found


def _slices(node: str, blueprint: Blueprint, devices: list[Device]) -> Iterator[Object]:
    """Yield the slices of each driver that the agent would run here."""
    for driver in sorted(kubernetes.drivers(blueprint, devices)):
        yield from slices.slices(driver, NodeIdentity(name=node, uid=""), devices, 1)


def _notes(plan: Plan, about: Collection[str]) -> Iterator[str]:
    for finding in plan.findings:
        if finding.severity in _TOLD and finding.subject in about:
            yield f"{finding.subject}: {finding.reason}"
    for step in plan.steps:
        if isinstance(step, MakeVirtuals):
            yield (
                f"{step.parent}: {step.reason}, and they are not there yet; "
                "take the inventory again when they are"
            )


def _unread(inventory: Inventory, units: Iterable[UnitStatus]) -> Iterator[str]:
    """Say where a device lacks an attribute that the agent reads from the chip."""
    known = inventory.by_address()
    for unit in units:
        functions = [known[f.address] for f in unit.functions if f.address in known]
        if unit.state is UnitState.AVAILABLE and confidential.looks(functions):
            yield (
                f"{unit.id}: ccMode is read by the agent, and in no inventory: who asks for it "
                "is refused here; simulate with the cluster's own ResourceSlices (--cluster)"
            )


def merged(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Return each node once: what a snapshot says of one goes to what the cluster says of it."""
    found: dict[str, Node] = {}
    for node in nodes:
        known = found.get(node.name)
        if known is None:
            found[node.name] = node
            continue
        first, second = (known, node) if known.labels is not None else (node, known)
        found[node.name] = replace(
            first, resources={**(second.resources or {}), **(first.resources or {})}
        )
    return tuple(found.values())
