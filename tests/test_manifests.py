"""What an admin applies to a cluster is whole, and asks for no more than the agent uses."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import jq
import pytest

import kata_gpu
from kata_gpu.cli import parser
from kata_gpu.model.blueprint import Mode
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Door
from kata_gpu.plan.runtime import classes
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.settings import agent, agent_file, blueprint, files
from tests import kustomize, objects
from tests.kustomize import Document
from tests.objects import COMPONENTS, KUBERNETES, OVERLAYS

GROUP: Final = "resource.k8s.io"
CALLED: Final = {
    ("kata-gpu", "", "nodes", "get"): "get_node",
    ("kata-gpu-labels", "", "nodes", "patch"): "apply_node_labels",
    ("kata-gpu", "events.k8s.io", "events", "create"): "create_event",
    ("kata-gpu", "events.k8s.io", "events", "patch"): "patch_event",
}
"""Role, API group, resource and verb, and what calls the API server so."""

CALLED_FOR_DRA: Final = {
    ("kata-gpu-dra", GROUP, "resourceclaims", "get"): "get_claim",
    ("kata-gpu-dra", GROUP, "resourceslices", "list"): "list_slices",
    ("kata-gpu-dra", GROUP, "resourceslices", "watch"): "watch_slices",
    ("kata-gpu-dra", GROUP, "resourceslices", "create"): "create_slice",
    ("kata-gpu-dra", GROUP, "resourceslices", "update"): "replace_slice",
    ("kata-gpu-dra", GROUP, "resourceslices", "delete"): "delete_slice",
}
WRITTEN: Final = {
    *("/sys/bus/pci", "/sys/devices"),
    *("/var/lib/kata-gpu", "/run/kata-gpu", "/etc/cdi", "/var/run/cdi", "/opt/kata"),
}
"""What may be written of the host by an agent with no door to kubelet."""


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Document]:
    return objects.overlay(request.param)


def overlay_named(name: str) -> list[Document]:
    return objects.overlay(name)


def container(found: list[Document]) -> Document:
    (one,) = objects.pod(found)["containers"]
    assert isinstance(one, dict)
    return one


def containers(found: list[Document]) -> list[Document]:
    pod = objects.pod(found)
    return [*pod["initContainers"], *pod["containers"]]


# Whole


def test_an_api_server_knows_every_field_of_every_object(
    overlay: list[Document], tmp_path: Path
) -> None:
    for document in (*overlay, *objects.everything(tmp_path)):
        objects.check(document)


def test_no_object_is_there_twice(overlay: list[Document], tmp_path: Path) -> None:
    for found in (overlay, objects.everything(tmp_path)):
        names = [kustomize.identity(document) for document in found]
        assert len(names) == len(set(names))


def test_every_file_is_used() -> None:
    mentioned = {KUBERNETES / "base" / name for name in ("agent.toml", "blueprint.toml")}
    for path in KUBERNETES.rglob("kustomization.yaml"):
        (wish,) = kustomize.documents(path)
        words = [*wish.get("resources", ()), *(p["path"] for p in wish.get("patches", ()))]
        words += [name for g in wish.get("configMapGenerator", ()) for name in g["files"]]
        mentioned |= {path, *(path.parent / word for word in words)}
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} == {
        path for path in mentioned if path.is_file()
    }


def test_there_are_no_other_overlays_and_components() -> None:
    assert {path.name for path in (KUBERNETES / "overlays").iterdir()} == set(OVERLAYS)
    assert {path.name for path in (KUBERNETES / "components").iterdir()} == set(COMPONENTS)


def test_every_binding_leads_from_a_role_to_somebody(tmp_path: Path) -> None:
    found = objects.everything(tmp_path)
    known = {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in found}
    accounts = {("kata-gpu", "kata-gpu"), ("kai-scheduler", "binder")}  # the second one is KAI's
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        for binding in objects.of_kind(found, kind):
            role, namespace = binding["roleRef"], binding["metadata"].get("namespace")
            assert (role["kind"], namespace, role["name"]) in known
            assert {(s["namespace"], s["name"]) for s in binding["subjects"]} <= accounts


def test_every_policy_is_bound_and_denies(tmp_path: Path) -> None:
    found = objects.everything(tmp_path)
    policies = objects.of_kind(found, "ValidatingAdmissionPolicy")
    bindings = objects.of_kind(found, "ValidatingAdmissionPolicyBinding")
    assert {p["metadata"]["name"] for p in policies} == {b["spec"]["policyName"] for b in bindings}
    assert all(b["spec"]["validationActions"] == ["Deny"] for b in bindings)
    assert all(p["spec"]["failurePolicy"] == "Fail" for p in policies)


def test_every_volume_is_mounted_and_every_mount_has_a_volume(
    overlay: list[Document], tmp_path: Path
) -> None:
    for found in (overlay, objects.everything(tmp_path)):
        volumes = [volume["name"] for volume in objects.pod(found)["volumes"]]
        mounts = [mount for one in containers(found) for mount in one["volumeMounts"]]
        assert len(volumes) == len(set(volumes))
        assert set(volumes) == {mount["name"] for mount in mounts}


def test_what_kubelet_and_the_host_are_told_is_the_same_path_inside_and_outside(
    tmp_path: Path,
) -> None:
    found = objects.everything(tmp_path)
    paths = {
        v["name"]: v["hostPath"]["path"] for v in objects.pod(found)["volumes"] if "hostPath" in v
    }
    for one in containers(found):
        for mount in one["volumeMounts"]:
            if mount["name"] in paths:
                assert mount["mountPath"] == paths[mount["name"]]


# The configuration


def test_the_agents_settings_are_those_of_the_volumes(overlay: list[Document]) -> None:
    mounted = {mount["mountPath"] for mount in container(overlay)["volumeMounts"]}
    settings = agent.Settings(kubernetes=agent.Kubernetes())
    for path in (settings.blueprint, files.SETTINGS, settings.socket, settings.ledger):
        assert str(Path(path).parent) in mounted
    assert {settings.state_directory, settings.cdi_directory} <= mounted
    assert settings.kubernetes is not None
    kubelet = settings.kubernetes.kubelet_directory
    assert all(m.startswith((f"{kubelet}/", "/var/lib/kata-gpu")) for m in mounted if "/lib/k" in m)


def test_the_agent_takes_its_settings_and_they_serve_kubelet(
    overlay: list[Document], tmp_path: Path
) -> None:
    data = objects.named(overlay, "ConfigMap", "kata-gpu")["data"]
    path = tmp_path / "agent.toml"
    path.write_text(data["agent.toml"])
    assert agent_file.load(path) == agent.Settings(kubernetes=agent.Kubernetes())


@pytest.mark.parametrize(
    ("name", "doors"),
    [
        ("device-plugin", {Door.DEVICE_PLUGIN}),
        ("dra", {Door.DRA}),
        ("confidential", {Door.DRA}),
    ],
)
def test_the_blueprint_offers_its_pools_by_the_door_that_the_pod_has(
    name: str, doors: set[Door]
) -> None:
    found = overlay_named(name)
    wish = blueprint.parse(objects.named(found, "ConfigMap", "kata-gpu")["data"]["blueprint.toml"])
    assert {pool.door for pool in wish.pools if pool.mode is Mode.PASSTHROUGH} == doors
    kubelets = {
        mount["mountPath"].removeprefix("/var/lib/kubelet/")
        for mount in container(found)["volumeMounts"]
        if mount["mountPath"].startswith("/var/lib/kubelet/")
    }
    assert kubelets == (
        {"device-plugins"}
        if doors == {Door.DEVICE_PLUGIN}
        else {
            *("plugins_registry", "pod-resources"),
            *(f"plugins/{GPU_DRIVER}", f"plugins/{FABRIC_DRIVER}"),
        }
    )


def test_every_handler_of_a_blueprint_has_its_runtime_class_shipped(
    overlay: list[Document],
) -> None:
    text = objects.named(overlay, "ConfigMap", "kata-gpu")["data"]["blueprint.toml"]
    for name, document in classes.documents(blueprint.parse(text)).items():
        assert kustomize.documents(objects.CLASSES / name) == [document]


def test_the_confidential_overlay_configures_confidential_vms_alone() -> None:
    data = objects.named(overlay_named("confidential"), "ConfigMap", "kata-gpu")["data"]
    wish = blueprint.parse(data["blueprint.toml"])
    assert {handler.tee for handler in wish.handlers} == {"snp", "tdx"}


# Privileges


def granted(found: list[Document]) -> set[tuple[str, str, str, str]]:
    return {
        (role["metadata"]["name"], group, resource, verb)
        for kind in ("Role", "ClusterRole")
        for role in objects.of_kind(found, kind)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_every_verb_is_one_that_the_agent_calls() -> None:
    assert granted(overlay_named("device-plugin")) == set(CALLED)
    for name in ("dra", "confidential"):
        assert granted(overlay_named(name)) == {*CALLED, *CALLED_FOR_DRA}


def test_every_call_to_the_api_server_has_its_verb() -> None:
    calls = {name for name in vars(KubernetesClient) if not name.startswith("_")} - {"close"}
    assert {*CALLED.values(), *CALLED_FOR_DRA.values()} == calls


def test_with_labels_from_a_file_no_node_is_patched(tmp_path: Path) -> None:
    verbs = granted(objects.everything(tmp_path))
    assert ("kata-gpu-labels", "", "nodes", "patch") not in verbs
    assert ("kata-gpu", "", "nodes", "get") in verbs


def test_kai_is_given_the_right_to_allocate_claims_and_no_other(tmp_path: Path) -> None:
    mine = {*CALLED, *CALLED_FOR_DRA}
    others = {entry for entry in granted(objects.everything(tmp_path)) if entry not in mine}
    assert others == {
        ("kata-gpu-kai-binder", GROUP, "resourceclaims/binding", verb)
        for verb in ("update", "patch")
    }


def test_nothing_is_granted_by_a_wildcard_and_no_pod_or_secret_at_all(tmp_path: Path) -> None:
    for entry in granted(objects.everything(tmp_path)):
        assert not any("*" in word for word in entry)
        assert entry[2] not in {"pods", "secrets", "configmaps"}


def test_no_container_is_privileged_or_can_become_more(tmp_path: Path) -> None:
    for one in containers(objects.everything(tmp_path)):
        context = one["securityContext"]
        assert not context.get("privileged", False)
        assert not context["allowPrivilegeEscalation"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"]["drop"] == ["ALL"]


def test_the_pod_that_takes_it_away_is_the_agents_on_one_node() -> None:
    (daemon_set,) = objects.of_kind(overlay_named("dra"), "DaemonSet")
    filter_text = (KUBERNETES.parent / "uninstall.jq").read_text()
    pod = jq.compile(filter_text, args={"node": "worker-1"}).input_value(daemon_set).first()
    assert (pod["kind"], pod["metadata"]["name"]) == ("Pod", "uninstall-worker-1")
    agent = daemon_set["spec"]["template"]["spec"]
    kept = ("volumes", "securityContext", "serviceAccountName", "hostPID", "tolerations")
    assert {key: pod["spec"][key] for key in kept} == {key: agent[key] for key in kept}
    assert (pod["spec"]["nodeName"], pod["spec"]["restartPolicy"]) == ("worker-1", "Never")
    (before,), (after,) = agent["containers"], pod["spec"]["containers"]
    assert after["args"] == ["uninstall", "--yes"]
    assert {*before} - {*after} == {"startupProbe", "livenessProbe"}
    assert all(after[key] == before[key] for key in after if key != "args")
    assert "nodeSelector" not in pod["spec"], "the admin has unlabelled the node"


SEEING: Final = {"SYS_PTRACE", "DAC_READ_SEARCH", "CHECKPOINT_RESTORE"}


@pytest.mark.parametrize(
    ("name", "more"),
    [("device-plugin", set()), ("dra", {"SYS_RESOURCE"}), ("confidential", {"SYS_RESOURCE"})],
)
def test_the_agent_has_capabilities_to_see_and_for_its_guardian(name: str, more: set[str]) -> None:
    pod = objects.pod(overlay_named(name))
    added = {
        one["name"]: set(one["securityContext"]["capabilities"]["add"])
        for one in (*pod["initContainers"], *pod["containers"])
    }
    assert added == {"modules": {"SYS_MODULE"}, "agent": SEEING | more}
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_systemctl_finds_the_hosts_systemd_where_an_admin_allows_it(
    overlay: list[Document], tmp_path: Path
) -> None:
    wanted = {"name": "systemd", "mountPath": "/run/systemd", "readOnly": True}
    assert wanted in container(objects.everything(tmp_path))["volumeMounts"]
    assert wanted not in container(overlay)["volumeMounts"]


def test_what_can_be_written_of_the_host_is_counted() -> None:
    mounts = container(overlay_named("device-plugin"))["volumeMounts"]
    assert {m["mountPath"] for m in mounts if not m.get("readOnly")} == {
        *WRITTEN,
        "/var/lib/kubelet/device-plugins",
    }
    mounts = container(overlay_named("dra"))["volumeMounts"]
    assert {m["mountPath"] for m in mounts if not m.get("readOnly")} == {
        *WRITTEN,
        "/var/lib/kubelet/plugins_registry",
        *(f"/var/lib/kubelet/plugins/{driver}" for driver in (GPU_DRIVER, FABRIC_DRIVER)),
    }


def test_every_path_of_the_host_and_every_capability_is_explained_where_it_stands() -> None:
    for path in KUBERNETES.rglob("daemonset.yaml"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            is_volume = (
                re.fullmatch(r" +- name: [a-z-]+(  #.*)?", line) and "hostPath" in lines[number + 1]
            )
            is_capability = re.fullmatch(r" +- [A-Z_]+(  #.*)?", line)
            if is_volume or is_capability:
                above = lines[number - 4 : number]  # those before it may share a comment
                assert "#" in line or any("#" in other for other in above), (path, line)


if not os.geteuid():  # only root has capabilities to give up

    @pytest.mark.parametrize("missing", ["none", "SYS_PTRACE", "DAC_READ_SEARCH"])
    def test_another_users_open_device_is_seen_with_the_agents_capabilities_and_not_without(
        missing: str,
    ) -> None:
        capabilities = container(overlay_named("dra"))["securityContext"]["capabilities"]["add"]
        kept = [f"+{name.lower()}" for name in capabilities if name != missing]
        look = (
            "import os, sys; from pathlib import Path; from kata_gpu.host import procfs; "
            "found = procfs.uses(Path('/proc'), {os.makedev(1, 5)}); "
            "print(any(use.pid == int(sys.argv[1]) for use in found))"
        )
        hold = "import sys; file = open('/dev/zero'); print('open', flush=True); sys.stdin.read()"
        with subprocess.Popen(
            ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-Ic", hold],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            drop = f"-all,{','.join(kept)}"
            argv = [
                "setpriv",
                f"--bounding-set={drop}",
                "--no-new-privs",
                sys.executable,
                "-c",
                look,
            ]
            done = subprocess.run(
                [*argv, str(holder.pid)], capture_output=True, text=True, check=True
            )
            holder.communicate("")
        assert done.stdout.strip() == str(missing == "none")


# Running


def test_the_next_agent_waits_beside_the_one_that_it_replaces(overlay: list[Document]) -> None:
    spec = objects.named(overlay, "DaemonSet", "kata-gpu")["spec"]
    assert spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["minReadySeconds"] > 0
    (one,) = spec["template"]["spec"]["containers"]
    assert "--wait" in one["args"]


def test_an_admin_says_where_it_runs(overlay: list[Document]) -> None:
    assert objects.pod(overlay)["nodeSelector"] == {"kata-gpu.io/enabled": "true"}


def test_the_agent_sees_every_process_of_the_host(overlay: list[Document]) -> None:
    assert objects.pod(overlay)["hostPID"] is True


def test_the_probes_and_the_arguments_are_command_lines_of_ours(overlay: list[Document]) -> None:
    one = container(overlay)
    probes: list[Any] = [one[name]["exec"]["command"] for name in ("startupProbe", "livenessProbe")]
    for command in (*probes, ["kata-gpu", *one["args"]]):
        assert command[0] == "kata-gpu"
        assert parser.build(command[1]).parse_args(command[1:]).verb  # else it exits


def test_the_image_is_of_this_version(overlay: list[Document]) -> None:
    images = {one["image"] for one in containers(overlay)}
    assert images == {f"kata-gpu:{kata_gpu.__version__}"}


def test_the_node_and_the_pod_are_told_by_the_environment(overlay: list[Document]) -> None:
    told = {
        variable["name"]: variable["valueFrom"]["fieldRef"]["fieldPath"]
        for variable in container(overlay)["env"]
    }
    assert told == {"NODE_NAME": "spec.nodeName", "POD_UID": "metadata.uid"}
