"""A process's control groups name its container and pod, in every runtime's way."""

from pathlib import Path

import pytest

from kata_gpu.host import cgroups

ID = "3f" * 32
OTHER = "a0" * 32
UID = "0b1c2d3e-4f50-4a6b-8c7d-9e0f1a2b3c4d"
UNDERSCORES = UID.replace("-", "_")
STATIC = "9f" * 16
KUBEPODS = "/kubepods.slice/kubepods-burstable.slice"


@pytest.mark.parametrize(
    "text",
    [
        f"0::{KUBEPODS}/kubepods-burstable-pod{UNDERSCORES}.slice/cri-containerd-{ID}.scope\n",
        f"0::{KUBEPODS}/kubepods-burstable-pod{UNDERSCORES}.slice/crio-{ID}.scope/container\n",
        f"0::{KUBEPODS}/kubepods-burstable-pod{UNDERSCORES}.slice/docker-{ID}.scope\n",
        f"0::/kubepods/besteffort/pod{UID}/{ID}\n",
        f"0::/../../../kubepods/pod{UID}/{ID}\n",
        f"12:pids:/kubepods/burstable/pod{UID}/{ID}\n1:name=systemd:/kubepods/pod{UID}/{ID}\n",
        f"11:devices:/system.slice/containerd.service/kubepods-burstable-pod{UNDERSCORES}.slice"
        f":cri-containerd:{ID}\n0::/system.slice/containerd.service\n",
        f"0::/kubepods/pod{UID}/kata_{ID}\n",
        f"0::/kubepods/pod{UID}/{ID}/docker/{OTHER}/kubepods/pod{UID.replace('0', '1')}\n",
    ],
    ids=[
        "containerd",
        "crio",
        "docker",
        "cgroupfs",
        "namespace",
        "v1",
        "v1 systemd",
        "kata",
        "own",
    ],
)
def test_container_and_pod_are_found_in_the_names(text: str) -> None:
    assert (cgroups.container(text), cgroups.pod_uid(text)) == (ID, UID)


def test_a_static_pod_has_a_uid_without_dashes() -> None:
    assert cgroups.pod_uid(f"0::/kubepods/burstable/pod{STATIC}/{ID}\n") == STATIC


def test_a_container_of_docker_is_of_no_pod() -> None:
    text = f"0::/system.slice/docker-{ID}.scope\n"
    assert (cgroups.container(text), cgroups.pod_uid(text)) == (ID, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0::/\n",
        "0::/user.slice/user-1000.slice/session-2.scope\n",
        f"0::/x/{ID}0\n",
        f"0::/x/{ID.upper()}\n",
        f"0::/tripod{UID}x\n",
    ],
    ids=["ended", "root", "session", "too long", "upper", "other word"],
)
def test_what_is_no_container_s_name_is_none(text: str) -> None:
    assert (cgroups.container(text), cgroups.pod_uid(text)) == (None, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0::/system.slice/nvidia-dcgm.service\n", "nvidia-dcgm.service"),
        ("0::/system.slice/nvidia-dcgm.service/payload\n", "nvidia-dcgm.service"),
        ("0::/system.slice/system-a.slice/a@1.service\n", "a@1.service"),
        ("0::/../../../system.slice/nvidia-dcgm.service\n", "nvidia-dcgm.service"),
        ("3:pids:/x\n1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/a.service\n", "user@7.service"),
    ],
    ids=["plain", "own group", "instance", "namespace", "v1", "a user's"],
)
def test_the_outermost_service_is_the_host_s(text: str, name: str) -> None:
    assert cgroups.service(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0::/\n",
        "3:pids:/system.slice/a.service\n",
        f"0::/system.slice/docker-{ID}.scope/system.slice/a.service\n",
        f"0::/kubepods/pod{UID}/{ID}/system.slice/a.service\n",
        f"0::/../cri-containerd-{ID}.scope/a.service\n",
        "0::/system.slice/a.socket\n",
        "0::/system.slice/a.services\n",
    ],
    ids=["ended", "root", "v1 other", "docker", "cgroupfs", "namespace", "socket", "longer"],
)
def test_a_container_cannot_name_itself_a_service_of_the_host(text: str) -> None:
    assert cgroups.service(text) is None


def test_kubelet_s_log_folders_name_the_pods(tmp_path: Path) -> None:
    for folder in (f"ml_train-0_{UID}", f"kube-system_etcd-node1.example_{STATIC}", "lost+found"):
        (tmp_path / "var/log/pods" / folder).mkdir(parents=True)
    assert cgroups.pod_names(tmp_path) == {
        UID: ("ml", "train-0"),
        STATIC: ("kube-system", "etcd-node1.example"),
    }


def test_a_log_folder_that_kubelet_would_not_name_so_is_passed_over(tmp_path: Path) -> None:
    for folder in (f"ml_\x1b[2J_{UID}", f"_x_{UID}", f"a_b_c_{UID}", f"ml_train_{UID}0"):
        (tmp_path / "var/log/pods" / folder).mkdir(parents=True)
    assert cgroups.pod_names(tmp_path) == {}


def test_without_kubelet_no_pod_has_a_name(tmp_path: Path) -> None:
    assert cgroups.pod_names(tmp_path) == {}
