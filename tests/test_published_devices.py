"""What the agent publishes of a node the classes select, and the policies let through."""

from pathlib import Path
from typing import Final

import pytest

from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.model.slices import NodeIdentity
from kata_gpu.plan.kubernetes import slices
from kata_gpu.publish.kubelet import claim_config
from tests import cel, kustomize, objects
from tests.kernel import nodes
from tests.kustomize import Document
from tests.plans import blueprints
from tests.plans.bundles import BOARD
from tests.test_devices import on_a_node

NODE: Final = NodeIdentity(name="worker-1", uid="7a1e")
DRA: Final = 'offer = "dra"\n'
AGENT: Final = {
    "username": "system:serviceaccount:kata-gpu:kata-gpu",
    "extra": {"authentication.kubernetes.io/node-name": [NODE.name]},
}


def published(folder: Path, *tables: str) -> list[Document]:
    """Return the slices of a board's node."""
    found = on_a_node(nodes.hgx(folder), blueprints.blueprint(*tables))
    return [
        dict(one)
        for driver in (GPU_DRIVER, FABRIC_DRIVER)
        for one in slices.slices(driver, NODE, found, 1)
    ]


def selected(name: str, found: list[Document]) -> list[str]:
    """Return the names of the devices that a class selects."""
    (document,) = kustomize.documents(objects.CLASSES / f"deviceclass-{name}.yaml")
    expression = document["spec"]["selectors"][0]["cel"]["expression"]
    return [
        device["name"]
        for one in found
        for device in one["spec"].get("devices", ())
        if cel.selects(expression, cel.device(one["spec"]["driver"], device))
    ]


def names(*addresses: str) -> list[str]:
    return [address.replace(":", "-").replace(".", "-") for address in addresses]


def test_gpus_are_of_one_class_and_switches_of_another(tmp_path: Path) -> None:
    found = published(tmp_path, blueprints.GPUS + DRA, blueprints.SWITCHES + DRA)
    assert selected("kata-gpu", found) == names(*nodes.HGX_GPUS)
    assert selected("kata-fabric", found) == names(nodes.HGX_SWITCH)
    assert selected("kata-gpu-bundle", found) == []


def test_who_asks_for_a_gpu_is_not_given_the_board(tmp_path: Path) -> None:
    found = published(tmp_path, BOARD + DRA)
    assert selected("kata-gpu", found) == names(*nodes.HGX_GPUS)
    assert selected("kata-gpu-bundle", found) == ["hgx"]


def test_what_kai_counts_as_a_nodes_gpus_are_its_gpus(tmp_path: Path) -> None:
    found = published(tmp_path, blueprints.GPUS + DRA, blueprints.SWITCHES + DRA)
    counted = [
        device
        for one in found
        if "gpu" in one["spec"]["driver"]
        for device in one["spec"]["devices"]
    ]
    assert len(counted) == len(nodes.HGX_GPUS)


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE", "DELETE"])
def test_the_policy_lets_the_agent_publish(tmp_path: Path, operation: str) -> None:
    policy = objects.named(objects.overlay("dra"), "ValidatingAdmissionPolicy", "kata-gpu-slices")
    for one in published(tmp_path, BOARD + DRA):
        new = None if operation == "DELETE" else one
        old = None if operation == "CREATE" else one
        request = {"operation": operation, "name": "x", "userInfo": AGENT}
        assert cel.admits(policy, {**request, "object": new, "oldObject": old}) == ()
        stranger = {**AGENT, "extra": {"authentication.kubernetes.io/node-name": ["worker-2"]}}
        request["userInfo"] = stranger
        assert cel.admits(policy, {**request, "object": new, "oldObject": old})


def test_the_driver_takes_the_configuration_of_every_class() -> None:
    for path in objects.CLASSES.glob("deviceclass-*.yaml"):
        (document,) = kustomize.documents(path)
        entries = [{**entry, "source": "FromClass"} for entry in document["spec"].get("config", ())]
        found = claim_config.opaque_configs(entries, driver=GPU_DRIVER)
        assert len(found) == len(entries)
