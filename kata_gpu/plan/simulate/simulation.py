"""Place pods one after another, each on the first node that has room, gangs as one.

The order is that of the files. Of several nodes the scheduler takes the one that it likes best,
and here the first by name is taken: where that decides whether a later pod fits, another order
may come out otherwise. A selector that fails to evaluate on one node ends it for every node, as
in a cluster of up to 100 nodes; of a larger one the scheduler may not look at that node.

A gang that does not fit is tried again: with those first that ask for most, that its subgroups
need, and that have fewest nodes to choose from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

from kata_gpu.plan.simulate import allocation, fitting, gangs, queues, telling
from kata_gpu.plan.simulate.answer import (
    Answer,
    Given,
    GroupAnswer,
    NodeRefusal,
    PodAnswer,
    QueueAnswer,
    Verdict,
    told_once,
)
from kata_gpu.plan.simulate.cel import Selectors
from kata_gpu.plan.simulate.fitting import Demand
from kata_gpu.plan.simulate.outcome import (
    Aborted,
    Allocated,
    Budget,
    Ground,
    Refused,
    Undecided,
)
from kata_gpu.plan.simulate.remembered import Remembered
from kata_gpu.plan.simulate.values import KAI, Claim, Node, Pod, PodGroup, Scenario
from kata_gpu.plan.simulate.world import World

STEPS_MAX: Final = 2_000_000
"""Devices that are tried in all; what is left then is undecided."""

_ZERO: Final = Fraction(0)

_Found = tuple[Given, ...] | NodeRefusal | Aborted
_Likeness = tuple[str, str]  # of the pods, and of their claims alone


def simulate(scenario: Scenario) -> Answer:
    """Return what becomes of every pod that has no node yet."""
    return _Simulation(scenario).answer()


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self._world = World(scenario)
        self._scenario = scenario
        self._selectors = Selectors()
        self._budget = Budget(STEPS_MAX)
        self._refusals: dict[NodeRefusal, NodeRefusal] = {}
        self._running: dict[str, list[Pod]] = {}
        self._known: Remembered[_Found] = Remembered()
        """What a node says to pods that are alike."""

        self._searched: Remembered[_Found] = Remembered()
        """What it has for claims that are alike, whatever else their pods ask for."""

        self._unlabelled: dict[str, None] = {}
        self._notes: dict[str, None] = dict.fromkeys(scenario.notes)

    def answer(self) -> Answer:
        """Place what has no node, beside what has."""
        for pod in self._scenario.pods:
            if pod.node is not None:
                self._settle(pod)
        waiting = [pod for pod in self._scenario.pods if pod.node is None]
        found: dict[str, PodAnswer] = {}
        groups = []
        for group, pods in self._units(waiting):
            answers = [self._place(pod) for pod in pods] if group is None else None
            if answers is None and group is not None:
                told, answers = self._gang(group, pods)
                groups.append(told)
            found.update((answer.pod, answer) for answer in answers or ())
        return Answer(
            pods=tuple(told_once(found[pod.name] for pod in waiting)),
            groups=tuple(groups),
            queues=tuple(self._queues(waiting)),
            notes=(*self._notes, *self._of_labels()),
        )

    def _of_labels(self) -> Iterable[str]:
        """Yield what labels that are not known leave open."""
        unknown = [node.name for node in self._world.nodes if node.labels is None]
        chosen = [s.name for s in self._scenario.slices if s.where is not None and s.where.terms]
        if self._unlabelled:
            names = telling.names(list(self._unlabelled))
            yield f"labels are not known of {names}: no node selector excludes them"
        if unknown and chosen:
            yield (
                f"{telling.names(chosen)}: for nodes by their labels, which are not known of "
                f"{telling.names(unknown)}: those have none of the devices here"
            )

    def _units(self, waiting: Iterable[Pod]) -> list[tuple[PodGroup | None, list[Pod]]]:
        """Return gangs and single pods, each where its first pod is."""
        known = {group.name: group for group in self._scenario.groups}
        units: dict[str, tuple[PodGroup | None, list[Pod]]] = {}
        for pod in waiting:
            group = known.get(pod.group or "")
            if pod.group is not None and group is None:
                self._note(f"PodGroup {pod.group} is not in the files: its pods are no gang here")
            key = f"pod {pod.name}" if group is None else f"group {group.name}"
            queue = pod.queue or (group.queue if group else None)
            units.setdefault(key, (group, []))[1].append(replace(pod, queue=queue))
        for name, group in known.items():
            if name not in self._running:
                units.setdefault(f"group {name}", (group, []))
        return list(units.values())

    def _settle(self, pod: Pod) -> None:
        """Count a pod that has its node."""
        claims = self._world.claims_of(pod)
        wanted = self._demand(pod, [] if isinstance(claims, str) else claims)
        self._world.occupy(pod.node or "", wanted.resources)
        self._world.reserve(pod)
        self._charge(wanted)
        self._running.setdefault(pod.group or "", []).append(pod)

    # Gangs

    def _gang(self, group: PodGroup, pods: list[Pod]) -> tuple[GroupAnswer, list[PodAnswer]]:
        running = self._running.get(group.name, [])
        if len(pods) + len(running) < group.min_member:
            few = f"it has {len(pods)} of at least {group.min_member} members"
            return self._gang_answer(group, pods, 0, few), [_refused(p, few) for p in pods]
        before = self._world.state.copy()
        best: list[PodAnswer] = []
        reason: str | None = None
        for order in (
            pods,
            sorted(pods, key=gangs.size, reverse=True),
            gangs.needed_first(group, pods),
            sorted(pods, key=self._ways),
        ):
            answers = [self._place(pod) for pod in order]
            short = gangs.short(group, order, answers, running)
            if short is None:
                return self._gang_answer(group, pods, gangs.placed(answers), None), answers
            if not best or gangs.placed(answers) > gangs.placed(best):
                best, reason = answers, short
            self._world.state = before.copy()
        undecided = any(answer.verdict is Verdict.UNDECIDED for answer in best)
        if not undecided and self._could_fit(group, pods):
            undecided, reason = True, f"{reason}; not every way to share out the nodes was tried"
        self._world.state = before
        told = self._gang_answer(group, pods, gangs.placed(best), reason, is_undecided=undecided)
        return told, [gangs.taken_back(answer, told) for answer in best]

    def _ways(self, pod: Pod) -> int:
        """Return on how many nodes there is room for a pod now."""
        claims = self._world.claims_of(pod)
        if isinstance(claims, str):
            return 0
        wanted = self._demand(pod, claims)
        alike = _alike(wanted)
        found = (self._on_node(wanted, node, alike) for node in self._world.nodes)
        return sum(isinstance(each, tuple) for each in found)

    def _could_fit(self, group: PodGroup, pods: Sequence[Pod]) -> bool:
        """Tell whether enough members would fit if those that differ were not in each other's way.

        Of members that are alike the first nodes are as good as any. It leaves the state as it
        comes.
        """
        if any(claim.claim for pod in pods for claim in pod.claims) or self._world.is_networked:
            return True
        before = self._world.state
        kinds: dict[str, list[Pod]] = {}
        for pod in pods:
            kinds.setdefault(str(pod.called("")), []).append(pod)
        answers: list[PodAnswer] = []
        for alike in kinds.values():
            self._world.state = before.copy()
            answers += [self._place(pod) for pod in alike]
        members = [pod for alike in kinds.values() for pod in alike]
        return gangs.short(group, members, answers, self._running.get(group.name, [])) is None

    def _gang_answer(
        self,
        group: PodGroup,
        pods: Sequence[Pod],
        fitting_pods: int,
        reason: str | None,
        *,
        is_undecided: bool = False,
    ) -> GroupAnswer:
        refused = Verdict.UNDECIDED if is_undecided else Verdict.REFUSED
        return GroupAnswer(
            group=group.name,
            verdict=Verdict.PLACED if reason is None else refused,
            min_member=group.min_member,
            members=len(pods),
            fitting=fitting_pods,
            reason=reason,
        )

    # Pods

    def _place(self, pod: Pod) -> PodAnswer:
        claims = self._world.claims_of(pod)
        if isinstance(claims, str):
            return _refused(pod, claims)
        wanted = self._demand(pod, claims)
        reason = self._queue_objection(wanted, claims)
        if reason is None and not self._world.nodes:
            reason = "no node is known; give inventories, ResourceSlices or Nodes, or --cluster"
        return self._anywhere(wanted) if reason is None else _refused(pod, reason)

    def _anywhere(self, wanted: Demand) -> PodAnswer:
        """Place a pod on the first node that has room; one selector that fails ends it."""
        pod = wanted.pod
        alike = _alike(wanted)
        refusals: list[NodeRefusal] = []
        fits: list[tuple[Node, tuple[Given, ...]]] = []
        for node in self._world.nodes:
            found = self._on_node(wanted, node, alike)
            match found:
                case Aborted(reason=text):
                    return _refused(pod, f"on {node.name}, and so for every node: {text}")
                case NodeRefusal():
                    refusals.append(found)
                case _:
                    fits.append((node, found))
        if not fits:
            return _nowhere(pod, refusals)
        return self._settle_on(wanted, *fits[0])

    def _settle_on(self, wanted: Demand, node: Node, given: tuple[Given, ...]) -> PodAnswer:
        pod = wanted.pod
        self._world.occupy(node.name, wanted.resources)
        self._world.give(pod, node.name, given)
        self._charge(wanted)
        held = tuple(
            Given(claim=name, request=pick.request, device=pick.device)
            for name, claim in wanted.held
            for pick in claim.picks or ()
        )
        return PodAnswer(
            pod=pod.name,
            verdict=Verdict.PLACED,
            node=node.name,
            devices=given + held,
            reason=None,
            refusals=(),
            is_claim=pod.is_claim,
        )

    def _on_node(self, wanted: Demand, node: Node, alike: _Likeness) -> _Found:
        """Return what the pod gets there, or why not; pods that are *alike* get one answer."""
        age = self._world.state.age.get(node.name, 0)
        question, claimed = alike
        return self._known.answer(
            node.name, question, age, lambda: self._judge(wanted, node, claimed, age)
        )

    def _judge(self, wanted: Demand, node: Node, claimed: str, age: int) -> _Found:
        if node.labels is None and (wanted.pod.node_selector or wanted.pod.terms):
            self._unlabelled[node.name] = None
        names, more = fitting.backed(wanted, node, self._scenario.classes)
        used = self._world.state.used.get(node.name, {})
        reason = (
            fitting.objection(wanted, node)
            or fitting.shortage(wanted, node, used, names)
            or fitting.kai_objection(wanted, has_dra_gpus=self._world.has_dra_gpus(node.name))
        )
        if reason is not None:
            return self._once(NodeRefusal(node=node.name, reason=reason))
        claims = (*wanted.claims, *more)
        if not claims:
            return ()
        question = f"{claimed} {more}" if more else claimed
        return self._searched.answer(node.name, question, age, lambda: self._allocate(claims, node))

    def _allocate(self, claims: Sequence[Claim], node: Node) -> _Found:
        ground = Ground(
            pools=self._world.node_pools(node.name),
            taken=self._world.state.taken,
            classes=self._world.classes,
            selectors=self._selectors,
            budget=self._budget,
        )
        outcome = allocation.allocate(ground, claims)
        match outcome:
            case Allocated(given=given):
                return given
            case Refused(requests=requests):
                reason = "; ".join(f"claim {r.claim}, request {r.request}" for r in requests)
                return self._once(NodeRefusal(node=node.name, reason=reason, requests=requests))
            case Undecided(reason=reason):
                refusal = NodeRefusal(node=node.name, reason=reason, verdict=Verdict.UNDECIDED)
                return self._once(refusal)
            case Aborted():
                return outcome

    def _once(self, refusal: NodeRefusal) -> NodeRefusal:
        """Return the first of refusals that are equal, to be told apart by identity."""
        return self._refusals.setdefault(refusal, refusal)

    def _demand(self, pod: Pod, claims: Iterable[tuple[str, Claim]]) -> Demand:
        runtime = self._world.runtimes.get(pod.runtime_class or "")
        if pod.runtime_class is not None and runtime is None and pod.node is None:
            self._note(
                f"RuntimeClass {pod.runtime_class} is not in the files: its overhead and its "
                "node selector are not counted"
            )
        return fitting.demand(pod, runtime, claims)

    # Queues

    def _queue_objection(self, wanted: Demand, claims: Iterable[tuple[str, Claim]]) -> str | None:
        if wanted.pod.scheduler != KAI:
            return None
        for name, claim in claims:
            is_shared = any(c.name == name and c.claim for c in wanted.pod.claims)
            if is_shared and claim.queue is None and queues.gpus({}, (claim,)):
                return (
                    f"claim {claim.name} has no label kai.scheduler/queue, which KAI wants of a "
                    "claim for GPUs that is of no template"
                )
        if wanted.pod.queue is not None and not self._world.queues:
            self._note("no Queue is in the files: no quota and no limit is counted")
        return queues.objection(
            wanted.pod, _amounts(wanted), self._world.queues, self._world.state.queues
        )

    def _charge(self, wanted: Demand) -> None:
        self._world.charge(wanted.pod, _amounts(wanted))

    def _queues(self, waiting: Iterable[Pod]) -> Iterable[QueueAnswer]:
        groups = {group.name: group.queue for group in self._scenario.groups}
        both = ((p.queue or groups.get(p.group or ""), p.scheduler) for p in waiting)
        asked = [queue for queue, scheduler in both if queue is not None and scheduler == KAI]
        names: dict[str, None] = {}
        for name in asked:
            above = [queue.name for queue in queues.chain(name, self._world.queues)]
            names.update(dict.fromkeys([name, *above]))
        total = queues.totals(self._world.nodes, self._scenario.slices) if names else {}
        for name in names:
            used = self._world.state.queues.get(name, {})
            yield queues.answer(name, self._world.queues, used, total)

    def _note(self, text: str) -> None:
        self._notes[text] = None


def _alike(wanted: Demand) -> _Likeness:
    """Return what two pods have in common to which every node gives the same answer."""
    held = ",".join(f"{name} at {claim.where}" for name, claim in wanted.held)
    pod = replace(wanted.pod.called(""), group=None, subgroup=None, queue=None)
    return f"{pod} {held}", str(wanted.claims)


def _amounts(wanted: Demand) -> dict[str, Fraction]:
    """Return what a pod has of a queue's three resources."""
    claims = (*wanted.claims, *(claim for _, claim in wanted.held))
    return {
        "cpu": wanted.resources.get("cpu", _ZERO),
        "memory": wanted.resources.get("memory", _ZERO),
        "gpu": queues.gpus(wanted.resources, claims),
    }


def _refused(pod: Pod, reason: str) -> PodAnswer:
    return PodAnswer(
        pod=pod.name,
        verdict=Verdict.REFUSED,
        node=None,
        devices=(),
        reason=reason,
        refusals=(),
        is_claim=pod.is_claim,
    )


def _nowhere(pod: Pod, refusals: Sequence[NodeRefusal]) -> PodAnswer:
    unclear = [refusal for refusal in refusals if refusal.verdict is Verdict.UNDECIDED]
    count = len(refusals)
    nodes = "the only node has no room" if count == 1 else f"none of {count} nodes has room"
    if unclear:
        nodes = f"undecided on {len(unclear)} of {count} nodes, and no other has room"
    return replace(
        _refused(pod, nodes),
        verdict=Verdict.UNDECIDED if unclear else Verdict.REFUSED,
        refusals=tuple(refusals),
    )
