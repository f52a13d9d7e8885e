"""The CDI spec: the rules of both Kata runtimes, and what is left when devices go.

Rules: Container Device Interface SPEC.md; Kata's device_cold_plug.go and its CDI library for
the Go runtime, pod-resources-rs for runtime-rs.
"""

import json
import re
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.discover.cdi import parse
from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.cdi import CdiFile, CdiSpecs, NodeKind, Scope
from kata_gpu.model.iommu import Verdict
from kata_gpu.model.unit import Unit
from kata_gpu.plan import cdi
from kata_gpu.plan.cdi import choice
from kata_gpu.plan.cdi.choice import Access
from tests.values import PLATFORM, address, function

KIND = "nvidia.com/pgpu"
NODES: Final[dict[str, tuple[str, ...]]] = {
    "0000:01:00.0": ("/dev/vfio/7",),
    "0000:41:00.0": ("/dev/vfio/devices/vfio0",),
}

names = st.integers(0, 0xFFFFFFFF).map(
    lambda n: f"{n >> 16:04x}:{n >> 8 & 0xFF:02x}:{n >> 3 & 0x1F:02x}.{n & 7}"
)
node_paths = st.integers(0, 4096).map(lambda n: f"/dev/vfio/{n}") | st.integers(0, 4096).map(
    lambda n: f"/dev/vfio/devices/vfio{n}"
)
offers = st.dictionaries(
    names, st.lists(node_paths, min_size=1, max_size=4).map(tuple), min_size=1, max_size=8
)


def spec(devices: dict[str, tuple[str, ...]]) -> Any:
    text = cdi.render(KIND, devices)
    assert text is not None
    return json.loads(text)


def names_in(text: str | None) -> set[str]:
    return set() if text is None else {device["name"] for device in json.loads(text)["devices"]}


def unit_of(*addresses: str, groups: tuple[int, ...] = (7,)) -> Unit:
    members = tuple(map(address, addresses))
    verdict = Verdict(groups=groups, passengers=members, blockers=())
    return Unit(primary=members[0], groups=groups, functions=members, pool="gpus", verdict=verdict)


# The rules


def test_the_version_is_one_that_both_runtimes_read() -> None:
    assert spec(NODES)["cdiVersion"] == "0.5.0"


def test_the_kind_is_the_kubernetes_resource() -> None:
    assert spec(NODES)["kind"] == KIND


def test_the_names_are_the_device_ids() -> None:
    assert [device["name"] for device in spec(NODES)["devices"]] == sorted(NODES)


@given(offers)
@settings(max_examples=30, deadline=None)
def test_edits_are_device_nodes_of_devices_and_nothing_else(
    devices: dict[str, tuple[str, ...]],
) -> None:
    written = spec(devices)
    assert set(written) == {"cdiVersion", "kind", "devices"}
    for device in written["devices"]:
        assert set(device) == {"name", "containerEdits"}
        assert set(device["containerEdits"]) == {"deviceNodes"}


@given(offers)
@settings(max_examples=30, deadline=None)
def test_a_node_has_the_same_path_in_the_container_as_on_the_host(
    devices: dict[str, tuple[str, ...]],
) -> None:
    for device in spec(devices)["devices"]:
        nodes = device["containerEdits"]["deviceNodes"]
        assert [node["path"] for node in nodes] == list(devices[device["name"]])
        assert all(set(node) == {"path", "hostPath"} for node in nodes)
        assert all(node["path"] == node["hostPath"] for node in nodes)


@given(offers)
@settings(max_examples=30, deadline=None)
def test_a_name_is_one_that_cdi_allows(devices: dict[str, tuple[str, ...]]) -> None:
    allowed = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]")
    assert all(allowed.fullmatch(device["name"]) for device in spec(devices)["devices"])


def test_a_spec_without_devices_is_no_file() -> None:
    assert cdi.render(KIND, {}) is None


@given(offers)
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_units_does_not_change_the_file(
    devices: dict[str, tuple[str, ...]],
) -> None:
    assert cdi.render(KIND, devices) == cdi.render(KIND, dict(reversed(devices.items())))


# Which nodes


def test_without_iommufd_a_unit_is_its_group() -> None:
    functions = function("01:00.0", vfio_cdev="vfio0"), function("01:00.1", vfio_cdev="vfio1")
    assert choice.nodes(unit_of("01:00.0", "01:00.1"), functions, Access.GROUP) == ("/dev/vfio/7",)


def test_with_iommufd_a_unit_is_a_node_for_each_function() -> None:
    functions = function("01:00.0", vfio_cdev="vfio3"), function("01:00.1", vfio_cdev="vfio1")
    nodes = choice.nodes(unit_of("01:00.0", "01:00.1"), functions, Access.CDEV)
    assert nodes == ("/dev/vfio/devices/vfio3", "/dev/vfio/devices/vfio1")


def test_a_unit_with_a_function_that_has_no_device_is_not_given_by_devices() -> None:
    functions = function("01:00.0", vfio_cdev="vfio3"), function("01:00.1", vfio_cdev=None)
    assert choice.nodes(unit_of("01:00.0", "01:00.1"), functions, Access.CDEV) == ()


@pytest.mark.parametrize("access", Access)
def test_the_control_node_is_never_listed(access: Access) -> None:
    nodes = choice.nodes(unit_of("01:00.0"), (function("01:00.0", vfio_cdev="vfio0"),), access)
    assert len(nodes) == 1
    assert "/dev/vfio/vfio" not in nodes


@pytest.mark.parametrize(
    ("iommufd", "any_cdev", "all_cdevs", "is_confidential", "expected"),
    [
        (False, False, False, False, Access.GROUP),
        (False, True, True, True, Access.GROUP),
        (True, False, False, False, Access.GROUP),
        (True, False, False, True, Access.GROUP),
        (True, True, False, False, Access.GROUP),
        (True, True, False, True, Access.CDEV),
        (True, True, True, False, Access.CDEV),
        (True, True, True, True, Access.CDEV),
    ],
)
def test_a_node_gives_all_its_units_in_one_way(
    iommufd: bool, any_cdev: bool, all_cdevs: bool, is_confidential: bool, expected: Access
) -> None:
    assert expected is choice.choose(
        iommufd=iommufd,
        any_cdev=any_cdev,
        all_cdevs=all_cdevs,
        is_confidential=is_confidential,
    )


def handler(name: str, runtime: Runtime = Runtime.GO) -> KataHandler:
    return KataHandler(name=name, runtime=runtime, config="/opt/kata/x.toml")


@pytest.mark.parametrize(
    ("one", "access", "iommufd", "told"),
    [
        (handler("kata-qemu-nvidia-gpu"), Access.GROUP, False, None),
        (handler("kata-qemu-nvidia-gpu-snp"), Access.GROUP, True, "its VMs are confidential"),
        (handler("kata-qemu-nvidia-gpu-tdx"), Access.GROUP, False, None),
        (
            handler("kata-qemu-nvidia-gpu-snp-runtime-rs", Runtime.RUST),
            Access.GROUP,
            True,
            "its VMs are confidential",
        ),
        (handler("kata-qemu-nvidia-gpu-snp"), Access.CDEV, True, None),
        (handler("kata-rs", Runtime.RUST), Access.GROUP, False, "runtime-rs opens /dev/iommu"),
        (handler("kata-rs", Runtime.RUST), Access.GROUP, True, None),
    ],
    ids=lambda value: value.name if isinstance(value, KataHandler) else "",
)
def test_a_handler_that_can_have_nothing_is_named(
    one: KataHandler, access: Access, iommufd: bool, told: str | None
) -> None:
    found = list(choice.findings(access, replace(PLATFORM, iommufd=iommufd), [one]))
    assert [finding.subject for finding in found] == [f"handler {one.name}"] * (told is not None)
    assert all(told is not None and finding.reason.startswith(told) for finding in found)


# Held to the rules for everybody


def found(path: str, text: str, readers: tuple[Runtime, ...] = tuple(Runtime)) -> CdiFile:
    directory = path.rpartition("/")[0]
    content = parse(path, text.encode())
    return CdiFile(path=path, directory=directory, content=content, readers=readers)


@given(offers)
@settings(max_examples=50, deadline=None)
def test_what_we_write_has_no_fault_for_any_runtime(devices: dict[str, tuple[str, ...]]) -> None:
    text = cdi.render(KIND, devices)
    assert text is not None
    nodes = {path: NodeKind.DEVICE for paths in devices.values() for path in paths}
    ours = found(cdi.path("/var/run/cdi", KIND), text)
    specs = CdiSpecs(files=(ours,), nodes=nodes, ours="/var/run/cdi")
    assert cdi.judge(specs) == ()
    assert {d.name: d.nodes for d in cdi.devices(specs)} == {
        f"{KIND}={name}": paths for name, paths in devices.items()
    }
    assert all(d.is_ours and d.go and d.rust and not d.missing for d in cdi.devices(specs))


places = st.sets(
    st.sampled_from([f"{d}/{n}.json" for d in ("/etc/cdi", "/var/run/cdi") for n in "abc"]),
    min_size=1,
)


@given(places)
@settings(max_examples=60, deadline=None)
def test_each_runtime_takes_one_file_unless_two_are_in_one_directory(paths: set[str]) -> None:
    text = cdi.render(KIND, {"x": ("/dev/vfio/1",)})
    assert text is not None
    specs = CdiSpecs(files=tuple(found(path, text) for path in sorted(paths)))
    stopped = {fault.file for fault in cdi.judge(specs) if Scope.EVERY_POD in fault.scopes}
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    assert stopped == {path for near in by_folder.values() if len(near) > 1 for path in near}
    for runtime, last in ((Runtime.GO, "/var/run/cdi"), (Runtime.RUST, "/etc/cdi")):
        won = [d.file for d in cdi.devices(specs) if (d.go if runtime is Runtime.GO else d.rust)]
        candidates = by_folder.get(last) or next(iter(by_folder.values()))
        assert won == (candidates if len(candidates) == 1 else [])


# Where


def test_every_kind_has_a_file_of_its_own() -> None:
    path = cdi.path("/var/run/cdi", KIND)
    assert path == "/var/run/cdi/kata-gpu-nvidia.com_pgpu.json"
    assert cdi.path("/cdi", "a.b/c-d") != cdi.path("/cdi", "a.b-c/d")
    assert cdi.is_ours("/var/run/cdi", path)


@pytest.mark.parametrize(
    "path",
    [
        "/var/run/cdi/nvidia.com-pgpu.yaml",
        "/var/run/cdi/kata-gpu-nvidia.com_pgpu.json.bak",
        "/etc/cdi/kata-gpu-nvidia.com_pgpu.json",
    ],
)
def test_other_peoples_files_are_not_ours(path: str) -> None:
    assert not cdi.is_ours("/var/run/cdi", path)


# What is left


@given(offers, st.data())
@settings(max_examples=50, deadline=None)
def test_what_leaves_is_gone_and_what_stays_is_as_it_was(
    devices: dict[str, tuple[str, ...]], data: st.DataObject
) -> None:
    leaving = data.draw(st.sets(st.sampled_from(sorted(devices))))
    staying = {name: nodes for name, nodes in devices.items() if name not in leaving}
    text = cdi.render(KIND, devices)
    assert text is not None
    assert cdi.without(text, leaving) == cdi.render(KIND, staying)


def test_a_bundle_leaves_with_the_first_of_its_units() -> None:
    every = tuple(node for nodes in NODES.values() for node in nodes)
    text = cdi.render(KIND, {**NODES, "hgx": every, "other": ("/dev/vfio/9",)})
    assert text is not None
    assert names_in(cdi.without(text, {"0000:01:00.0"})) == {"0000:41:00.0", "other"}


@given(offers)
@settings(max_examples=30, deadline=None)
def test_without_its_last_device_there_is_no_file(devices: dict[str, tuple[str, ...]]) -> None:
    text = cdi.render(KIND, devices)
    assert text is not None
    assert cdi.without(text, devices) is None


@given(offers, names)
@settings(max_examples=30, deadline=None)
def test_a_name_that_is_not_there_changes_nothing(
    devices: dict[str, tuple[str, ...]], stranger: str
) -> None:
    text = cdi.render(KIND, {k: v for k, v in devices.items() if k != stranger} or NODES)
    assert text is not None
    assert names_in(cdi.without(text, {stranger})) == names_in(text) - {stranger}


@given(
    st.text(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["devices", "name", "kind"]), inner, max_size=3)
        ),
        max_leaves=10,
    ).map(json.dumps)
)
@settings(max_examples=100, deadline=None)
def test_any_text_is_either_a_spec_or_none_of_ours(text: str) -> None:
    left = cdi.without(text, {"0000:01:00.0"})
    assert left is None or "0000:01:00.0" not in names_in(left)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"devices": 1}', '{"devices": ["a"]}'])
def test_what_is_no_spec_keeps_nothing(text: str) -> None:
    assert cdi.without(text, ()) is None
