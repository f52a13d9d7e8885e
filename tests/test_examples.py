"""The examples ask for what there is, and the classes give them what they are meant to have."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.model.blueprint import Mode
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.plan.simulate.simulation import simulate
from kata_gpu.settings import blueprint
from kata_gpu.settings.manifests import scenario
from tests import cel, kustomize, objects
from tests.kustomize import Document
from tests.simulations.objects import device as device_
from tests.simulations.objects import documents, node, slice_
from tests.simulations.objects import gpus as gpus_of

ALL: Final = tuple(objects.shipped())
EXAMPLES: Final = tuple((p, d) for p, d in ALL if p.parent == objects.EXAMPLES)
CLASS: Final = {
    d["metadata"]["name"]: d["spec"]["selectors"][0]["cel"]["expression"]
    for _, d in ALL
    if d["kind"] == "DeviceClass"
}


def device(driver: str = GPU_DRIVER, *, memory: str | None = None, **own: Any) -> Document:
    return {
        "driver": driver,
        "attributes": {driver: own, "resource.kubernetes.io": {"pciBusID": "0000:41:00.0"}},
        "capacity": {} if memory is None else {driver: {"memory": cel.quantity(memory)}},
    }


BARE: Final = device()
PLAIN: Final = device(unit="function", ccCapable=True, ccMode="off", confidential=False)
CONFIDENTIAL: Final = device(unit="function", ccCapable=True, ccMode="on", confidential=True)
DEVTOOLS: Final = device(unit="function", ccCapable=True, ccMode="devtools", confidential=False)
VIRTUAL: Final = device(unit="virtual-function")
BOARD: Final = device(unit="bundle", gpuCount=8)
BOARD_CONFIDENTIAL: Final = device(unit="bundle", gpuCount=8, ccMode="on", confidential=True)
SWITCH: Final = device(FABRIC_DRIVER, unit="function")
FOREIGN: Final = device("gpu.nvidia.com", unit="function", confidential=True)
DEVICES: Final = {
    "bare": BARE,
    "plain": PLAIN,
    "confidential": CONFIDENTIAL,
    "devtools": DEVTOOLS,
    "virtual": VIRTUAL,
    "board": BOARD,
    "board-confidential": BOARD_CONFIDENTIAL,
    "switch": SWITCH,
    "foreign": FOREIGN,
}


# Classes


@pytest.mark.parametrize(
    ("name", "selected"),
    [
        ("kata-gpu", {"bare", "plain", "virtual"}),
        ("kata-gpu-confidential", {"confidential"}),
        ("kata-gpu-bundle", {"board", "board-confidential"}),
        ("kata-fabric", {"switch"}),
    ],
)
def test_a_class_selects_what_it_is_for_and_nothing_else(name: str, selected: set[str]) -> None:
    assert {key for key, d in DEVICES.items() if cel.selects(CLASS[name], d)} == selected


def test_the_driver_holds_a_confidential_gpu_to_it_when_the_claim_is_prepared() -> None:
    configs = {
        d["metadata"]["name"]: d["spec"].get("config") for _, d in ALL if d["kind"] == "DeviceClass"
    }
    (config,) = configs.pop("kata-gpu-confidential")
    assert config["opaque"] == {
        "driver": GPU_DRIVER,
        "parameters": {
            "apiVersion": "gpu.kata-passthrough.io/v1alpha1",
            "kind": "KataGpuConfig",
            "confidential": "required",
            "requireReset": True,
        },
    }
    assert set(configs.values()) == {None}


def test_no_class_ends_an_allocation_by_a_device_that_lacks_an_attribute() -> None:
    for expression in CLASS.values():
        for driver in (GPU_DRIVER, FABRIC_DRIVER, "nic.example.com"):
            cel.selects(expression, {"driver": driver})


def test_an_attribute_that_is_not_there_ends_an_allocation() -> None:
    with pytest.raises(cel.CelError, match="not found"):
        cel.selects(f"device.attributes['{GPU_DRIVER}'].confidential", BARE)


def test_kai_counts_gpus_and_nothing_else_by_the_names_of_classes_and_drivers() -> None:
    assert {name for name in CLASS if "gpu" in name} == set(CLASS) - {"kata-fabric"}
    assert "gpu" in GPU_DRIVER
    assert "gpu" not in FABRIC_DRIVER


# Examples


@pytest.fixture(params=EXAMPLES, ids=lambda e: f"{e[0].stem}-{e[1]['kind']}")
def example(request: pytest.FixtureRequest) -> tuple[Path, Document]:
    found: tuple[Path, Document] = request.param
    return found


def in_file(path: Path, kind: str) -> list[Document]:
    return objects.of_kind(kustomize.documents(path), kind)


def test_an_api_server_knows_every_field_of_every_object() -> None:
    for _, document in ALL:
        objects.check(document)


def test_each_says_what_it_shows_and_what_it_needs() -> None:
    for path, _ in EXAMPLES:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert head[0].endswith((".", ",")) or len(head) > 1
        assert any(line.startswith("# Needs: ") for line in head), path


def test_what_an_example_says_it_needs_is_there() -> None:
    for path, _ in EXAMPLES:
        text = path.read_text()
        for kind, name in re.findall(r"(overlays|components)/([a-z-]+)", text):
            assert (objects.KUBERNETES / kind / name).is_dir(), (path, name)
        for name in re.findall(r"# .*?([a-z-]+\.yaml)", text):
            assert (objects.EXAMPLES / name).is_file(), (path, name)


def test_every_class_that_is_asked_for_is_shipped(example: tuple[Path, Document]) -> None:
    runtime = {d["metadata"]["name"] for _, d in ALL if d["kind"] == "RuntimeClass"}
    for request in objects.requests(example[1]):
        assert request["deviceClassName"] in CLASS
    for pod in objects.pod_templates(example[1]):
        assert pod["spec"].get("runtimeClassName", "kata-gpu") in runtime


def test_a_pod_with_a_gpu_names_its_runtime_class_and_its_memory(
    example: tuple[Path, Document],
) -> None:
    for pod in objects.pod_templates(example[1]):
        for container in pod["spec"]["containers"]:
            limits = container["resources"]["limits"]
            assert {"cpu", "memory"} <= limits.keys()
            if container["resources"].get("claims") or any("/" in name for name in limits):
                assert "runtimeClassName" in pod["spec"]


def test_every_claim_is_declared_and_its_template_is_in_the_file(
    example: tuple[Path, Document],
) -> None:
    path, document = example
    templates = {d["metadata"]["name"] for d in in_file(path, "ResourceClaimTemplate")}
    for pod in objects.pod_templates(document):
        declared = {
            c["name"]: c["resourceClaimTemplateName"] for c in pod["spec"].get("resourceClaims", ())
        }
        used = {
            claim["name"]
            for container in pod["spec"]["containers"]
            for claim in container["resources"].get("claims", ())
        }
        assert used == declared.keys()
        assert set(declared.values()) <= templates


def test_every_resource_is_one_of_a_pool(example: tuple[Path, Document]) -> None:
    text = (objects.KUBERNETES / "base/blueprint.toml").read_text()
    pools = {p.resource for p in blueprint.parse(text).pools if p.mode is Mode.PASSTHROUGH}
    for pod in objects.pod_templates(example[1]):
        for container in pod["spec"]["containers"]:
            assert {name for name in container["resources"]["limits"] if "/" in name} <= pools


def test_every_constraint_is_about_an_attribute_with_its_domain(
    example: tuple[Path, Document],
) -> None:
    if example[1]["kind"] != "ResourceClaimTemplate":
        return
    wish = example[1]["spec"]["spec"]["devices"]
    for constraint in wish.get("constraints", ()):
        assert constraint["matchAttribute"] in {
            *(f"resource.kubernetes.io/{name}" for name in ("numaNode", "pcieRoot")),
            f"{GPU_DRIVER}/board",
        }
        assert set(constraint["requests"]) <= {request["name"] for request in wish["requests"]}


def test_no_two_examples_have_an_object_of_one_name() -> None:
    names = [kustomize.identity(document) for _, document in EXAMPLES]
    assert len(names) == len(set(names))


def selectors(file: str) -> list[str]:
    """Return the expressions of each request of a file's template, in order."""
    (template,) = in_file(objects.EXAMPLES / file, "ResourceClaimTemplate")
    return [
        " && ".join(
            f"({text})"
            for text in (
                CLASS[request["deviceClassName"]],
                *(s["cel"]["expression"] for s in request.get("selectors", ())),
            )
        )
        for request in objects.requests(template)
    ]


@pytest.mark.parametrize(
    ("file", "chosen", "refused"),
    [
        (
            "dra-claim-template.yaml",
            [device(memory="80G"), device(memory="141G")],
            [device(memory="48G"), BARE, SWITCH, FOREIGN],
        ),
        (
            "dra-deployment.yaml",
            [device(resetMethod="flr", linkWidth=16)],
            [device(resetMethod="bus", linkWidth=16), device(resetMethod="flr", linkWidth=8), BARE],
        ),
        ("confidential-snp.yaml", [CONFIDENTIAL], [PLAIN, BARE, BOARD_CONFIDENTIAL]),
        ("confidential-tdx.yaml", [CONFIDENTIAL], [PLAIN, BARE, BOARD_CONFIDENTIAL]),
        ("dra-numa.yaml", [PLAIN], [BOARD]),
        ("kai-gang.yaml", [PLAIN], [BOARD, SWITCH]),
        ("kai-pod-group.yaml", [PLAIN], [BOARD, SWITCH]),
    ],
)
def test_an_example_gets_the_devices_that_it_is_meant_to_have(
    file: str, chosen: list[Document], refused: list[Document]
) -> None:
    (expression,) = selectors(file)
    assert all(cel.selects(expression, found) for found in chosen)
    assert not any(cel.selects(expression, found) for found in refused)


def test_the_first_alternative_is_the_best_and_the_last_takes_anything() -> None:
    new, pair, anything = selectors("dra-first-available.yaml")
    hopper, ampere = device(architecture="hopper"), device(architecture="ampere")
    assert [cel.selects(new, d) for d in (hopper, ampere, BARE)] == [True, False, False]
    assert [cel.selects(pair, d) for d in (hopper, ampere, BARE)] == [False, True, False]
    assert [cel.selects(anything, d) for d in (hopper, ampere, BARE)] == [True, True, True]


def test_a_whole_board_is_a_bundle_or_gpus_and_switches() -> None:
    (board,) = selectors("dra-bundle.yaml")
    assert [cel.selects(board, d) for d in (BOARD, PLAIN, SWITCH)] == [True, False, False]
    gpus, switches = selectors("dra-board.yaml")
    assert [cel.selects(gpus, d) for d in (BOARD, PLAIN, SWITCH)] == [False, True, False]
    assert [cel.selects(switches, d) for d in (BOARD, PLAIN, SWITCH)] == [False, False, True]


def gpus(count: int, **more: bool | int | str) -> list[Document]:
    known = {"unit": "function", "architecture": "hopper", "board": "0000:41:00.0", "numa": 1}
    found = gpus_of(count, **{**known, "resetMethod": "flr", "linkWidth": 16, **more})
    return [{**one, "capacity": {"memory": {"value": "80G"}}} for one in found]


def test_every_example_is_placed_on_nodes_that_have_what_it_needs() -> None:
    room = {"nvidia.com/pgpu": 4, "cpu": 256, "memory": "4Ti", "pods": 110}
    nodes = [
        node("plugin", room, labels={"kata-gpu.io/ready": "true"}),
        *(slice_(f"board-{number}", gpus(8)) for number in range(3)),
        slice_("board-0", [device_("switch", unit="function")], driver=FABRIC_DRIVER),
        slice_("confidential", gpus(1, confidential=True, ccMode="on")),
        slice_("whole", gpus(1, unit="bundle", gpuCount=8)),
    ]
    shared = [d for _, d in ALL if d["kind"] in {"DeviceClass", "RuntimeClass", "Queue"}]
    shared += kustomize.documents(objects.KUBERNETES / "components/kai/queues.yaml")
    for path in sorted({path for path, _ in EXAMPLES} - {objects.EXAMPLES / "kai-queues.yaml"}):
        found = simulate(scenario(documents(*nodes, *shared, *kustomize.documents(path))))
        assert found.pods, path
        assert found.is_placed, (path, [pod.reason for pod in found.pods])


# KAI


def queues() -> dict[str, Document]:
    component = kustomize.documents(objects.KUBERNETES / "components/kai/queues.yaml")
    found = [*component, *in_file(objects.EXAMPLES / "kai-queues.yaml", "Queue")]
    return {queue["metadata"]["name"]: queue["spec"] for queue in found}


def test_every_queue_has_a_parent_that_there_is() -> None:
    parents = {queue.get("parentQueue") for queue in queues().values()}
    assert parents == {None, "kata-gpu"}
    assert "kata-gpu" in queues()


def test_every_pod_for_kai_is_in_a_queue_that_is_no_parent(example: tuple[Path, Document]) -> None:
    path, document = example
    parents = {queue.get("parentQueue") for queue in queues().values()}
    leaves = queues().keys() - parents
    for pod in objects.pod_templates(document):
        is_for_kai = path.name.startswith("kai-")
        assert is_for_kai == (pod["spec"].get("schedulerName") == "kai-scheduler")
        assert is_for_kai == (
            pod.get("metadata", {}).get("labels", {}).get("kai.scheduler/queue") in leaves
        )


def test_the_gang_is_of_all_pods_of_the_job() -> None:
    (job,) = in_file(objects.EXAMPLES / "kai-gang.yaml", "Job")
    least = job["metadata"]["annotations"]["kai.scheduler/batch-min-member"]
    assert int(least) == job["spec"]["parallelism"] == job["spec"]["completions"]


def test_a_group_made_by_hand_has_as_many_pods_as_it_waits_for() -> None:
    path = objects.EXAMPLES / "kai-pod-group.yaml"
    (group,) = in_file(path, "PodGroup")
    pods = in_file(path, "Pod")
    assert len(pods) == group["spec"]["minMember"]
    for pod in pods:
        assert pod["metadata"]["annotations"]["pod-group-name"] == group["metadata"]["name"]
        assert pod["metadata"]["labels"]["kai.scheduler/queue"] == group["spec"]["queue"]


def test_every_level_asked_for_is_one_of_the_topology() -> None:
    (topology,) = kustomize.documents(objects.KUBERNETES / "components/kai/topology.yaml")
    levels = {level["nodeLabel"] for level in topology["spec"]["levels"]}
    (job,) = in_file(objects.EXAMPLES / "kai-gang.yaml", "Job")
    wish = job["metadata"]["annotations"]
    assert wish["kai.scheduler/topology"] == topology["metadata"]["name"]
    assert {
        wish[f"kai.scheduler/topology-{how}-placement"] for how in ("required", "preferred")
    } <= levels
    (group,) = in_file(objects.EXAMPLES / "kai-pod-group.yaml", "PodGroup")
    constraint = group["spec"]["topologyConstraint"]
    assert constraint["topology"] == topology["metadata"]["name"]
    assert constraint["requiredTopologyLevel"] in levels


def test_a_claim_that_kai_is_to_count_asks_exactly() -> None:
    for file in ("kai-gang.yaml", "kai-pod-group.yaml"):
        for template in in_file(objects.EXAMPLES / file, "ResourceClaimTemplate"):
            for request in template["spec"]["spec"]["devices"]["requests"]:
                assert "gpu" in request["exactly"]["deviceClassName"]
