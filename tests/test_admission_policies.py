"""An agent changes what is of its own node and drivers, and is refused everything else."""

from typing import Any, Final

import pytest

from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from tests import cel, objects
from tests.kustomize import Document

AGENT: Final = "system:serviceaccount:kata-gpu:kata-gpu"
NODE_NAME: Final = "authentication.kubernetes.io/node-name"


@pytest.fixture(scope="module")
def dra() -> list[Document]:
    return objects.overlay("dra")


def asked(
    policy: Document,
    operation: str,
    *,
    old: Any = None,
    new: Any = None,
    user: str = AGENT,
    node: str | None = "worker-1",
) -> tuple[str, ...]:
    """Return why the policy refuses; nothing where it does not."""
    name = (new or old)["metadata"]["name"]
    extra = {} if node is None else {"extra": {NODE_NAME: [node]}}  # an empty one is left out
    who = {"username": user, **extra}
    request = {"operation": operation, "name": name, "userInfo": who}
    return cel.admits(policy, {**request, "object": new, "oldObject": old})


# Nodes


@pytest.fixture
def nodes(dra: list[Document]) -> Document:
    return objects.named(dra, "ValidatingAdmissionPolicy", "kata-gpu-nodes")


def node(name: str = "worker-1", **metadata: Any) -> Document:
    labels = {"kubernetes.io/hostname": name, "kata-gpu.io/enabled": "true"}
    return {
        "metadata": {"name": name, "labels": labels, **metadata},
        "spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": "gpu", "effect": "NoSchedule"}]},
    }


def labelled(**labels: str | None) -> Document:
    found = node()
    for key, value in labels.items():
        if value is None:
            del found["metadata"]["labels"][key]
        else:
            found["metadata"]["labels"][key] = value
    return found


def test_an_agent_labels_its_own_node(nodes: Document) -> None:
    new = labelled(
        **{
            "kata-gpu.io/ready": "true",
            "kata-gpu.io/snp.ready": "false",
            "nvidia.com/cc.mode.state": "on",
            "nvidia.com/cc.ready.state": "true",
        }
    )
    assert asked(nodes, "UPDATE", old=node(), new=new) == ()
    assert asked(nodes, "UPDATE", old=new, new=node()) == (), "and takes its labels away"


def test_an_agent_labels_a_node_that_has_no_labels(nodes: Document) -> None:
    old, new = node(), node()
    del old["metadata"]["labels"]
    new["metadata"]["labels"] = {"kata-gpu.io/ready": "true"}
    assert asked(nodes, "UPDATE", old=old, new=new) == ()


def test_an_agent_may_not_label_another_node(nodes: Document) -> None:
    old, new = node("worker-2"), node("worker-2")
    new["metadata"]["labels"]["kata-gpu.io/ready"] = "true"
    (why,) = asked(nodes, "UPDATE", old=old, new=new)
    assert why == "an agent may label its own node alone: its token is of node 'worker-1'"


def test_a_token_of_no_node_labels_none(nodes: Document) -> None:
    new = labelled(**{"kata-gpu.io/ready": "true"})
    (why,) = asked(nodes, "UPDATE", old=node(), new=new, node=None)
    assert why == "an agent may label its own node alone: its token is of node ''"


@pytest.mark.parametrize(
    "labels",
    [
        {"node-role.kubernetes.io/control-plane": ""},
        {"kubernetes.io/hostname": "other"},
        {"kubernetes.io/hostname": None},
        {"kata-gpu.io/enabled": "false"},
        {"kata-gpu.io/enabled": None},
        {"kata-gpu.iox/ready": "true"},
        {"nvidia.com/cc.mode": "off"},
        {"nvidia.com/gpu.count": "8"},
    ],
    ids=str,
)
def test_other_labels_are_not_the_agents(nodes: Document, labels: dict[str, str | None]) -> None:
    (why,) = asked(nodes, "UPDATE", old=node(), new=labelled(**labels))
    assert why == f"the agent may not change these labels: {next(iter(labels))}"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("spec", {"podCIDR": "10.0.0.0/24", "taints": []}),
        ("spec", {**node()["spec"], "unschedulable": True}),
    ],
    ids=["taints", "cordon"],
)
def test_the_rest_of_a_node_is_not_the_agents(nodes: Document, part: str, value: Any) -> None:
    (why,) = asked(nodes, "UPDATE", old=node(), new={**node(), part: value})
    assert why == "the agent may change labels of a node, and nothing else"


@pytest.mark.parametrize(
    "metadata",
    [
        {"annotations": {"a": "b"}},
        {"finalizers": ["example.com/stay"]},
        {"ownerReferences": [{"kind": "Pod", "name": "x", "uid": "y", "apiVersion": "v1"}]},
    ],
    ids=lambda metadata: next(iter(metadata)),
)
def test_nor_is_its_metadata(nodes: Document, metadata: Document) -> None:
    assert asked(nodes, "UPDATE", old=node(), new=node(**metadata))
    assert asked(nodes, "UPDATE", old=node(**metadata), new=node())
    assert asked(nodes, "UPDATE", old=node(**metadata), new=node(**metadata)) == ()


def test_an_agent_neither_makes_nor_removes_a_node(nodes: Document) -> None:
    assert asked(nodes, "CREATE", new=node())
    assert asked(nodes, "DELETE", old=node())


def test_others_are_not_the_policys_affair(nodes: Document) -> None:
    new = labelled(**{"kata-gpu.io/enabled": None})
    for user in ("admin", "system:serviceaccount:other:kata-gpu", f"{AGENT}x"):
        assert asked(nodes, "UPDATE", old=node(), new=new, user=user) == ()


# Slices


@pytest.fixture
def slices(dra: list[Document]) -> Document:
    return objects.named(dra, "ValidatingAdmissionPolicy", "kata-gpu-slices")


def published(driver: str = GPU_DRIVER, name: str | None = "worker-1", pool: str = "") -> Document:
    spec: Document = {"driver": driver, "pool": {"name": pool or name}, "devices": []}
    return {
        "metadata": {"name": "00000-x"},
        "spec": spec if name is None else {**spec, "nodeName": name},
    }


@pytest.mark.parametrize("driver", [GPU_DRIVER, FABRIC_DRIVER])
def test_an_agent_publishes_the_devices_of_its_node(slices: Document, driver: str) -> None:
    found = published(driver)
    assert asked(slices, "CREATE", new=found) == ()
    assert asked(slices, "UPDATE", old=found, new=found) == ()
    assert asked(slices, "DELETE", old=found) == ()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (published(name="worker-2"), "an agent may change slices of its own node alone"),
        (published(name=None, pool="worker-1"), "an agent may change slices of its own node alone"),
        (published(pool="worker-2"), "the pool of an agent's slices has the node's name"),
        (published("gpu.nvidia.com"), "the agent may not change slices of driver gpu.nvidia.com"),
    ],
    ids=["another node's", "the cluster's", "another node's pool", "another driver's"],
)
def test_an_agent_may_not_publish_or_remove_anothers_devices(
    slices: Document, found: Document, why: str
) -> None:
    for refused in (
        asked(slices, "CREATE", new=found),
        asked(slices, "UPDATE", old=found, new=found),
        asked(slices, "DELETE", old=found),
    ):
        assert refused[0].startswith(why)


def test_a_token_of_no_node_publishes_nothing(slices: Document) -> None:
    why = "an agent may change slices of its own node alone: its token is of node ''"
    assert asked(slices, "CREATE", new=published(name=""), node=None)[0] == why
    assert asked(slices, "CREATE", new=published(), node=None)[0] == why


# All


def test_the_account_of_every_policy_is_that_of_the_pod(dra: list[Document]) -> None:
    namespace = objects.named(dra, "DaemonSet", "kata-gpu")["metadata"]["namespace"]
    account = objects.pod(dra)["serviceAccountName"]
    for policy in objects.of_kind(dra, "ValidatingAdmissionPolicy"):
        (condition,) = policy["spec"]["matchConditions"]
        assert f"'system:serviceaccount:{namespace}:{account}'" in condition["expression"]


def test_every_object_that_the_agent_may_change_by_itself_has_a_policy(
    dra: list[Document],
) -> None:
    ruled = {
        resource
        for policy in objects.of_kind(dra, "ValidatingAdmissionPolicy")
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for resource in rule["resources"]
    }
    changed = {
        resource
        for role in objects.of_kind(dra, "ClusterRole")
        for rule in role["rules"]
        if set(rule["verbs"]) - {"get", "list", "watch"}
        for resource in rule["resources"]
    }
    assert changed == ruled
