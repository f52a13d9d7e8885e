"""Which devices the claims of one pod get on one node, as Kubernetes' allocator finds them.

First-fit with backtracking: claims, requests and devices in their order, combinations and no
permutations within a request. A branch is left early where too few devices are left that could
still do, which changes how long it takes and not what comes out: what a device fails once, it
fails with more devices chosen. Selectors are evaluated when a device's turn comes, for one that
fails to evaluate ends the whole allocation, and one that is not reached does not.

Source: k8s.io/dynamic-resource-allocation/structured, Allocate and allocateOne.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from kata_gpu.plan.simulate import conditions, quantity
from kata_gpu.plan.simulate.answer import (
    Condition,
    DeviceRefusal,
    Given,
    Reason,
    RequestRefusal,
)
from kata_gpu.plan.simulate.cel import CelFailure
from kata_gpu.plan.simulate.outcome import (
    Aborted,
    Allocated,
    Ground,
    Outcome,
    Refused,
    Undecided,
)
from kata_gpu.plan.simulate.pools import Pool
from kata_gpu.plan.simulate.values import (
    CLAIM_DEVICES_MAX,
    Choice,
    Claim,
    Constraint,
    Device,
)

STEPS_MAX: Final = 50_000
"""Devices that are tried for one pod on one node, before it is said to be undecided."""

WANTED_MAX: Final = 128
"""Devices that one pod may want here, in all its claims."""


class _Stop(Exception):  # noqa: N818 - it ends a search, and is no error
    """The search has its answer, deep down."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def allocate(ground: Ground, claims: Sequence[Claim], steps_max: int = STEPS_MAX) -> Outcome:
    """Return what *claims*, none of which has devices, get together."""
    search = _Search(ground=ground, claims=claims, steps_left=steps_max)
    try:
        search.prepare()
        is_done = search.request(0)
    except _Stop as stop:
        return stop.outcome
    if is_done:
        return Allocated(given=tuple(pick.given for pick in search.picks))
    return search.refused()


@dataclass(frozen=True, slots=True)
class _Pick:
    claim: int
    choice: Choice
    device: Device
    pool: Pool
    given: Given


@dataclass(frozen=True, slots=True)
class _Slot:
    """A request of a claim; *number* is the claim's."""

    number: int
    claim: Claim
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class _Furthest:
    """The state in which a choice failed, with as many devices chosen as it ever had."""

    chosen: int
    needed: int
    refusals: tuple[DeviceRefusal, ...]
    fitting: int


@dataclass(slots=True)
class _Search:
    ground: Ground
    claims: Sequence[Claim]
    steps_left: int
    slots: list[_Slot] = field(default_factory=list)
    picks: list[_Pick] = field(default_factory=list)
    places: list[tuple[Pool, Device]] = field(default_factory=list)
    still: dict[tuple[int, str, int], Reason | CelFailure | None] = field(default_factory=dict)
    """What a device fails for a choice whatever else is chosen; evaluated when reached."""

    alls: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    furthest: dict[tuple[int, str], _Furthest] = field(default_factory=dict)
    deepest: int = 0
    steps_max: int = 0

    # Before the search

    def prepare(self) -> None:
        """Look up classes, and what "all" is; stop at what the allocator stops at."""
        self.steps_max = self.steps_left
        self.places = [(pool, device) for pool in self.ground.pools for device in pool.devices]
        for number, claim in enumerate(self.claims):
            least = 0
            for request in claim.requests:
                slot = _Slot(number, claim, request.choices)
                self.slots.append(slot)
                for choice in request.choices:
                    self._check(claim, choice)
                    if choice.is_all:
                        self.alls[number, choice.name] = self._all(claim, choice)
                least += min(self._needed(slot, choice) for choice in request.choices)
            if least > CLAIM_DEVICES_MAX:
                text = f"it needs {least} devices at least, and may have {CLAIM_DEVICES_MAX}"
                raise _Stop(Aborted(reason=f"claim {claim.name}: {text}"))
        wanted = sum(
            min(max(self._needed(slot, c) for c in slot.choices), CLAIM_DEVICES_MAX)
            for slot in self.slots
        )
        if wanted > WANTED_MAX:
            raise _Stop(
                Undecided(
                    reason=f"it wants {wanted} devices, and {WANTED_MAX} is the most "
                    "that is tried here"
                )
            )

    def _needed(self, slot: _Slot, choice: Choice) -> int:
        places = self.alls.get((slot.number, choice.name))
        return choice.count if places is None else len(places)

    def _check(self, claim: Claim, choice: Choice) -> None:
        where = f"claim {claim.name}, request {choice.name}"
        if choice.class_name not in self.ground.classes:
            raise _Stop(Aborted(reason=f"{where}: there is no DeviceClass {choice.class_name}"))
        if choice.is_admin:
            raise _Stop(Aborted(reason=f"{where}: admin access, which a VM's device cannot give"))

    def _all(self, claim: Claim, choice: Choice) -> list[int]:
        """Return the places of all devices that are selected, had by somebody or not."""
        where = f"claim {claim.name}, request {choice.name}"
        for pool in self.ground.pools:
            if pool.fault is not None:
                raise _Stop(
                    Aborted(
                        reason=f"{where}: asks for all devices, and of "
                        f"{pool.driver}/{pool.name} {pool.fault}"
                    )
                )
        found = []
        for place, (_, device) in enumerate(self.places):
            reason = self._unselected(choice, device)
            if isinstance(reason, CelFailure):
                raise _Stop(_failed(claim, choice, device, reason))
            if reason is None:
                found.append(place)
        return found

    # The search

    def request(self, number: int) -> bool:
        """Satisfy the request with that number and all after it."""
        if number == len(self.slots):
            return True
        if number > self.deepest:
            self.deepest = number
            self.furthest.clear()
        slot = self.slots[number]
        return any(self._fits(number, slot, choice) for choice in slot.choices)

    def _fits(self, number: int, slot: _Slot, choice: Choice) -> bool:
        needed = self._needed(slot, choice)
        has = sum(1 for pick in self.picks if pick.claim == slot.number)
        if choice.is_all and not needed:
            return self._fail(number, choice, _Furthest(0, 1, self._none_of_all(choice), 0))
        if has + needed > CLAIM_DEVICES_MAX:
            return self._fail(number, choice, _Furthest(0, needed, (), -1))
        return self._devices(number, choice, needed, 0)

    def _devices(self, number: int, choice: Choice, needed: int, start: int) -> bool:
        """Choose *needed* more devices for the choice, from the place *start* on."""
        if not needed:
            return self.request(number + 1)
        slot = self.slots[number]
        places = self.alls.get((slot.number, choice.name)) or range(len(self.places))
        places = [place for place in places if place >= start]
        fitting: list[int] = []
        refusals: list[DeviceRefusal] = []
        for place in places:
            reason = self._unfit(number, choice, place)
            if reason is None or isinstance(reason, CelFailure):
                fitting.append(place)
            else:
                refusals.append(DeviceRefusal(device=self.places[place][1].id, reason=reason))
        is_in_turn = choice.is_all and bool(slot.claim.constraints) and fitting[:1] == places[:1]
        if len(fitting) < needed and not is_in_turn:
            if choice.is_all:
                _insist(slot.claim, choice, refusals[0])
            self._reach(slot, choice, fitting)
            state = _Furthest(self._chosen(number, choice), needed, tuple(refusals), len(fitting))
            return self._fail(number, choice, state)
        for place in fitting[:1] if choice.is_all else fitting:
            self._reach(slot, choice, [place])
            if self._take(number, choice, place, needed):
                return True
        return False

    def _reach(self, slot: _Slot, choice: Choice, places: Sequence[int]) -> None:
        """Stop where a device's turn comes whose selector cannot be evaluated."""
        for place in places:
            reason = self.still.get((slot.number, choice.name, place))
            if isinstance(reason, CelFailure):
                raise _Stop(_failed(slot.claim, choice, self.places[place][1], reason))

    def _take(self, number: int, choice: Choice, place: int, needed: int) -> bool:
        self.steps_left -= 1
        self.ground.budget.left -= 1
        if self.steps_left < 0 or self.ground.budget.left < 0:
            raise _Stop(Undecided(reason=f"no answer after {self.steps_max} tries of devices"))
        slot = self.slots[number]
        pool, device = self.places[place]
        given = Given(claim=slot.claim.name, request=choice.name, device=device.id)
        self.picks.append(_Pick(slot.number, choice, device, pool, given))
        if self._devices(number, choice, needed - 1, place + 1):
            return True
        self.picks.pop()
        return False

    def _chosen(self, number: int, choice: Choice) -> int:
        claim = self.slots[number].number
        return sum(1 for pick in self.picks if (pick.claim, pick.choice) == (claim, choice))

    # What a device fails

    def _unfit(self, number: int, choice: Choice, place: int) -> Reason | CelFailure | None:
        slot = self.slots[number]
        key = (slot.number, choice.name, place)
        pool, device = self.places[place]
        chosen = self._chosen_for(device)  # before selectors, which may not be evaluated then
        if chosen is not None:
            return chosen
        if key not in self.still:
            self.still[key] = self._unfit_ever(choice, pool, device)
        return self.still[key] or self._unfit_now(slot, choice, pool, device)

    def _chosen_for(self, device: Device) -> Reason | None:
        for pick in self.picks:
            if pick.device.id == device.id:
                text = f"chosen for request {pick.choice.name} of {pick.given.claim}"
                return Reason(condition=Condition.ALLOCATED, text=text)
        return None

    def _unfit_ever(self, choice: Choice, pool: Pool, device: Device) -> Reason | CelFailure | None:
        if pool.fault is not None:
            return Reason(condition=Condition.POOL, text=pool.fault)
        owner = self.ground.taken.get(device.id)
        if owner is not None:
            return Reason(condition=Condition.ALLOCATED, text=f"allocated to {owner}")
        if device.is_shared or choice.capacity:
            short = conditions.short(choice, device)
            if short is not None:
                return short
        return self._unselected(choice, device) or conditions.tainted(choice, device)

    def _unselected(self, choice: Choice, device: Device) -> Reason | CelFailure | None:
        class_ = self.ground.classes[choice.class_name]
        of_class = ((f"DeviceClass {class_.name}", text) for text in class_.selectors)
        for owner, text in (*of_class, *((f"request {choice.name}", s) for s in choice.selectors)):
            found = self.ground.selectors.evaluate(text, device)
            if isinstance(found, CelFailure):
                return CelFailure(
                    f"{owner}: {conditions.clip(text)}: {found.text}", is_ours=found.is_ours
                )
            if not found:
                told = f"{conditions.clip(text)} is false{conditions.told(text, device)}"
                return Reason(condition=Condition.SELECTOR, text=f"{owner}: {told}")
        return None

    def _unfit_now(self, slot: _Slot, choice: Choice, pool: Pool, device: Device) -> Reason | None:
        if (exceeding := self._exceeds(pool, device)) is not None:
            return exceeding
        for constraint in slot.claim.constraints:
            if constraint.is_about(choice):
                reason = conditions.breaks(constraint, device, self._bound(slot, constraint))
                if reason is not None:
                    return reason
        return None

    def _bound(self, slot: _Slot, constraint: Constraint) -> list[Device]:
        return [
            pick.device
            for pick in self.picks
            if pick.claim == slot.number and constraint.is_about(pick.choice)
        ]

    def _exceeds(self, pool: Pool, device: Device) -> Reason | None:
        if not device.counts:
            return None
        users = [
            *self._allocated_in(pool),
            *((p.device, p.given.claim) for p in self.picks if p.pool is pool),
        ]
        for key, amount in device.counts.items():
            using = [(who, d) for d, who in users if key in d.counts]
            left = pool.counters[key] - sum((d.counts[key] for _, d in using), Fraction(0))
            if amount > left:
                by = ", ".join(f"{d.id.name} of {who}" for who, d in using)
                return Reason(
                    condition=Condition.COUNTER,
                    text=f"takes {quantity.text(amount)} of counter {key[0]}/{key[1]}, of which "
                    f"{quantity.text(left)} is left{f' beside {by}' if by else ''}",
                )
        return None

    def _allocated_in(self, pool: Pool) -> Iterator[tuple[Device, str]]:
        for device in (*pool.devices, *pool.elsewhere):
            owner = self.ground.taken.get(device.id)
            if owner is not None:
                yield device, owner

    # The account of a failure

    def _fail(self, number: int, choice: Choice, state: _Furthest) -> bool:
        key = (number, choice.name)
        before = self.furthest.get(key)
        if number == self.deepest and (before is None or before.chosen < state.chosen):
            self.furthest[key] = state
        return False

    def _none_of_all(self, choice: Choice) -> tuple[DeviceRefusal, ...]:
        refusals = []
        for _, device in self.places:
            reason = self._unselected(choice, device)
            if isinstance(reason, Reason):
                refusals.append(DeviceRefusal(device=device.id, reason=reason))
        return tuple(refusals)

    def refused(self) -> Refused:
        """Return what the request fails that the search got no further than."""
        found = []
        for (number, name), state in self.furthest.items():
            found.append(
                RequestRefusal(
                    claim=self.slots[number].claim.name,
                    request=name,
                    needed=_needed(state, len(self.places)),
                    devices=state.refusals,
                )
            )
        return Refused(requests=tuple(found))


def _needed(state: _Furthest, total: int) -> str:
    if state.fitting < 0:
        return f"a claim has at most {CLAIM_DEVICES_MAX} devices, and this makes it more"
    all_of_it = state.needed + state.chosen
    devices = f"{all_of_it} device{'' if all_of_it == 1 else 's'}"
    fitting = state.fitting or "none"
    if not total:
        return f"needs {devices}, and the node has none"
    if state.chosen:
        return f"needs {devices}: {state.chosen} chosen, and {fitting} of the others will do"
    return f"needs {devices}, and {fitting} of {total} will do"


def _insist(claim: Claim, choice: Choice, refusal: DeviceRefusal) -> None:
    """Stop where one of all devices breaks a constraint: there the allocator gives up."""
    if refusal.reason.condition in {Condition.MATCH, Condition.DISTINCT}:
        raise _Stop(
            Aborted(
                reason=f"claim {claim.name}, request {choice.name}: asks for all devices, and "
                f"{refusal.device.name} breaks a constraint: {refusal.reason.text}"
            )
        )


def _failed(claim: Claim, choice: Choice, device: Device, failure: CelFailure) -> Outcome:
    text = f"claim {claim.name}: on device {device.id.name}: {failure.text}"
    return Undecided(reason=text) if failure.is_ours else Aborted(reason=text)
