"""What Kubernetes was told of a node is taken back with the node, or told with what removes it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.agent import node as agent_node
from kata_gpu.host import locks
from kata_gpu.model.kubernetes import DRIVERS, FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.model.slices import NodeIdentity
from kata_gpu.plan.kubernetes import labels, slices
from kata_gpu.publish.kubernetes import client
from kata_gpu.publish.kubernetes.node import FEATURE_FILE, owned_labels
from tests.api_server import ApiServer, api_server
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kubernetes_devices import gpu
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, everything, journal_of, put
from tests.test_cli import Done, complaint, run

NODE: Final = "node-1"
FEATURES: Final = "/etc/kubernetes/node-feature-discovery/features.d"
OURS: Final = {"kata-gpu.io/ready": "true", "kata-gpu.io/gpu.count": "1"}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as api:
        for name in (NODE, "node-2"):
            metadata = {"name": name, "labels": {"zone": "a", "kata-gpu.io/enabled": "true"}}
            api.put({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
        yield api


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A node with a file that an agent wrote."""
    kernel = nodes.single_gpu(tmp_path / "host")
    journal_of(kernel.host).update(lambda ledger: ledger.with_file(CDI))
    put(kernel.host.root, CDI, "{}")
    return kernel


def slice_names(api: ApiServer) -> list[str]:
    return [found["metadata"]["name"] for found in api.objects("ResourceSlice")]


def labels_of(api: ApiServer, name: str = NODE) -> dict[str, str]:
    (found,) = (o for o in api.objects("Node") if o["metadata"]["name"] == name)
    return dict(found["metadata"]["labels"])


def publish(api: ApiServer, path: Path, node: str = NODE) -> None:
    """Have published what an agent of *node* does: a slice of each driver, and labels."""

    async def main() -> None:
        kubeconfig = str(api.kubeconfig(path / "kubeconfig"))
        async with client.connected(kubeconfig, agent="kata-gpu/test") as asking:
            uid = str((await asking.get_node(node))["metadata"]["uid"])
            for driver in DRIVERS:
                identity = NodeIdentity(name=node, uid=uid)
                (body,) = slices.slices(driver, identity, [gpu(1)], 1)
                await asking.create_slice(body)
            await asking.apply_node_labels(node, OURS, manager="kata-gpu")
            await asking.apply_node_labels(node, {"other.io/x": "1"}, manager="other")

    asyncio.run(main())


def settings(kernel: FakeKernel, api: ApiServer | None, *more: str) -> None:
    """Write agent.toml; without a server it leads to where nobody answers."""
    kubeconfig = kernel.host.root / "kubeconfig"
    if api is None:
        unreachable = ApiServer()
        unreachable.url = "http://127.0.0.1:1"
        unreachable.kubeconfig(kubeconfig)
    else:
        api.kubeconfig(kubeconfig)
    table = (f'node_name = "{NODE}"', f'kubeconfig = "{kubeconfig}"', *more)
    text = "\n".join(["[kubernetes]", *table])
    put(kernel.host.root, "/etc/kata-gpu/agent.toml", text)


def ended(kernel: FakeKernel, *argv: str) -> Done:
    return run(*argv, "--root", kernel.host.root)


def gone(kernel: FakeKernel) -> bool:
    return not kernel.host.path(CDI).exists()


RELEASE: Final = ("release", "--all", "--yes")
UNINSTALL: Final = ("uninstall", "--yes")
BOTH: Final = pytest.mark.parametrize("argv", [RELEASE, UNINSTALL], ids=["release", "uninstall"])


@BOTH
def test_what_was_published_of_this_node_goes_and_nothing_else_does(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    publish(api, tmp_path)
    publish(api, tmp_path, "node-2")
    settings(kernel, api)
    before = slice_names(api)
    done = ended(kernel, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    left = [s["spec"]["nodeName"] for s in api.objects("ResourceSlice")]
    assert left == ["node-2", "node-2"]
    others = {"zone": "a", "kata-gpu.io/enabled": "true", "other.io/x": "1"}
    assert labels_of(api) == others
    assert labels_of(api, "node-2") == {**others, **OURS}
    for name in {*before} - {*slice_names(api)}:
        assert f"withdrew ResourceSlice {name}\n" in done.stdout
    assert f"withdrew label kata-gpu.io/ready of node {NODE}\n" in done.stdout
    assert gone(kernel)


@BOTH
def test_it_can_be_said_twice(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    publish(api, tmp_path)
    settings(kernel, api)
    assert [ended(kernel, *argv).returncode for _ in range(2)] == [0, 0]
    assert len(api.asked("DELETE")) == 2
    assert len(api.asked("PATCH", f"nodes/{NODE}")) == 3, "two of the agent's, one of ours"


def test_slices_go_before_the_labels_and_with_no_step_left_too(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path
) -> None:
    settings(kernel, api)
    assert ended(kernel, *RELEASE).returncode == 0
    publish(api, tmp_path)
    done = ended(kernel, *RELEASE)
    assert (done.returncode, slice_names(api)) == (0, [])
    assert [request.method for request in api.writes][-3:] == ["DELETE", "DELETE", "PATCH"]


@pytest.mark.parametrize("verb", [("release", "--all"), ("uninstall",)])
def test_a_dry_run_tells_and_writes_nothing(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    publish(api, tmp_path)
    settings(kernel, api)
    before, writes = everything(kernel.host.root), len(api.writes)
    done = ended(kernel, *verb, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    for name in slice_names(api):
        assert f"withdraw ResourceSlice {name}\n" in done.stdout
    for key in OURS:
        assert f"withdraw label {key} of node {NODE}\n" in done.stdout
    assert "kata-gpu.io/enabled" not in done.stdout
    assert (everything(kernel.host.root), len(api.writes)) == (before, writes)


def test_a_release_of_single_units_leaves_what_is_published(
    kernel: FakeKernel, api: ApiServer
) -> None:
    settings(kernel, api)
    agent_node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    done = ended(kernel, "release", nodes.GPU, "--dry-run")
    assert (done.returncode, "withdraw R" in done.stdout) == (0, False)
    assert not api.asked("GET", "resourceslices")


@BOTH
def test_while_an_agent_runs_nothing_is_withdrawn(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    publish(api, tmp_path)
    settings(kernel, api)
    with locks.exclusive(kernel.host.path(SETTINGS.lock)):
        assert "a running agent does" in complaint(ended(kernel, *argv))
    assert len(slice_names(api)) == 2


def test_while_a_unit_is_held_an_uninstall_withdraws_nothing(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path
) -> None:
    publish(api, tmp_path)
    settings(kernel, api)
    agent_node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    with kernel.vm_holds(nodes.GPU, command="qemu-kvm"):
        assert ended(kernel, *UNINSTALL).returncode == 3
    assert len(slice_names(api)) == 2


# Where the server does not do it


@BOTH
def test_without_an_answer_the_node_is_given_back_and_the_rest_is_told(
    kernel: FakeKernel, argv: tuple[str, ...]
) -> None:
    settings(kernel, None)
    done = ended(kernel, *argv)
    assert done.returncode == 1
    assert gone(kernel)
    first, *_ = done.stderr.splitlines()
    start = f"kata-gpu: cannot take back what the API server was told of node {NODE}: cannot "
    assert first.startswith(start)
    for driver in (GPU_DRIVER, FABRIC_DRIVER):
        selector = f"spec.nodeName={NODE},spec.driver={driver}"
        assert f"  kubectl delete resourceslices --field-selector {selector}\n" in done.stderr
    assert f"  kubectl label node {NODE} kata-gpu.io/ready- " in done.stderr


def test_a_dry_run_without_an_answer_says_so_too(kernel: FakeKernel) -> None:
    settings(kernel, None)
    done = ended(kernel, "release", "--all", "--dry-run")
    assert done.returncode == 1
    assert "kubectl delete resourceslices" in done.stderr
    assert not gone(kernel)


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("PATCH", ""), ("GET", "nodes")])
def test_a_refusal_is_told_with_what_is_left(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path, method: str, path: str
) -> None:
    publish(api, tmp_path)
    settings(kernel, api)
    api.fail(403, method=method, path=path, times=9)
    done = ended(kernel, *RELEASE)
    assert done.returncode == 1
    assert "403" in done.stderr.splitlines()[0]
    assert gone(kernel)


@pytest.mark.parametrize(("is_known", "status"), [(False, 0), (True, 1)])
def test_who_never_was_a_driver_here_need_not_be_let_list_slices(
    kernel: FakeKernel, api: ApiServer, is_known: bool, status: int
) -> None:
    settings(kernel, api, 'kubelet_directory = "/var/lib/kubelet"')
    if is_known:
        (kernel.host.root / f"var/lib/kubelet/plugins/{GPU_DRIVER}").mkdir(parents=True)
    api.fail(403, method="GET", path="resourceslices", times=9)
    assert ended(kernel, *RELEASE).returncode == status


def test_a_server_without_slices_has_none(
    kernel: FakeKernel, api: ApiServer, tmp_path: Path
) -> None:
    publish(api, tmp_path)
    settings(kernel, api)
    api.has_dra = False
    assert ended(kernel, *RELEASE).returncode == 0
    assert "kata-gpu.io/ready" not in labels_of(api)


def test_a_node_that_the_cluster_does_not_know_is_told(kernel: FakeKernel, api: ApiServer) -> None:
    settings(kernel, api)
    api.remove("Node", NODE)
    done = ended(kernel, *RELEASE)
    assert done.returncode == 0
    assert f"the cluster has no node {NODE}, so nothing is left of it there" in done.stderr
    assert not api.writes


# Other ways to be told


def test_the_file_of_node_feature_discovery_goes(kernel: FakeKernel) -> None:
    settings(kernel, None, "api = false", f'features_directory = "{FEATURES}"')
    path = put(kernel.host.root, f"{FEATURES}/{FEATURE_FILE}", "kata-gpu.io/ready=true\n")
    foreign = put(kernel.host.root, f"{FEATURES}/other", "x=1\n")
    dry = ended(kernel, "release", "--all", "--dry-run")
    assert f"withdraw {FEATURES}/{FEATURE_FILE}, of which node-feature" in dry.stdout
    assert path.exists()
    done = ended(kernel, *RELEASE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (path.exists(), foreign.exists()) == (False, True)


def test_a_folder_of_features_that_is_a_link_is_left_and_told(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    settings(kernel, None, "api = false", f'features_directory = "{FEATURES}"')
    put(tmp_path, f"elsewhere/{FEATURE_FILE}", "x=1\n")
    folder = kernel.host.path(FEATURES)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tmp_path / "elsewhere")
    done = ended(kernel, *RELEASE)
    assert done.returncode == 1
    assert f"  rm {FEATURES}/{FEATURE_FILE}\n" in done.stderr
    assert (tmp_path / "elsewhere" / FEATURE_FILE).exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_settings_without_a_cluster_are_doubted_where_an_agent_had_one(
    kernel: FakeKernel, is_there: bool
) -> None:
    if is_there:
        kernel.host.path(SETTINGS.pod_resources_link).symlink_to("/nowhere")
    done = ended(kernel, *RELEASE)
    assert done.returncode == 0
    assert ("no [kubernetes], but /var/lib/kata-gpu/pod-res" in done.stderr) == is_there
    assert ("kubectl label node " in done.stderr) == is_there


# Whose a label is


def test_labels_are_the_agents_by_its_manager_alone() -> None:
    def entry(manager: object, operation: str, *keys: object) -> object:
        fields: object = {"f:metadata": {"f:labels": {key: {} for key in keys}}}
        return {"manager": manager, "operation": operation, "fieldsV1": fields}

    entries = [
        entry("kata-gpu", "Apply", "f:a", ".", "f:b"),
        entry("kata-gpu", "Update", "f:c"),
        entry("kubectl", "Apply", "f:d"),
        {"manager": "kata-gpu", "operation": "Apply", "fieldsV1": {"f:spec": []}},
        "nonsense",
    ]
    found = owned_labels({"metadata": {"managedFields": entries}})
    assert sorted(found) == ["a", "b"]
    assert list(owned_labels({"metadata": {"managedFields": 7}})) == []
    assert list(owned_labels({"metadata": {}})) == []


def test_the_command_for_labels_names_all_that_an_agent_sets() -> None:
    assert len(set(labels.KEYS)) == 6
    assert all(key.startswith("kata-gpu.io/") for key in labels.KEYS)
    assert "kata-gpu.io/enabled" not in labels.KEYS
