"""Claims and devices: the search against every combination there is, and at its bounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.model.kubernetes import Effect, Taint
from kata_gpu.plan.simulate.allocation import allocate
from kata_gpu.plan.simulate.cel import Selectors
from kata_gpu.plan.simulate.outcome import (
    Aborted,
    Allocated,
    Budget,
    Ground,
    Outcome,
    Refused,
    Undecided,
)
from kata_gpu.plan.simulate.pools import of_nodes
from kata_gpu.plan.simulate.values import (
    Choice,
    Claim,
    Constraint,
    Device,
    DeviceClass,
    DeviceId,
    Node,
    Request,
    Slice,
    Toleration,
    Value,
    Where,
)

DRIVER: Final = "gpu.example.com"
ATTRIBUTE: Final = f"{DRIVER}/side"
LEFT: Final = f"device.attributes['{DRIVER}'].?side.orValue('') == 'left'"
CLASSES: Final = {
    "any": DeviceClass(name="any", selectors=()),
    "left": DeviceClass(name="left", selectors=(LEFT,)),
}
SELECTORS: Final = Selectors()
TAINT: Final = Taint(key="example.com/sick", value="", effect=Effect.NO_SCHEDULE)
TOLERANT: Final = (Toleration(operator="Exists"),)


def device(name: str, **more: object) -> Device:
    return Device(id=DeviceId(DRIVER, "n1", name), **more)  # type: ignore[arg-type]


def ground(
    devices: Sequence[Device],
    taken: Mapping[DeviceId, str] | None = None,
    counters: Mapping[tuple[str, str], Fraction] | None = None,
    steps: int = 1_000_000,
) -> Ground:
    slice_ = Slice(
        name="s",
        driver=DRIVER,
        pool="n1",
        generation=1,
        count=1,
        where=Where(node="n1"),
        devices=tuple(devices),
        counters=counters or {},
    )
    return Ground(
        pools=of_nodes((slice_,), [Node(name="n1")])["n1"],
        taken=taken or {},
        classes=CLASSES,
        selectors=Selectors(),
        budget=Budget(steps),
    )


def request(name: str, *choices: Choice) -> Request:
    return Request(name=name, choices=choices, is_prioritized=len(choices) > 1)


def choice(name: str, class_name: str = "any", **more: object) -> Choice:
    return Choice(name=name, class_name=class_name, **more)  # type: ignore[arg-type]


def claim(*requests: Request, constraints: tuple[Constraint, ...] = (), name: str = "c") -> Claim:
    return Claim(name=name, requests=requests, constraints=constraints)


def names(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Allocated)
    return [item.device.name for item in outcome.given]


# Against brute force


COUNTER: Final = ("set", "slots")

attributes: st.SearchStrategy[dict[str, Value]] = st.sampled_from(
    [{}, {ATTRIBUTE: "left"}, {ATTRIBUTE: "right"}, {ATTRIBUTE: 1}, {ATTRIBUTE: True}]
)


@st.composite
def device_lists(draw: st.DrawFn) -> list[Device]:
    count = draw(st.integers(1, 4))
    return [
        device(
            f"d{number}",
            attributes=draw(attributes),
            taints=draw(st.sampled_from([(), (), (TAINT,)])),
            counts=draw(st.sampled_from([{}, {}, {COUNTER: Fraction(1)}, {COUNTER: Fraction(2)}])),
        )
        for number in range(count)
    ]


@st.composite
def choices(draw: st.DrawFn, name: str) -> Choice:
    return choice(
        name,
        draw(st.sampled_from(["any", "any", "left"])),
        selectors=draw(st.sampled_from([(), (), (LEFT,)])),
        count=draw(st.integers(1, 3)),
        is_all=draw(st.sampled_from([False, False, False, True])),
        tolerations=draw(st.sampled_from([(), TOLERANT])),
    )


@st.composite
def claims(draw: st.DrawFn, name: str) -> Claim:
    requests = []
    for number in range(draw(st.integers(1, 2))):
        own = f"r{number}"
        if draw(st.booleans()):
            subs = [draw(choices(f"{own}/s{sub}")) for sub in range(draw(st.integers(1, 2)))]
            requests.append(request(own, *subs))
        else:
            requests.append(request(own, draw(choices(own))))
    about = draw(st.sampled_from([(), ("r0",), ("r0/s1", "r1")]))
    limits = [Constraint(attribute=ATTRIBUTE, requests=about, is_distinct=draw(st.booleans()))]
    return claim(*requests, constraints=tuple(limits[: draw(st.integers(0, 1))]), name=name)


def selected(wanted: Choice, found: Device) -> bool:
    needs_left = wanted.class_name == "left" or bool(wanted.selectors)
    value = found.attributes.get(ATTRIBUTE, "")
    return not needs_left or (isinstance(value, str) and value == "left")


def sets(wanted: Choice, devices: Sequence[Device]) -> Iterator[tuple[Device, ...]]:
    if wanted.is_all:
        everything = tuple(d for d in devices if selected(wanted, d))
        yield from [everything] if everything else []
        return
    yield from combinations(devices, wanted.count)


def holds(constraint: Constraint, chosen: Sequence[tuple[Choice, Device]]) -> bool:
    values = [d.attributes.get(ATTRIBUTE) for wanted, d in chosen if constraint.is_about(wanted)]
    if None in values:
        return False
    different = {(type(value), value) for value in values}
    return len(different) == len(values) if constraint.is_distinct else len(different) <= 1


def is_valid(
    asked: Sequence[Claim],
    per_claim: Sequence[Sequence[tuple[Choice, Device]]],
    taken: Mapping[DeviceId, str],
    devices: Sequence[Device],
    capacity: Fraction,
) -> bool:
    chosen = [pair for pairs in per_claim for pair in pairs]
    ids = [d.id for _, d in chosen]
    used = sum(
        (d.counts.get(COUNTER, Fraction(0)) for d in devices if d.id in taken or d.id in ids),
        Fraction(0),
    )
    counts = any(d.counts for _, d in chosen)
    return (
        len(set(ids)) == len(ids)
        and not set(ids) & taken.keys()
        and all(
            selected(wanted, d) and (not d.taints or wanted.tolerations) for wanted, d in chosen
        )
        and (not counts or used <= capacity)
        and all(
            holds(constraint, pairs)
            for one, pairs in zip(asked, per_claim, strict=True)
            for constraint in one.constraints
        )
    )


def first_by_brute_force(
    asked: Sequence[Claim],
    devices: Sequence[Device],
    taken: Mapping[DeviceId, str],
    capacity: Fraction,
) -> list[str] | None:
    """Return the first of all combinations, in the order of requests, choices and devices."""
    slots = [
        [(number, wanted, chosen) for wanted in each.choices for chosen in sets(wanted, devices)]
        for number, one in enumerate(asked)
        for each in one.requests
    ]
    for combination in product(*slots):
        per_claim: list[list[tuple[Choice, Device]]] = [[] for _ in asked]
        for number, wanted, chosen in combination:
            per_claim[number] += [(wanted, found) for found in chosen]
        if is_valid(asked, per_claim, taken, devices, capacity):
            return [d.id.name for _, _, chosen in combination for d in chosen]
    return None


def _without_ends(one: Claim) -> Claim:
    """Return a claim of which no constraint is about "all", where one that fails ends it."""
    has_all = any(wanted.is_all for each in one.requests for wanted in each.choices)
    return replace(one, constraints=()) if has_all else one


@settings(max_examples=300, deadline=None)
@given(
    devices=device_lists(),
    first=claims("a"),
    second=st.one_of(st.none(), claims("b")),
    is_one_taken=st.booleans(),
    capacity=st.integers(1, 4),
)
def test_the_first_combination_that_holds_is_found_and_none_when_there_is_none(
    devices: list[Device],
    first: Claim,
    second: Claim | None,
    is_one_taken: bool,
    capacity: int,
) -> None:
    asked = [_without_ends(one) for one in (first, second) if one is not None]
    taken = {devices[-1].id: "somebody"} if is_one_taken else {}
    counters = {COUNTER: Fraction(capacity)}
    outcome = allocate(ground(devices, taken, counters), asked)
    expected = first_by_brute_force(asked, devices, taken, Fraction(capacity))
    if expected is None:
        assert isinstance(outcome, Refused)
        assert outcome.requests
    else:
        assert names(outcome) == expected


# Against the allocator's own way, which tries one device after another


class AbortError(Exception):
    """A selector that fails to evaluate, or one of "all" devices that breaks a constraint."""


PLAIN: Final = f"device.attributes['{DRIVER}'].side == 'left'"


class Naive:
    """The allocator without any shortcut: nothing is evaluated before its turn."""

    def __init__(
        self,
        asked: Sequence[Claim],
        devices: Sequence[Device],
        taken: Mapping[DeviceId, str],
        capacity: Fraction,
    ) -> None:
        self.asked = asked
        self.devices = devices
        self.taken = taken
        self.capacity = capacity
        self.slots = [(n, each) for n, one in enumerate(asked) for each in one.requests]
        self.picks: list[tuple[int, Choice, Device]] = []

    def answer(self) -> list[str] | None:
        for _, each in self.slots:
            for wanted in each.choices:
                if wanted.is_all:
                    [self.selects(wanted, found) for found in self.devices]
        return [found.id.name for _, _, found in self.picks] if self.slot(0) else None

    def selects(self, wanted: Choice, found: Device) -> bool:
        value = found.attributes.get(ATTRIBUTE)
        if wanted.class_name == "left" and value != "left":
            return False
        if PLAIN in wanted.selectors and value is None:
            raise AbortError
        return not wanted.selectors or value == "left"

    def slot(self, number: int) -> bool:
        if number == len(self.slots):
            return True
        owner, each = self.slots[number]
        for wanted in each.choices:
            if wanted.is_all:
                places = [n for n, d in enumerate(self.devices) if self.selects(wanted, d)]
                if places and self.take_all(number, owner, wanted, places):
                    return True
            elif self.take(number, owner, wanted, wanted.count, 0):
                return True
        return False

    def take(self, number: int, owner: int, wanted: Choice, left: int, start: int) -> bool:
        if not left:
            return self.slot(number + 1)
        for place in range(start, len(self.devices)):
            found = self.devices[place]
            if self.in_use(found) or not self.selects(wanted, found):
                continue
            if self.add(owner, wanted, found):
                if self.take(number, owner, wanted, left - 1, place + 1):
                    return True
                self.picks.pop()
        return False

    def take_all(self, number: int, owner: int, wanted: Choice, places: list[int]) -> bool:
        if not places:
            return self.slot(number + 1)
        found = self.devices[places[0]]
        if self.in_use(found) or not self.has_room(wanted, found):
            return False
        if not self.add(owner, wanted, found):
            raise AbortError
        if self.take_all(number, owner, wanted, places[1:]):
            return True
        self.picks.pop()
        return False

    def in_use(self, found: Device) -> bool:
        return found.id in self.taken or any(d.id == found.id for _, _, d in self.picks)

    def has_room(self, wanted: Choice, found: Device) -> bool:
        chosen = {found.id, *(d.id for _, _, d in self.picks)}
        used = sum(
            (
                d.counts.get(COUNTER, Fraction(0))
                for d in self.devices
                if d.id in chosen or d.id in self.taken
            ),
            Fraction(0),
        )
        is_tolerated = not found.taints or bool(wanted.tolerations)
        return is_tolerated and (not found.counts or used <= self.capacity)

    def add(self, owner: int, wanted: Choice, found: Device) -> bool:
        self.picks.append((owner, wanted, found))
        mine = [(w, d) for n, w, d in self.picks if n == owner]
        limits = [c for c in self.asked[owner].constraints if c.is_about(wanted)]
        fine = self.has_room(wanted, found) and all(holds(limit, mine) for limit in limits)
        if not fine:
            self.picks.pop()
        return fine


def with_plain_selectors(one: Claim) -> Claim:
    """Return a claim whose selectors fail on a device without the attribute."""
    requests = tuple(
        replace(
            each,
            choices=tuple(
                replace(wanted, selectors=(PLAIN,)) if wanted.selectors else wanted
                for wanted in each.choices
            ),
        )
        for each in one.requests
    )
    return replace(one, requests=requests)


@settings(max_examples=400, deadline=None)
@given(
    devices=device_lists(),
    asked=st.lists(st.sampled_from("ab").flatmap(claims), min_size=1, max_size=2),
    is_one_taken=st.booleans(),
    capacity=st.integers(1, 4),
)
def test_what_ends_an_allocation_ends_it_exactly_where_the_allocator_would_come_to_it(
    devices: list[Device], asked: list[Claim], is_one_taken: bool, capacity: int
) -> None:
    asked = [with_plain_selectors(one) for one in asked]
    taken = {devices[0].id: "somebody"} if is_one_taken else {}
    outcome = allocate(ground(devices, taken, {COUNTER: Fraction(capacity)}), asked)
    try:
        expected = Naive(asked, devices, taken, Fraction(capacity)).answer()
    except AbortError:
        assert isinstance(outcome, Aborted)
        return
    if expected is None:
        assert isinstance(outcome, Refused)
    else:
        assert names(outcome) == expected


def test_a_device_that_a_later_request_needs_is_left_to_it() -> None:
    left, right = (
        device(f"d{n}", attributes={ATTRIBUTE: s}) for n, s in enumerate(["left", "right"])
    )
    asked = claim(request("a", choice("a")), request("b", choice("b", "left")))
    assert names(allocate(ground([left, right]), [asked])) == ["d1", "d0"]


def test_a_choice_that_leaves_too_little_for_a_later_claim_is_given_up() -> None:
    either = request("a", choice("a/two", count=2), choice("a/one"))
    asked = [claim(either), claim(request("b", choice("b")), name="later")]
    outcome = allocate(ground([device("d0"), device("d1")]), asked)
    assert isinstance(outcome, Allocated)
    assert [(item.request, item.device.name) for item in outcome.given] == [
        ("a/one", "d0"),
        ("b", "d1"),
    ]


# At the bounds


def test_a_search_that_takes_too_long_is_undecided_and_not_refused() -> None:
    sides = [device(f"d{n}", attributes={ATTRIBUTE: f"s{n % 3}"}) for n in range(24)]
    apart = Constraint(attribute=ATTRIBUTE, requests=("b",), is_distinct=True)
    asked = claim(
        request("a", choice("a", count=12)),
        request("b", choice("b", count=4)),
        constraints=(apart,),
    )
    outcome = allocate(ground(sides), [asked], steps_max=1000)
    assert outcome == Undecided(reason="no answer after 1000 tries of devices")


def test_devices_that_share_no_value_are_refused_at_once() -> None:
    sides = [device(f"d{n}", attributes={ATTRIBUTE: f"s{n % 10}"}) for n in range(100)]
    together = Constraint(attribute=ATTRIBUTE)
    asked = claim(request("a", choice("a", count=11)), constraints=(together,))
    assert isinstance(allocate(ground(sides), [asked], steps_max=200), Refused)


@pytest.mark.parametrize("count", [32, 33])
def test_a_claim_has_at_most_32_devices(count: int) -> None:
    outcome = allocate(
        ground([device(f"d{n}") for n in range(40)]),
        [claim(request("a", choice("a", count=count)))],
    )
    if count == 32:
        assert len(names(outcome)) == 32
    else:
        assert outcome == Aborted(reason="claim c: it needs 33 devices at least, and may have 32")


def test_a_choice_that_makes_a_claim_too_large_is_passed_over() -> None:
    many = request("b", choice("b/many", count=32), choice("b/one"))
    asked = claim(request("a", choice("a")), many)
    outcome = allocate(ground([device(f"d{n}") for n in range(40)]), [asked])
    assert names(outcome) == ["d0", "d1"]


def test_one_of_all_devices_that_breaks_a_constraint_ends_it_for_every_choice() -> None:
    sides = [device(f"d{n}", attributes={ATTRIBUTE: f"s{n}"}) for n in range(2)]
    either = request("a", choice("a/all", is_all=True), choice("a/one"))
    asked = claim(either, constraints=(Constraint(attribute=ATTRIBUTE),))
    assert allocate(ground(sides), [asked]) == Aborted(
        reason="claim c, request a/all: asks for all devices, and d1 breaks a constraint: "
        f"{ATTRIBUTE} is s1, and s0 for d0"
    )
    assert names(allocate(ground(sides, {sides[0].id: "somebody"}), [asked])) == ["d1"]


def test_a_device_of_another_node_takes_of_the_counters_of_its_pool() -> None:
    half = {COUNTER: Fraction(1)}
    shared = Slice(
        name="s",
        driver=DRIVER,
        pool="p",
        generation=1,
        count=1,
        where=None,
        devices=(
            device("d0", counts=half, where=Where(node="n1")),
            device("d1", counts=half, where=Where(node="n2")),
        ),
        counters={COUNTER: Fraction(1)},
    )
    there = shared.devices[1]
    pools = of_nodes((shared,), [Node(name="n1")])["n1"]
    full = replace(ground([]), pools=pools, taken={there.id: "somebody"})
    outcome = allocate(full, [claim(request("a", choice("a")))])
    assert isinstance(outcome, Refused)
    assert outcome.requests[0].devices[0].reason.text == (
        "takes 1 of counter set/slots, of which 0 is left beside d1 of somebody"
    )


def test_as_many_devices_as_are_tried_for_one_pod_fit_the_stack() -> None:
    devices = [device(f"d{n}") for n in range(128)]
    single = tuple(request(f"r{n}", choice(f"r{n}")) for n in range(32))
    asked = [claim(*single, name=f"c{n}") for n in range(4)]
    assert len(names(allocate(ground(devices), asked))) == 128
    more = [*asked, claim(request("r", choice("r")), name="more")]
    assert isinstance(allocate(ground(devices), more), Undecided)


def test_a_selector_that_fails_on_a_device_whose_turn_does_not_come_is_no_matter() -> None:
    plain = f"device.attributes['{DRIVER}'].side == 'left'"
    asked = claim(request("a", choice("a", selectors=(plain,))))
    good, bare = device("d0", attributes={ATTRIBUTE: "left"}), device("d1")
    assert names(allocate(ground([good, bare]), [asked])) == ["d0"]
    assert isinstance(allocate(ground([bare, good]), [asked]), Aborted)
    assert names(allocate(ground([bare, good], {bare.id: "somebody"}), [asked])) == ["d0"]


def test_a_device_that_several_claims_may_share_is_not_judged() -> None:
    asked = claim(request("a", choice("a")))
    assert isinstance(allocate(ground([device("d0", is_shared=True)]), [asked]), Undecided)


def test_a_capacity_that_is_too_small_is_told() -> None:
    wanted = {"memory": Fraction(80 << 30)}
    small = device("d0", capacity={f"{DRIVER}/memory": Fraction(24 << 30)})
    outcome = allocate(ground([small]), [claim(request("a", choice("a", capacity=wanted)))])
    assert isinstance(outcome, Refused)
    (refusal,) = outcome.requests[0].devices
    assert refusal.reason.text == "capacity memory is 24Gi, and 80Gi is asked for"


def test_a_pool_with_a_counter_that_is_not_there_gives_nothing() -> None:
    strange = device("d0", counts={("set", "gone"): Fraction(1)})
    outcome = allocate(ground([strange]), [claim(request("a", choice("a")))])
    assert isinstance(outcome, Refused)
    assert "no counter gone in a set set" in outcome.requests[0].devices[0].reason.text
