"""The API server of tests refuses what Kubernetes refuses."""

import copy
import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from kata_gpu.model.kubernetes import GPU_DRIVER
from kata_gpu.model.slices import NodeIdentity
from kata_gpu.plan.kubernetes import slices
from kata_gpu.publish.kubernetes import events
from tests.api_server import validation
from tests.kubernetes_devices import bundle, gpu, with_taint
from tests.test_events import AT, STUCK

NODE: Final = NodeIdentity(name="node-1", uid="u")
_MEMBERS: Final = [gpu(n, attributes={"a": 1}, counts={f"c{n}": 1}) for n in (1, 2)]
SOUND: Final = slices.slices(
    GPU_DRIVER, NODE, [with_taint(_MEMBERS[0]), _MEMBERS[1], bundle("board", *_MEMBERS)], 1
)

Change = Callable[[dict[str, Any]], object]


def faults(change: Change, which: int = 0) -> str:
    body = json.loads(json.dumps(SOUND[which]))
    change(body)
    return "; ".join(validation.slice_faults(body))


def in_spec(path: str, value: object) -> Change:
    """Return a change of one thing in a spec, by a path of keys and numbers."""

    def change(body: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        at: Any = body["spec"]
        for part in parents:
            at = at[int(part)] if part.isdigit() else at[part]
        if isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value

    return change


def test_a_sound_slice_has_no_faults() -> None:
    assert faults(lambda _: None) == ""
    assert faults(lambda _: None, 1) == ""
    assert validation.pool_faults(SOUND) == ()


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("driver", "d" * 64, "spec.driver"),
        ("driver", "GPU", "spec.driver"),
        ("pool.name", "a//b", "spec.pool.name"),
        ("pool.generation", -1, "spec.pool.generation"),
        ("pool.resourceSliceCount", 0, "spec.pool.resourceSliceCount"),
        ("nodeName", "", "exactly one of nodeName"),
        ("allNodes", True, "exactly one of nodeName"),
        ("sharedCounters", [{"name": "a", "counters": {"b": {"value": "1"}}}], "only one of"),
        ("devices", [{"name": f"d{n}"} for n in range(129)], "spec.devices: Too many"),
        ("devices", [{"name": "a"}, {"name": "a"}], "Duplicate value: 'a'"),
        ("devices.0.name", "0000:01:00.0", "devices[0].name"),
        ("devices.0.attributes", {f"a{n}": {"int": 1} for n in range(33)}, "Too many: 33"),
        ("devices.0.attributes", {"a-b": {"int": 1}}, "C identifier"),
        ("devices.0.attributes", {"a/b/c": {"int": 1}}, "domain"),
        ("devices.0.attributes.a", {}, "exactly one value"),
        ("devices.0.attributes.a", {"int": 1, "bool": True}, "exactly one value"),
        ("devices.0.attributes.a", {"int": True}, "Invalid type"),
        ("devices.0.attributes.a", {"int": 2**63}, "int: Invalid value"),
        ("devices.0.attributes.a", {"string": "x" * 65}, "Too long"),
        ("devices.0.attributes.a", {"version": "580.95.05"}, "semver"),
        (
            "devices.0.attributes",
            {"resource.kubernetes.io/numaNode": {"string": "0"}},
            "not as the standard",
        ),
        ("devices.0.capacity", {"m": {"value": "80 GiB"}}, "must be a quantity"),
        ("devices.0.capacity", {"m": {"value": 80}}, "must be a quantity"),
        ("devices.0.taints.0.key", "a b", "taints.key"),
        ("devices.0.taints.0.value", "x" * 64, "taints.value"),
        ("devices.0.taints.0.effect", "Evict", "taints.effect"),
        (
            "devices.0.taints",
            [{"key": f"k{n}", "effect": "None"} for n in range(17)],
            "taints: Too many",
        ),
        (
            "devices.0.consumesCounters",
            [{"counterSet": f"s{n}", "counters": {"a": {"value": "1"}}} for n in range(3)],
            "consumesCounters: Too many",
        ),
        (
            "devices.0.consumesCounters.0.counters",
            {f"c{n}": {"value": "1"} for n in range(33)},
            "counters: Too many",
        ),
    ],
)
def test_each_rule_of_a_slice_is_enforced(path: str, value: object, fault: str) -> None:
    assert fault in faults(in_spec(path, value))


def test_counters_have_limits_too() -> None:
    many = [{"name": f"s{n}", "counters": {"c": {"value": "1"}}} for n in range(9)]
    assert "spec.sharedCounters: Too many: 9" in faults(in_spec("sharedCounters", many), 1)
    none = [{"name": "s", "counters": {}}]
    assert "counters: Required value" in faults(in_spec("sharedCounters", none), 1)


def test_65_devices_are_too_many_as_soon_as_one_has_a_taint() -> None:
    devices: list[dict[str, Any]] = [{"name": f"d{n}"} for n in range(65)]
    assert faults(in_spec("devices", devices)) == ""
    devices[64]["taints"] = [{"key": "a", "effect": "None"}]
    assert "spec.devices: Too many: 65" in faults(in_spec("devices", devices))


def test_a_pool_that_an_allocator_passes_over_is_found_out() -> None:
    assert validation.pool_faults(SOUND[:1]) == (
        "the number of slices is not resourceSliceCount",
        *(f"0000-0{n}-00-0: counter c{n} is not defined" for n in (1, 2)),
        *validation.pool_faults(SOUND[:1])[3:],
    )
    newer = copy.deepcopy(SOUND[1])
    newer["spec"]["pool"]["generation"] = 2
    assert validation.pool_faults((SOUND[0], newer)) == ("there is more than one generation",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eventTime", None),
        ("eventTime", "2026-03-04T05:06:07Z"),
        ("type", "Error"),
        ("reportingController", "a b"),
        ("reportingController", ""),
        ("reportingInstance", ""),
        ("action", ""),
        ("reason", "x" * 129),
        ("note", "ü" * 513),
        ("regarding", {"kind": "Pod", "namespace": "other"}),
        ("deprecatedCount", 1),
        ("series", {"count": 1, "lastObservedTime": "2026-03-04T05:06:07.000000Z"}),
        ("series", {"count": 2}),
    ],
)
def test_each_rule_of_an_event_is_enforced(key: str, value: object) -> None:
    sound = dict(events.event(STUCK, NODE, AT))
    assert validation.event_faults(sound) == ()
    assert validation.event_faults({**sound, key: value}) != ()


def test_of_an_event_only_the_series_may_change() -> None:
    sound = dict(events.event(STUCK, NODE, AT))
    series = {"count": 2, "lastObservedTime": "2026-03-04T05:06:07.000000Z"}
    assert validation.event_update_faults(sound, {**sound, "series": series}) == ()
    assert validation.event_update_faults(sound, {**sound, "note": "x"}) == (
        "note: field is immutable",
    )
