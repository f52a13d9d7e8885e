"""ResourceSlices say what the API server takes, in as few writes as can be."""

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Device, Door, Effect, Taint
from kata_gpu.model.slices import NodeIdentity, Object, SliceChanges
from kata_gpu.plan.kubernetes import slices
from kata_gpu.plan.kubernetes.names import DNS_LABEL
from kata_gpu.publish.kubernetes import shapes
from kata_gpu.publish.kubernetes.errors import ApiError
from tests.api_server import validation
from tests.kubernetes_devices import bundle, gpu, with_taint

NODE: Final = NodeIdentity(name="node-1", uid="a6f9")
H100: Final = gpu(
    0x41,
    attributes={
        "resource.kubernetes.io/pciBusID": "0000:41:00.0",
        "resource.kubernetes.io/pcieRoot": "pci0000:40",
        "resource.kubernetes.io/numaNode": 0,
        "productName": "GH100 [H100 SXM5 80GB]",
        "driverVersion": "580.95.05",
        "confidential": False,
    },
    capacity_bytes={"memory": 80 << 30},
)


def of(*devices: Device, generation: int = 1) -> tuple[Object, ...]:
    return slices.slices(GPU_DRIVER, NODE, devices, generation)


def stored(*bodies: Object) -> list[dict[str, Any]]:
    """Return slices as a server has them."""
    return [
        {
            **body,
            "metadata": {
                **body["metadata"],
                "name": f"{body['metadata']['generateName'][:58]}{index:05}",
                "uid": f"uid-{index}",
                "resourceVersion": str(100 + index),
            },
        }
        for index, body in enumerate(bodies)
    ]


def changes(have: Sequence[Object], *devices: Device) -> SliceChanges:
    return slices.plan(GPU_DRIVER, NODE, devices, have)


def shape(found: SliceChanges) -> tuple[int, int, int]:
    return len(found.deletes), len(found.replaces), len(found.creates)


def generations(found: SliceChanges) -> set[int]:
    return {b["spec"]["pool"]["generation"] for b in (*found.replaces, *found.creates)}


# What a slice says


def test_a_node_is_one_slice_that_says_all_of_its_devices() -> None:
    assert of(H100) == (
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {
                "generateName": "00000-gpu.kata-passthrough.io-node-1-",
                "ownerReferences": [
                    {
                        "apiVersion": "v1",
                        "kind": "Node",
                        "name": "node-1",
                        "uid": "a6f9",
                        "controller": True,
                    }
                ],
            },
            "spec": {
                "driver": "gpu.kata-passthrough.io",
                "nodeName": "node-1",
                "pool": {"name": "node-1", "generation": 1, "resourceSliceCount": 1},
                "devices": [
                    {
                        "name": "0000-41-00-0",
                        "attributes": {
                            "resource.kubernetes.io/numaNode": {"int": 0},
                            "resource.kubernetes.io/pciBusID": {"string": "0000:41:00.0"},
                            "resource.kubernetes.io/pcieRoot": {"string": "pci0000:40"},
                            "confidential": {"bool": False},
                            "driverVersion": {"version": "580.95.5"},
                            "productName": {"string": "GH100 [H100 SXM5 80GB]"},
                        },
                        "capacity": {"memory": {"value": "80Gi"}},
                    }
                ],
            },
        },
    )


def test_no_devices_are_an_empty_slice_and_not_none() -> None:
    (only,) = of()
    assert only["spec"]["devices"] == []


@pytest.mark.parametrize("name", ["n" * 253, f"{'n' * 26}.{'o' * 226}", f"{'n' * 25}--{'o' * 226}"])
def test_a_node_may_have_the_longest_name(name: str) -> None:
    (found,) = slices.slices(GPU_DRIVER, NodeIdentity(name=name, uid="u"), [H100], 1)
    assert validation.slice_faults(found) == ()


def test_devices_of_other_drivers_and_doors_are_passed_over() -> None:
    switch = dataclasses.replace(gpu(2), driver=FABRIC_DRIVER)
    plugin = dataclasses.replace(gpu(3), door=Door.DEVICE_PLUGIN)
    (only,) = of(gpu(1), switch, plugin)
    assert [d["name"] for d in only["spec"]["devices"]] == ["0000-01-00-0"]


@pytest.mark.parametrize("name", ["0000:41:00.0", "", "-a", "A", "a" * 64, "a.b", "a\n"])
def test_a_device_whose_name_the_api_has_not_is_passed_over(name: str) -> None:
    (only,) = of(dataclasses.replace(H100, name=name), gpu(1))
    assert [d["name"] for d in only["spec"]["devices"]] == ["0000-01-00-0"]


def test_two_devices_of_one_name_are_not_both_there() -> None:
    (only,) = of(gpu(1), gpu(1))
    assert len(only["spec"]["devices"]) == 1


def test_the_order_is_that_of_the_devices() -> None:
    (only,) = of(gpu(3), gpu(1), gpu(2))
    assert [d["name"][5:7] for d in only["spec"]["devices"]] == ["03", "01", "02"]


def test_taints_are_in_one_order_whatever_order_they_come_in() -> None:
    taints = [Taint(key=f"example.com/{n}", value="", effect=e) for n in "ab" for e in Effect]
    shuffled = random.Random(1).sample(  # noqa: S311 - no secret
        taints, len(taints)
    )
    orders = [dataclasses.replace(H100, taints=tuple(t)) for t in (taints, shuffled)]
    assert of(orders[0]) == of(orders[1])


def test_more_than_64_devices_are_further_slices_of_the_same_pool() -> None:
    found = of(*(gpu(number) for number in range(150)))
    assert [len(s["spec"]["devices"]) for s in found] == [64, 64, 22]
    assert [s["metadata"]["generateName"][:6] for s in found] == ["00000-", "00001-", "00002-"]
    assert {s["spec"]["pool"]["resourceSliceCount"] for s in found} == {3}


def test_what_is_too_much_for_a_device_leaves_the_standard_attributes() -> None:
    attributes = {f"a{n}": n for n in range(40)} | dict(H100.attributes)
    (only,) = of(dataclasses.replace(H100, attributes=attributes))
    (device,) = only["spec"]["devices"]
    assert len(device["attributes"]) + len(device["capacity"]) == 32
    assert [name for name in device["attributes"] if "/" in name] == [
        "resource.kubernetes.io/numaNode",
        "resource.kubernetes.io/pciBusID",
        "resource.kubernetes.io/pcieRoot",
    ]


@pytest.mark.parametrize("name", ["a-b", "", "a/b/c", "A_B/x", "/x", "x" * 33, "é", "1a", "a\n"])
def test_an_attribute_whose_name_the_api_has_not_is_left_out(name: str) -> None:
    (only,) = of(gpu(1, attributes={name: True, "fine": True}))
    assert only["spec"]["devices"][0]["attributes"] == {"fine": {"bool": True}}


def test_an_attribute_of_the_drivers_own_domain_is_there_once() -> None:
    (only,) = of(gpu(1, attributes={f"{GPU_DRIVER}/a": 1}))
    assert only["spec"]["devices"][0]["attributes"] == {"a": {"int": 1}}


def test_a_long_text_is_cut_between_characters() -> None:
    assert slices.attribute("name", "ü" * 40) == {"string": "ü" * 32}
    assert slices.attribute("name", "a" + "ü" * 40) == {"string": "a" + "ü" * 31}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("580.95.05", "580.95.5"),
        ("550.54", "550.54.0"),
        ("12", "12.0.0"),
        ("6.1.0-56-amd64", "6.1.0-56-amd64"),
        ("1.2.3+build.7", "1.2.3+build.7"),
        ("6.1.0-01", None),
        ("1.2.3.4", None),
        ("v1.2.3", None),
        ("", None),
        ("1.2.3\n", None),
        ("\u0661.2.3", None),
        ("1.0.0-" + "a" * 70, None),
    ],
)
def test_a_version_is_made_semantic_or_left_out(text: str, version: str | None) -> None:
    assert slices.semantic_version(text) == version
    told = slices.attribute("driverVersion", text)
    assert told == (None if version is None else {"version": version})


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1000, "1000"),
        (1024, "1Ki"),
        (80 << 30, "80Gi"),
        (81559 << 20, "81559Mi"),
        (1536 << 30, "1536Gi"),
        ((80 << 30) + 1, "85899345921"),
    ],
)
def test_a_size_is_in_the_form_that_the_server_keeps(size: int, text: str) -> None:
    assert slices.quantity(size) == text


# Counters


def test_a_bundle_and_its_members_take_the_same_counters() -> None:
    members = [gpu(n, counts={f"0000:{n:02x}:00.0": 1}) for n in (1, 2)]
    devices, counters = of(*members, bundle("board", *members))
    assert counters["spec"]["sharedCounters"] == [
        {
            "name": "counters-0",
            "counters": {"0000-01-00-0": {"value": "1"}, "0000-02-00-0": {"value": "1"}},
        }
    ]
    assert [d["consumesCounters"] for d in devices["spec"]["devices"]] == [
        [{"counterSet": "counters-0", "counters": {"0000-01-00-0": {"value": "1"}}}],
        [{"counterSet": "counters-0", "counters": {"0000-02-00-0": {"value": "1"}}}],
        [
            {
                "counterSet": "counters-0",
                "counters": {"0000-01-00-0": {"value": "1"}, "0000-02-00-0": {"value": "1"}},
            }
        ],
    ]
    assert validation.pool_faults((devices, counters)) == ()


def test_a_physical_function_takes_as_much_as_all_its_virtual_ones() -> None:
    virtual = [gpu(n, counts={"card": 1}) for n in range(4)]
    devices, counters = of(gpu(9, counts={"card": 4}), *virtual)
    assert counters["spec"]["sharedCounters"][0]["counters"] == {"card": {"value": "4"}}
    assert not {"sharedCounters"} & set(devices["spec"])


def test_counters_that_nobody_shares_are_no_reason_for_another_slice() -> None:
    (only,) = of(*(gpu(n, counts={str(n): 1}) for n in range(8)))
    assert all("consumesCounters" not in device for device in only["spec"]["devices"])


def test_a_bundle_of_more_than_two_sets_hold_is_not_published_and_its_members_are() -> None:
    members = [gpu(n, counts={f"c{n:03}": 1}) for n in range(65)]
    found = of(*members, bundle("all", *members))
    names = [d["name"] for s in found for d in s["spec"]["devices"]]
    assert names == [member.name for member in members]


def test_what_is_left_out_leaves_nobody_with_too_many_sets() -> None:
    """Without the one that takes all, a counter less is shared, and the sets begin elsewhere."""
    first = [f"a{number:02}" for number in range(32)]
    second = [f"b{number:02}" for number in range(64)]
    taken = ([*first, *second], first[:1], *[[*first[1:], second[0]]] * 2, *[second] * 2)
    devices = [gpu(n, counts=dict.fromkeys(names, 1)) for n, names in enumerate(taken)]
    found = of(*devices)
    assert [fault for body in found for fault in validation.slice_faults(body)] == []
    names = [device["name"] for device in found[0]["spec"]["devices"]]
    assert names == [device.name for device in devices[1:4]]


def test_a_bundle_of_64_is_published_with_two_sets() -> None:
    members = [gpu(n, counts={f"c{n:03}": 1}) for n in range(64)]
    found = of(*members, bundle("all", *members))
    assert [len(s["spec"].get("sharedCounters", ())) for s in found] == [0, 0, 2]
    assert validation.pool_faults(found) == ()


def test_many_boards_have_their_counters_in_further_slices() -> None:
    boards = [
        [gpu(16 * board + n, counts={f"b{board}-{n}": 1}) for n in range(16)] for board in range(20)
    ]
    devices = [d for i, members in enumerate(boards) for d in (*members, bundle(f"b{i}", *members))]
    found = of(*devices)
    assert [len(s["spec"].get("sharedCounters", ())) for s in found][-2:] == [8, 2]
    assert [fault for s in found for fault in validation.slice_faults(s)] == []
    assert validation.pool_faults(found) == ()


# Whatever the devices are

_NAMES: Final = st.one_of(st.from_regex(DNS_LABEL, fullmatch=True), st.text(max_size=70))
_TAINTS: Final = st.builds(
    Taint,
    key=st.from_regex(r"kata-gpu\.io/[a-z]{1,20}", fullmatch=True),
    value=st.text(max_size=70),
    effect=st.sampled_from(Effect),
)
_ANY_DEVICE: Final = st.builds(
    lambda name, attributes, capacity, counts, taints: dataclasses.replace(
        gpu(1),
        name=name,
        attributes=attributes,
        capacity_bytes=capacity,
        counts=counts,
        taints=tuple(taints),
    ),
    _NAMES,
    st.dictionaries(
        st.one_of(st.text(max_size=40), st.from_regex(r"([a-z.]{0,70}/)?[A-Za-z_]{1,33}Version")),
        st.one_of(st.booleans(), st.integers(), st.text(max_size=80)),
        max_size=40,
    ),
    st.dictionaries(st.text(max_size=40), st.integers(), max_size=40),
    st.dictionaries(st.text(max_size=5), st.integers(-1, 8), max_size=70),
    st.lists(_TAINTS, max_size=20),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_ANY_DEVICE, max_size=8))
def test_the_api_server_has_nothing_against_any_of_it(devices: list[Device]) -> None:
    found = of(*devices)
    assert [fault for body in found for fault in validation.slice_faults(body)] == []
    assert validation.pool_faults(found) == ()
    assert not changes(stored(*found), *devices)


# What is written


def test_nothing_there_is_created_with_the_first_generation() -> None:
    found = changes([], H100)
    assert (shape(found), generations(found)) == ((0, 0, 1), {1})


def test_what_is_there_as_it_should_be_is_not_written() -> None:
    assert not changes(stored(*of(H100, generation=7)), H100)


def test_what_the_server_fills_in_is_no_difference() -> None:
    (have,) = stored(*of(with_taint(H100), generation=3))
    have["metadata"] |= {"labels": {"a": "b"}, "managedFields": [{}], "creationTimestamp": "x"}
    (device,) = have["spec"]["devices"]
    taint = {**device["taints"][0], "timeAdded": "2026-01-01T00:00:00Z"}
    size = {"memory": {"value": "85899345920"}}
    have["spec"] |= {"devices": [{**device, "taints": [taint], "capacity": size}]}
    assert not changes([have], with_taint(H100))


@pytest.mark.parametrize("generation", [0, 5])
def test_an_empty_pool_is_the_same_when_the_server_leaves_out_what_is_empty(
    generation: int,
) -> None:
    (have,) = stored(*of(generation=max(generation, 1)))
    del have["spec"]["devices"]
    assert not changes([have])


def test_one_slice_that_changed_is_one_write_of_the_same_generation() -> None:
    found = changes(stored(*of(H100, generation=7)), with_taint(H100))
    assert (shape(found), generations(found)) == ((0, 1, 0), {7})
    metadata = found.replaces[0]["metadata"]
    assert (metadata["uid"], metadata["resourceVersion"]) == ("uid-0", "100")
    assert "generateName" not in metadata


def test_one_of_three_that_changed_is_one_write_too() -> None:
    devices = [gpu(number) for number in range(150)]
    have = stored(*of(*devices, generation=2))
    found = changes(have, *devices[:100], with_taint(devices[100]), *devices[101:])
    assert (shape(found), generations(found)) == ((0, 1, 0), {2})


def test_two_that_changed_are_all_written_with_the_next_generation() -> None:
    devices = [gpu(number) for number in range(150)]
    have = stored(*of(*devices, generation=2))
    found = changes(have, *devices[1:])
    assert (shape(found), generations(found)) == ((0, 3, 0), {3})


def test_a_slice_more_is_a_new_generation_of_all() -> None:
    devices = [gpu(number) for number in range(65)]
    found = changes(stored(*of(*devices[:64], generation=2)), *devices)
    assert (shape(found), generations(found)) == ((0, 1, 1), {3})


def test_a_slice_less_is_a_new_generation_and_the_rest_goes_first() -> None:
    devices = [gpu(number) for number in range(65)]
    found = changes(stored(*of(*devices, generation=2)), *devices[:64])
    assert (shape(found), generations(found)) == ((1, 1, 0), {3})


def test_a_slice_that_is_missing_among_others_is_a_new_generation() -> None:
    devices = [gpu(number) for number in range(65)]
    found = changes(stored(*of(*devices, generation=2))[:1], *devices)
    assert (shape(found), generations(found)) == ((0, 1, 1), {3})


def test_leftovers_of_an_older_generation_only_go() -> None:
    old, new = stored(*of(H100, generation=2), *of(H100, generation=3))
    assert shape(changes([old, new], H100)) == (1, 0, 0)


def test_a_slice_with_a_name_that_is_none_of_ours_makes_way() -> None:
    (strange,) = stored(*of(H100))
    strange["metadata"]["name"] = "handmade"
    found = changes([strange], H100)
    assert (shape(found), generations(found)) == ((1, 0, 1), {2})


def test_what_is_of_another_driver_node_or_pool_is_left_alone() -> None:
    """By their names and generations they could be the next ones of ours."""
    strange = stored(*of(generation=9)) * 3
    spec = strange[0]["spec"]
    strange[0] = {**strange[0], "spec": {**spec, "driver": FABRIC_DRIVER}}
    strange[1] = {**strange[1], "spec": {**spec, "nodeName": "node-2"}}
    strange[2] = {**strange[2], "spec": {**spec, "pool": {**spec["pool"], "name": "other"}}}
    found = changes(strange, H100)
    assert (shape(found), generations(found)) == ((0, 0, 1), {1})
    assert not changes([*strange, *stored(*of(H100))], H100)


@pytest.mark.parametrize("generation", [2**63 - 2, 2**63 - 1])
def test_a_generation_after_which_none_can_come_makes_way(generation: int) -> None:
    (last,) = stored(*of(H100, generation=generation))
    found = changes([last], H100)
    assert (shape(found), generations(found)) == ((1, 0, 1), {1})
    (old,) = stored(*of(H100, generation=7))
    assert shape(changes([last, old], H100)) == (1, 0, 0)


def test_what_others_put_on_a_slice_stays_there() -> None:
    (have,) = stored(*of(H100))
    have["metadata"] |= {"labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e/f"]}
    (written,) = changes([have], with_taint(H100)).replaces
    theirs = {key: written["metadata"][key] for key in ("labels", "annotations", "finalizers")}
    assert theirs == {"labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e/f"]}


def test_two_slices_of_one_index_are_one_too_many() -> None:
    first, second = stored(*of(H100), *of(H100))
    found = changes([second, first], H100)
    assert shape(found) == (1, 1, 0)
    assert found.deletes[0]["metadata"]["uid"] == "uid-1"


def test_a_node_that_was_made_anew_owns_its_slices_again() -> None:
    have = stored(*of(H100))
    found = slices.plan(GPU_DRIVER, NodeIdentity(name="node-1", uid="new"), [H100], have)
    assert found.replaces[0]["metadata"]["ownerReferences"][0]["uid"] == "new"


def test_a_taint_that_stays_keeps_the_time_it_has() -> None:
    (have,) = stored(*of(with_taint(H100)))
    (device,) = have["spec"]["devices"]
    (taint,) = device["taints"]
    have["spec"]["devices"] = [{**device, "taints": [{**taint, "timeAdded": "2026-01-01"}]}]
    found = changes([have], with_taint(with_taint(H100), key="kata-gpu.io/other"))
    times = {
        t["key"]: t.get("timeAdded") for t in found.replaces[0]["spec"]["devices"][0]["taints"]
    }
    assert times == {"kata-gpu.io/state": "2026-01-01", "kata-gpu.io/other": None}


@pytest.mark.parametrize("seed", range(50))
def test_from_any_state_the_changes_lead_to_the_desired_one(seed: int) -> None:
    """Also when writing ends in the middle, and begins again."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    devices = [gpu(n) for n in range(dice.choice([0, 1, 64, 65, 150]))]
    other = [gpu(n) for n in range(dice.choice([0, 1, 64, 65, 150]))]
    have = stored(*of(*other, generation=dice.randint(1, 3)), *of(*other, generation=2))
    have = dice.sample(have, dice.randint(0, len(have)))
    for _ in range(20):
        steps = _applied(have, changes(have, *devices))
        if not steps:
            break
        have = steps[dice.randrange(len(steps))]
    assert not changes(have, *devices)
    assert validation.pool_faults(have) == ()
    assert [d["name"] for s in sorted(have, key=_name) for d in s["spec"]["devices"]] == [
        device.name for device in devices
    ]


_WORDS: Final = st.sampled_from(
    ("name", "taints", "key", "value", "effect", "timeAdded", "devices", "pool", "generation")
)
_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(_JSON, _JSON, _JSON, st.booleans())
def test_whatever_is_taken_for_a_slice_can_be_planned_for(
    devices: object, owners: object, pool: object, has_pool: bool
) -> None:
    (have,) = stored(*of(H100))
    have["metadata"] |= {"ownerReferences": owners}
    have["spec"] = {**have["spec"], "devices": devices, **({"pool": pool} if has_pool else {})}
    try:
        shapes.resource_slice(have, "list")
    except ApiError:
        return
    for written in changes([have], with_taint(H100)).replaces:
        assert list(slices.differences(have, written))


_NUMBERS: Final = itertools.count()


def _name(found: Mapping[str, Any]) -> str:
    return str(found["metadata"]["name"])


def _applied(have: Sequence[dict[str, Any]], found: SliceChanges) -> list[list[dict[str, Any]]]:
    """Return what the server has after each write."""
    steps, now = [], {h["metadata"]["uid"]: h for h in have}
    for gone in found.deletes:
        del now[gone["metadata"]["uid"]]
        steps.append(list(now.values()))
    for body in (*found.replaces, *found.creates):
        (made,) = stored({**body, "metadata": {"generateName": "", **body["metadata"]}})
        uid = body["metadata"].get("uid") or f"new-{next(_NUMBERS)}"
        name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{len(now):05}"
        made["metadata"] |= {"uid": uid, "name": name}
        now[uid] = made
        steps.append(list(now.values()))
    return steps
