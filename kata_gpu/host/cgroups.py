"""Which container, pod and service a process belongs to, from the names of its control groups.

containerd, CRI-O and Docker name a container's group by its 64 hex digits, in v1 and v2,
with systemd and without; kubelet names the pod's by its uid, with dashes or underscores. A
static pod's uid is 32 hex digits. The outermost name counts: a container can name the
groups inside its own as it likes.

Source: Kubernetes pkg/kubelet/cm/cgroup_manager_linux.go; pkg/kubelet/kuberuntime/helpers.go.
"""

import os
import re
from pathlib import Path
from typing import Final

_CONTAINER: Final = re.compile(r"(?<![0-9a-z])[0-9a-f]{64}(?![0-9a-z])")
_POD: Final = re.compile(
    r"(?<![0-9a-z])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-z])"
)
_SERVICE: Final = re.compile(
    r"^[0-9]+:(?:name=systemd)?:/(?:\.\./)*(?:[^/\n]+\.slice/)*([^/\n]+\.service)(?:/|$)",
    re.MULTILINE,
)
_LOGS: Final = re.compile(r"([a-z0-9-]{1,63})_([a-z0-9.-]{1,253})_([0-9a-f-]{32,36})")


def container(cgroups: str) -> str | None:
    """Return the id of the container, given a process's /proc/PID/cgroup; None outside one."""
    match = _CONTAINER.search(cgroups)
    return None if match is None else match[0]


def pod_uid(cgroups: str) -> str | None:
    """Return the uid of the pod as the API server writes it; None outside one."""
    match = _POD.search(cgroups)
    return None if match is None else match[1].replace("_", "-")


def service(cgroups: str) -> str | None:
    """Return the service of the host's systemd that a process belongs to; None for none.

    A user's own manager is a service, and those below it are its own affair.
    """
    match = _SERVICE.search(cgroups)
    return None if match is None else match[1]


def pod_names(root: Path) -> dict[str, tuple[str, str]]:
    """Return the namespace and name of each pod that kubelet keeps logs of, by uid."""
    try:
        folders = os.listdir(root / "var/log/pods")
    except OSError:  # no kubelet, or not ours to see
        return {}
    matches = (_LOGS.fullmatch(folder) for folder in folders)
    return {match[3]: (match[1], match[2]) for match in matches if match is not None}
