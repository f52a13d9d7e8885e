"""What is left as pods are placed one after another; and how it was, if a gang is taken back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final

from kata_gpu.plan.simulate import pools, queues
from kata_gpu.plan.simulate.answer import Given
from kata_gpu.plan.simulate.pools import Pool
from kata_gpu.plan.simulate.values import (
    KAI,
    Claim,
    DeviceClass,
    DeviceId,
    Pick,
    Pod,
    RuntimeClass,
    Scenario,
    Where,
)

USERS_MAX: Final = 256
"""Pods that may use one claim; the API server takes no more in ``status.reservedFor``."""

_ZERO: Final = Fraction(0)


@dataclass(slots=True)
class State:
    """What changes; copied before a gang, and put back if it does not fit."""

    used: dict[str, dict[str, Fraction]] = field(default_factory=dict)
    """Resources that pods have, by node."""

    taken: dict[DeviceId, str] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    """Claims that are shared or were given, by name, as they are now."""

    users: dict[str, frozenset[str]] = field(default_factory=dict)
    """What each claim of these is reserved for."""

    queues: dict[str, dict[str, Fraction]] = field(default_factory=dict)
    age: dict[str, int] = field(default_factory=dict)
    """Changes whenever something of a node does: what was found out of it before is old then."""

    def copy(self) -> "State":
        """Return the same, not to be changed with this one."""
        return State(
            used={node: dict(amounts) for node, amounts in self.used.items()},
            taken=dict(self.taken),
            claims=dict(self.claims),
            users=dict(self.users),
            queues={queue: dict(amounts) for queue, amounts in self.queues.items()},
            age=dict(self.age),
        )


class World:
    """Nodes as they are known, and the state in which the last placement left them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.nodes = tuple(sorted(scenario.nodes, key=lambda node: node.name))
        self.classes: Mapping[str, DeviceClass] = {c.name: c for c in scenario.classes}
        self.runtimes: Mapping[str, RuntimeClass] = {r.name: r for r in scenario.runtime_classes}
        self.templates = {template.name: template for template in scenario.templates}
        self.queues = {queue.name: queue for queue in scenario.queues}
        self.pools = pools.of_nodes(scenario.slices, self.nodes)
        self._dra_gpus = queues.dra_gpus(scenario.slices)
        self._devices = {d.id: (s.where or d.where) for s in scenario.slices for d in s.devices}
        self._spanning = {
            (pool.driver, pool.name)
            for of_node in self.pools.values()
            for pool in of_node
            if pool.elsewhere
        }
        """Pools of which one node's devices take of what another's do."""

        self.is_networked = bool(self._spanning) or any(
            slice_.devices and (slice_.where is None or slice_.where.node is None)
            for slice_ in scenario.slices
        )
        """Whether what one node gives may be what another could."""

        self._counter = 0
        self.state = State(
            claims={claim.name: claim for claim in scenario.claims},
            users={claim.name: claim.users for claim in scenario.claims},
        )
        for claim in scenario.claims:
            for pick in claim.picks or ():
                self.state.taken[pick.device] = f"claim {claim.name}"

    def node_pools(self, node: str) -> tuple[Pool, ...]:
        """Return what a node may use."""
        return self.pools[node]

    def has_dra_gpus(self, node: str) -> bool:
        """Tell whether KAI sees GPUs of ResourceSlices there."""
        return self._dra_gpus.get(node, 0) > 0

    def claims_of(self, pod: Pod) -> list[tuple[str, Claim]] | str:
        """Return the pod's claims by its names for them, or why it cannot have them."""
        found = []
        for wanted in pod.claims:
            if wanted.claim is not None:
                claim = self.state.claims.get(wanted.claim)
                kind, name = "ResourceClaim", wanted.claim
            else:
                claim = self.templates.get(wanted.template or "")
                kind, name = "ResourceClaimTemplate", wanted.template or ""
            if claim is None:
                return f"there is no {kind} {name}, which it names as {wanted.name}"
            users = self.state.users.get(wanted.claim or "", frozenset())
            if len(users) >= USERS_MAX and not (pod.node or pod.is_claim or pod.name in users):
                return f"claim {name} is in use by {len(users)} pods, and no more may use it"
            found.append((wanted.name, claim))
        return found

    def occupy(self, node: str, resources: Mapping[str, Fraction]) -> None:
        """Take resources of a node; one that is not known has none to take."""
        amounts = self.state.used.setdefault(node, {})
        for name, amount in resources.items():
            amounts[name] = amounts.get(name, _ZERO) + amount
        self._grow_old(node)

    def give(self, pod: Pod, node: str, given: tuple[Given, ...]) -> None:
        """Take the devices that a pod gets, for the claims that it has them through."""
        self.reserve(pod)
        for item in given:
            self.state.taken[item.device] = f"{pod.name} (claim {item.claim})"
        for wanted in pod.claims:
            claim = self.state.claims.get(wanted.claim or "")
            if claim is not None and claim.picks is None:
                picks = tuple(
                    Pick(request=item.request, device=item.device)
                    for item in given
                    if item.claim == wanted.name
                )
                self.state.claims[claim.name] = replace(
                    claim, picks=picks, where=self._place(picks, node)
                )
        if any(self._counts_elsewhere(item.device) for item in given):
            for name in self.pools:
                self._grow_old(name)

    def reserve(self, pod: Pod) -> None:
        """Count a pod that has its node among the users of its claims."""
        for wanted in pod.claims:
            if wanted.claim in self.state.users and not pod.is_claim:
                self.state.users[wanted.claim] |= {pod.name}

    def _counts_elsewhere(self, device: DeviceId) -> bool:
        where = self._devices.get(device)
        is_near = where is not None and where.node is not None
        return not is_near or (device.driver, device.pool) in self._spanning

    def charge(self, pod: Pod, amounts: Mapping[str, Fraction]) -> None:
        """Count what a pod has to its queue, and to those above."""
        if pod.scheduler != KAI or pod.queue is None:
            return
        above = [queue.name for queue in queues.chain(pod.queue, self.queues)] or [pod.queue]
        for name in above:
            has = self.state.queues.setdefault(name, {})
            for resource, amount in amounts.items():
                has[resource] = has.get(resource, _ZERO) + amount

    def _place(self, picks: tuple[Pick, ...], node: str) -> Where | None:
        """Return where what a claim has is to be reached, which is where all of it is."""
        places = [self._devices.get(pick.device) for pick in picks]
        if any(place is not None and place.node is not None for place in places):
            return Where(node=node)
        keys = dict.fromkeys(
            key for place in places if place is not None for term in place.terms for key in term
        )
        return Where(terms=(tuple(keys),)) if keys else None

    def _grow_old(self, node: str) -> None:
        self._counter += 1
        self.state.age[node] = self._counter
