"""What is offered to pods, and what everybody's CDI files have against it.

A resource has one writer: where somebody else's file in a directory that Kata reads has the
same kind, ours is not put beside it, for two that name one device stop every pod of the node.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kata_gpu.model.blueprint import KataHandler, Pool, Runtime
from kata_gpu.model.cdi import CdiDocument, CdiFault, CdiFile, Scope
from kata_gpu.model.kubernetes import Door
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.unit import Unit, UnitState
from kata_gpu.plan import cdi
from kata_gpu.plan.cdi import choice
from kata_gpu.plan.cdi.libraries import LIBRARIES
from kata_gpu.plan.situation import Situation


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Device nodes of each unit, by resource and unit id, and what an admin should know."""

    nodes: Mapping[str, Mapping[str, tuple[str, ...]]]
    findings: tuple[Finding, ...]


def choose(
    now: Situation, offered: Sequence[tuple[str, Unit]], unclaimed: Sequence[tuple[str, Unit]]
) -> Offer:
    """Return what becomes of the units that could be *offered*, each with its resource.

    Of what is *unclaimed* only what would be in the way of a claim is said.
    """
    platform, handlers = now.inventory.platform, now.blueprint.handlers
    everything = [now.functions[address] for _, unit in offered for address in unit.functions]
    access = choice.for_node(platform, everything, handlers)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    findings = list(choice.findings(access, platform, handlers)) if offered else []
    rivals = {kind: _rival(now, kind) for kind, _ in (*offered, *unclaimed)}
    for kind, unit in offered:
        rival = rivals[kind]
        nodes = choice.nodes(unit, [now.functions[a] for a in unit.functions], access)
        if rival is not None:
            findings.append(_two_writers(unit, kind, rival))
        elif nodes:
            found.setdefault(kind, {})[unit.id] = nodes
        else:
            findings.append(_no_cdev(unit))
    findings += [
        _two_writers(unit, kind, rival)
        for kind, unit in unclaimed
        if (rival := rivals[kind]) is not None
    ]
    if rivals:
        findings += _everybody(now, handlers)
    return Offer(nodes=found, findings=tuple(findings))


def bundled(
    nodes: Mapping[str, Mapping[str, tuple[str, ...]]], pools: Mapping[str, Pool]
) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Return *nodes* with the bundles that kubelet's device plugin gives as one device.

    *pools* has the pool of each unit. A bundle is whole, or is not there. DRA has none: a claim
    for it gets the devices of its units.
    """
    found = {kind: dict(devices) for kind, devices in nodes.items()}
    for pool in {pool.name: pool for pool in pools.values()}.values():
        if pool.bundle is None or pool.resource is None or pool.door is not Door.DEVICE_PLUGIN:
            continue
        devices = found.get(pool.resource, {})
        units = sorted(unit for unit, its in pools.items() if its.name == pool.name)
        if len(units) >= pool.min_units and all(unit in devices for unit in units):
            devices[pool.bundle] = tuple(node for unit in units for node in devices[unit])
    return found


def _rival(now: Situation, kind: str) -> CdiFile | None:
    """Return somebody else's file of that *kind* in our directory; None without one."""
    specs = now.inventory.cdi
    if specs is None:
        return None
    for file in specs.files:
        is_near = file.directory == specs.ours
        if is_near and not cdi.is_ours(specs.ours, file.path) and _kind(file) == kind:
            return file
    return None


def _kind(file: CdiFile) -> object:
    tree = file.content.tree if isinstance(file.content, CdiDocument) else None
    return tree.get("kind") if isinstance(tree, Mapping) else None


def _two_writers(unit: Unit, kind: str, rival: CdiFile) -> Finding:
    return Finding(
        severity=Severity.REFUSED,
        subject=unit.id,
        reason=f"{rival.path} has CDI kind {kind} too, and two writers of one kind stop every pod",
        remedy=f"end the program that writes {rival.path} and remove the file, or give the pool "
        f"another resource",
        state=UnitState.REFUSED,
    )


def _no_cdev(unit: Unit) -> Finding:
    return Finding(
        severity=Severity.REFUSED,
        subject=unit.id,
        reason="not every function of it has an iommufd device, which confidential VMs need, and "
        "this node gives others so",
        remedy="release it and apply again; if that does not help, its VFIO driver has none",
        state=UnitState.REFUSED,
    )


def _everybody(now: Situation, handlers: Iterable[KataHandler]) -> Iterable[Finding]:
    """Warn of each file, whoever wrote it, that stops every pod of a runtime that is in use."""
    specs = now.inventory.cdi
    if specs is None:
        return
    runtimes = tuple({handler.runtime for handler in handlers} or set(Runtime))
    told: dict[str, list[CdiFault]] = {}
    for fault in cdi.judge(specs, runtimes):
        if not cdi.is_ours(specs.ours, fault.file) and _stopped(fault, runtimes):
            told.setdefault(fault.file, []).append(fault)
    for path, faults in told.items():
        first = faults[0]
        stopped = " and ".join(LIBRARIES[r].name for r in _stopped(first, runtimes))
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        where = f"{first.where}: " if first.where else ""
        yield Finding(
            severity=Severity.WARNING,
            subject=path,
            reason=f"{where}{first.reason}{more}; it stops every pod of {stopped} that asks for "
            f"a GPU",
            remedy=first.remedy,
        )


def _stopped(fault: CdiFault, runtimes: Iterable[Runtime]) -> list[Runtime]:
    scopes = {Runtime.GO: fault.go, Runtime.RUST: fault.rust}
    return [r for r in Runtime if r in runtimes and scopes[r] is Scope.EVERY_POD]
