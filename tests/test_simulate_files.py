"""What files say to a simulation, and what is refused in them."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.plan.simulate.values import Key, PodClaim, Scenario, Version, Where
from kata_gpu.settings import manifests
from kata_gpu.settings.manifests import documents as reading
from kata_gpu.settings.manifests.documents import NODES_MAX, parse, read
from tests.simulations.objects import (
    DRA,
    GPU,
    Tree,
    claim,
    class_,
    deployment,
    device,
    documents,
    exactly,
    first_of,
    gang,
    job,
    kai,
    pod,
    queue,
    slice_,
    spec,
    template,
    tree,
)

NESTED: Final = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


def scenario(*trees: Tree) -> Scenario:
    return manifests.scenario(documents(*trees))


def nearby(operator: str) -> Tree:
    """Return a node affinity for a rack."""
    terms = [{"matchExpressions": [{"key": "rack", "operator": operator, "values": ["1"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}


def complaint(*trees: Tree) -> str:
    with pytest.raises(InvalidBlueprint) as raised:
        scenario(*trees)
    return str(raised.value)


# Documents


def test_a_file_may_have_several_documents_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    listed = {"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "b"}}]}
    path.write_text(f"kind: Pod\napiVersion: v1\n---\n---\n{json.dumps(listed)}\n...\n")
    found = read(path)
    assert [document.origin for document in found] == [
        f"{path}: document 1",
        f"{path}: document 3: items[0]",
    ]
    assert found[1].tree == {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "b"}}


def test_what_only_yaml_1_1_takes_for_something_else_is_text() -> None:
    (found,) = parse("a: 0:41\nb: yes\nc: 2026-01-01\nd: true\ne: 010\nf: ~", origin="F")
    assert found.tree == {"a": "0:41", "b": "yes", "c": "2026-01-01", "d": True, "e": 8, "f": None}


def test_anchors_that_stay_small_are_taken() -> None:
    (found,) = parse("a: &a {b: 1}\nc: *a", origin="F")
    assert found.tree == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NESTED, f"a document has more than {NODES_MAX} values, with its aliases"),
        ("a: &a\n  b: *a", "nested more than 64 deep"),
        ("[" * 100_000, "nesting"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("a: 1\na: 2", "a is there twice"),
        ('{"a": 1, "a": 2}', "a key is there twice"),
        ("a: !!python/object/apply:os.getcwd []", "tag"),
        ("a: &x {b: 1}\nc: {<<: *x}", "a key that is no plain text"),
        ("? [a]\n: b", "a key that is no plain text"),
        ("- a", "expected an object"),
        ("text", "expected an object"),
        ('{"kind": "List", "items": [1]}', "items[0]: expected an object"),
        ("a: [", "no YAML"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("a: '" + "x" * (1 << 20) + "'", "too long for YAML"),
        ("# " + "x" * (9 << 20), "too many for YAML"),
        ("a: \x00", "no YAML"),
        ('"\\e[2J": !!python/none', "?[2J has the tag"),
        (r'{"\u001b[2J": 1, "\u001b[2J": 2}', "a key is there twice among ?[2J"),
        (f'{{"a": {"9" * 5000}}}', "a number of more digits than any that counts"),
        (f"a: {'9' * 5000}", "a number of more digits than any that counts"),
    ],
)
def test_what_is_hostile_or_broken_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidBlueprint) as raised:
        parse(text, origin="F")
    assert str(raised.value).startswith("cannot use F")
    assert str(raised.value).isprintable()
    assert said in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidBlueprint, match="it does not exist"):
        read(tmp_path / "none.yaml")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    with path.open("wb") as file:
        file.truncate(reading.FILE_MAX_BYTES + 1)
    with pytest.raises(InvalidBlueprint, match="cannot read"):
        read(path)


# Objects


def test_a_slice_is_taken_with_all_that_counts() -> None:
    found = {
        **device("gpu-0", vendor="nvidia", numa=1, taints=("example.com/sick=xid:NoSchedule",)),
        "capacity": {"memory": {"value": "80Gi"}},
    }
    found["attributes"]["firmware"] = {"version": "1.2.3"}
    (made,) = scenario(slice_("n1", [found])).slices
    (taken,) = made.devices
    assert made.where == Where(node="n1")
    assert taken.attributes[f"{GPU}/vendor"] == "nvidia"
    assert taken.attributes[f"{GPU}/firmware"] == Version("1.2.3")
    assert taken.attributes["resource.kubernetes.io/numaNode"] == 1
    assert taken.capacity == {f"{GPU}/memory": Fraction(80 << 30)}
    assert taken.taints[0].value == "xid"


def test_a_slice_may_be_for_nodes_that_a_selector_chooses() -> None:
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    found = slice_("n1", [], nodeName=None, nodeSelector={"nodeSelectorTerms": [term]})
    (made,) = scenario(found).slices
    assert made.where == Where(terms=((Key(key="zone", operator="In", values=("a",)),),))


def test_a_node_that_only_a_slice_speaks_of_is_there() -> None:
    (node,) = scenario(slice_("n7", [])).nodes
    assert node.name == "n7"
    assert (node.labels, node.resources) == (None, None)


def test_a_pod_needs_what_its_containers_need_at_once() -> None:
    def container(cpu: str, **more: Any) -> Tree:
        return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}

    body = {
        "containers": [container("1"), container("500m")],
        "initContainers": [container("1", restartPolicy="Always"), container("4")],
    }
    (made,) = scenario(tree("v1", "Pod", "a", spec=body)).pods
    assert made.resources == {"cpu": 5}


def test_a_workload_makes_as_many_pods_as_it_says() -> None:
    body = spec("one")
    job = tree(
        "batch/v1",
        "Job",
        "j",
        spec={"parallelism": 4, "completions": 3, "template": {"spec": body}},
    )
    found = scenario(template("one", exactly()), deployment("d", 2, body), job)
    assert [made.name for made in found.pods] == [
        *("default/d-0", "default/d-1"),
        *("default/j-0", "default/j-1", "default/j-2"),
    ]
    assert found.pods[0].claims == (PodClaim(name="one", template="default/one"),)


def test_a_pod_that_has_ended_takes_nothing() -> None:
    assert scenario({**pod("a"), "status": {"phase": "Succeeded"}}).pods == ()


def test_a_claim_that_has_its_devices_may_have_asked_in_any_way() -> None:
    held = claim("a", {"name": "gpu", "inSomeNewWay": {}}, has=(("n1", "gpu-0"),))
    (made,) = scenario(held).claims
    assert made.picks is not None
    assert [pick.device.name for pick in made.picks] == ["gpu-0"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"name": "gpu"}, "requests[0]: expected exactly one of exactly and firstAvailable"),
        (exactly(count=0), "requests[0].exactly.count is 0: "),
        (exactly(count="2"), "requests[0].exactly.count is '2': expected a whole number"),
        (exactly(count=True), "requests[0].exactly.count is True"),
        (exactly(allocationMode="Some"), "requests[0].exactly.allocationMode is 'Some'"),
        (exactly(allocationMode="All", count=2), "count is for allocationMode ExactCount"),
        (exactly(tolerations=[{}] * 17), "exactly.tolerations"),
        (exactly(newField=1), "exactly.newField is not known here, and may be a condition"),
        (first_of("gpu", *(exactly(f"s{n}") for n in range(9))), "firstAvailable"),
        (first_of("gpu", exactly("a"), exactly("a")), "two requests are called gpu/a"),
        ({"name": "gpu", "exactly": {}}, "exactly.deviceClassName is missing"),
        ({"name": "a\x1b[2J", "exactly": {}}, "expected printable characters"),
        (exactly("gpu", "kata-gpu", capacity={"requests": {"m": "much"}}), "is no quantity"),
    ],
)
def test_a_request_that_is_wrong_is_told_by_its_place(request_: Tree, said: str) -> None:
    text = complaint(template("one", request_))
    assert text.startswith("cannot use document 1: spec.spec.devices")
    assert said in text


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ({}, "expected exactly one of matchAttribute and distinctAttribute"),
        ({"matchAttribute": "numaNode"}, "constraints[0].matchAttribute is 'numaNode'"),
        ({"matchAttribute": "a/b", "requests": ["x"]}, "about a request x, and there is none"),
    ],
)
def test_a_constraint_that_is_wrong_is_told(constraint: Tree, said: str) -> None:
    assert said in complaint(template("one", exactly(), constraints=(constraint,)))


def test_a_claim_has_at_most_32_requests() -> None:
    assert "requests" in complaint(template("t", *(exactly(f"r{n}") for n in range(33))))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pod("a", resources={"cpu": "much"}), "containers[0].resources.limits.cpu is 'much'"),
        (pod("a", resources={"cpu": -1}), "expected no negative amount"),
        (pod("a", containers=[]), "spec.containers"),
        (deployment("d", -1, spec()), "spec.replicas is -1"),
        (deployment("d", 5001, spec()), "spec.replicas is 5001"),
        (slice_("n1", [{"name": "GPU"}]), "spec.devices[0].name is 'GPU'"),
        (
            slice_("n1", [{"name": "a", "attributes": {"x": {}}}]),
            "attributes.x: expected exactly one",
        ),
        (
            slice_("n1", [{"name": "a", "attributes": {"x": {"int": 1 << 63}}}]),
            "attributes.x.int",
        ),
        (
            slice_("n1", [{"name": "a", "attributes": {"x": {"version": "580.95.05"}}}]),
            "is no semantic version",
        ),
        (slice_("n1", [{"name": f"a{n}"} for n in range(129)]), "spec.devices"),
        (gang("g", -1), "spec.minMember is -1"),
        (queue("q", gpu={"quota": float("inf")}), "spec.resources.gpu.quota is inf"),
        (pod("a", tolerations=[{"operator": "exists"}]), "tolerations[0].operator is 'exists'"),
        (pod("a", affinity=nearby("in")), "matchExpressions[0].operator is 'in'"),
        (
            slice_("n1", [], nodeName=None, nodeSelector={"nodeSelectorTerms": [{}, {}]}),
            "nodeSelector: expected exactly one of nodeSelectorTerms",
        ),
        (tree("resource.k8s.io/v1beta1", "ResourceSlice", "s"), "expected resource.k8s.io/v1 or"),
        ({"kind": "Pod"}, "apiVersion or kind is missing"),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {}}, "spec is missing"),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": [], "spec": 1}, "expected an object"),
    ],
)
def test_an_object_that_is_wrong_is_told_by_its_place(found: Tree, said: str) -> None:
    text = complaint(found)
    assert text.startswith("cannot use document 1: ")
    assert said in text


@pytest.mark.parametrize("count", ["0", "-1", "two", "2.0", "٣", "1" * 40])
def test_a_gang_of_a_job_has_a_number_of_members(count: str) -> None:
    found = job("train", 2, spec(schedulerName="kai-scheduler"), minimum=1)
    found["metadata"]["annotations"]["kai.scheduler/batch-min-member"] = count
    with pytest.raises(InvalidBlueprint, match=r"batch-min-member: expected a number of at least"):
        scenario(found)


def test_a_job_is_no_gang_of_its_own_elsewhere_or_in_another() -> None:
    elsewhere = job("train", 2, spec(), minimum=2)
    grouped = job("tune", 2, spec(schedulerName="kai-scheduler"), minimum=2)
    grouped["spec"]["template"]["metadata"] = kai("team-a", "together")
    made = scenario(elsewhere, grouped)
    assert made.groups == ()
    assert {pod.group for pod in made.pods} == {None, "default/together"}


def test_a_container_that_uses_a_claim_the_pod_has_not_is_told() -> None:
    used = {"name": "c", "resources": {"claims": [{"name": "gpu"}]}}
    assert "a container uses a claim gpu" in complaint(pod("a", containers=[used]))


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        (pod("a"), "two pods default/a"),
        (class_(), "two DeviceClasses kata-gpu"),
        (template("t", exactly()), "two ResourceClaimTemplates default/t"),
        (slice_("n1", []), "two ResourceSlices"),
    ],
)
def test_two_objects_of_one_name_are_refused(twice: Tree, said: str) -> None:
    assert said in complaint(twice, twice)


def test_a_kind_that_is_not_simulated_is_told_once() -> None:
    found = scenario(tree("v1", "Service", "a"), pod("a"), tree("v1", "Service", "b"))
    assert found.notes == (
        "document 1 and 1 more: Service of v1 is not simulated, and was passed over",
    )


def test_objects_that_are_yet_to_get_a_name_get_one_each() -> None:
    made = [pod("", metadata={"name": None, "generateName": "run-"}) for _ in range(2)]
    assert [found.name for found in scenario(*made).pods] == ["default/run-0", "default/run-1"]


def test_a_toleration_that_compares_is_told_to_be_passed_over() -> None:
    found = scenario(pod("a", tolerations=[{"key": "sla", "operator": "Lt", "value": "5"}]))
    assert found.notes == ("pod default/a: a toleration by Lt or Gt is not simulated",)
    assert not found.pods[0].tolerations[0].covers("sla", "5", "NoSchedule")


def test_more_pods_than_are_simulated_are_refused() -> None:
    assert "cannot simulate 5002 pods" in complaint(
        deployment("a", 5000, spec()), deployment("b", 2, spec())
    )


def test_what_a_cluster_has_besides_is_not_asked_about() -> None:
    background = documents(claim("other", exactly()), template("t", exactly()), gang("g", 2))
    assert (
        manifests.scenario(documents(pod("a")), background=background).pods[0].name == "default/a"
    )
    found = manifests.scenario(documents(pod("a")), background=background)
    assert (len(found.pods), found.groups) == (1, ())


def test_the_version_before_this_one_is_of_the_same_shape() -> None:
    older = {**slice_("n1", [device("gpu-0")]), "apiVersion": "resource.k8s.io/v1beta2"}
    assert len(scenario(older).slices) == 1
    assert DRA == "resource.k8s.io/v1"
