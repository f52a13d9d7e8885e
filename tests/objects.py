"""Objects of the cluster that we ship, and whether an API server would know their fields.

Kubernetes's own are held to the client's models, which forbid what they do not know. KAI's are
held to what is written here.

Source: KAI, deployments/kai-scheduler/crds (scheduling.run.ai v2 and v2alpha2; kai.scheduler
v1alpha1).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from tests import kustomize
from tests.kustomize import Document

ROOT: Final = Path(__file__).parents[1]
KUBERNETES: Final = ROOT / "configs/kubernetes"
EXAMPLES: Final = ROOT / "configs/examples"
CLASSES: Final = ROOT / "runtimeclass"
OVERLAYS: Final = ("device-plugin", "dra", "confidential")
COMPONENTS: Final = ("device-plugin", "dra", "nfd", "host-services", "kai")

_RBAC: Final = "rbac.authorization.k8s.io/v1"
_VERSIONS: Final = {
    **dict.fromkeys(("Namespace", "ServiceAccount", "ConfigMap", "Pod"), "v1"),
    **dict.fromkeys(("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"), _RBAC),
    **dict.fromkeys(("DaemonSet", "Deployment"), "apps/v1"),
    "Job": "batch/v1",
    "RuntimeClass": "node.k8s.io/v1",
    **dict.fromkeys(("DeviceClass", "ResourceClaimTemplate"), "resource.k8s.io/v1"),
    **dict.fromkeys(
        ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
        "admissionregistration.k8s.io/v1",
    ),
    "Queue": "scheduling.run.ai/v2",
    "PodGroup": "scheduling.run.ai/v2alpha2",
    "Topology": "kai.scheduler/v1alpha1",
}
_SUBDOMAIN: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_LABEL_NAME: Final = re.compile(
    r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII
)
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)


class _Known(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Share(_Known):
    quota: float
    limit: float
    overQuotaWeight: float  # noqa: N815 - KAI's word


class _Shares(_Known):
    cpu: _Share
    memory: _Share
    gpu: _Share


class Queue(_Known):
    displayName: str  # noqa: N815
    parentQueue: str | None = None  # noqa: N815
    priority: int | None = None
    resources: _Shares


class _Placement(_Known):
    topology: str
    requiredTopologyLevel: str | None = None  # noqa: N815
    preferredTopologyLevel: str | None = None  # noqa: N815


class PodGroup(_Known):
    queue: str
    minMember: Annotated[int, Field(ge=1)]  # noqa: N815
    topologyConstraint: _Placement | None = None  # noqa: N815


class _Level(_Known):
    nodeLabel: Annotated[str, Field(max_length=316)]  # noqa: N815


class Topology(_Known):
    levels: Annotated[list[_Level], Field(min_length=1, max_length=16)]


_KAI: Final[dict[str, type[_Known]]] = {
    "Queue": Queue,
    "PodGroup": PodGroup,
    "Topology": Topology,
}


def check(document: Document) -> None:
    """Refuse an object that an API server would refuse by its fields or names."""
    kind = document["kind"]
    assert document["apiVersion"] == _VERSIONS[kind]
    if kind in _KAI:
        _KAI[kind].model_validate(document["spec"])
    else:
        _model(kind).model_validate(document)
    _check_metadata(document["metadata"], kind)


def _model(kind: str) -> type[BaseModel]:
    from kubernetes import client  # noqa: PLC0415 - a second that only this needs

    model: type[BaseModel] = getattr(client, f"V1{kind}")
    return model


def _check_metadata(metadata: Document, kind: str) -> None:
    is_role = kind.endswith(("Role", "RoleBinding"))
    assert is_role or _SUBDOMAIN.fullmatch(metadata["name"]), metadata["name"]
    for key, value in metadata.get("labels", {}).items():
        assert _LABEL_NAME.fullmatch(key), key
        assert _LABEL_VALUE.fullmatch(value), value
    for key in metadata.get("annotations", {}):
        assert _LABEL_NAME.fullmatch(key), key


def overlay(name: str) -> list[Document]:
    """Return the objects of an overlay."""
    return kustomize.build(KUBERNETES / "overlays" / name)


def everything(folder: Path) -> list[Document]:
    """Return the base with every component, made in an empty *folder* beside them."""
    lines = [
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        f"resources: [{KUBERNETES / 'base'}]",
        f"components: [{', '.join(str(KUBERNETES / 'components' / c) for c in COMPONENTS)}]",
    ]
    (folder / "kustomization.yaml").write_text("\n".join(lines))
    return kustomize.build(folder)


def of_kind(found: list[Document], kind: str) -> list[Document]:
    """Return the objects of one kind."""
    return [document for document in found if document["kind"] == kind]


def named(found: list[Document], kind: str, name: str) -> Document:
    """Return the one object of a kind and name."""
    (document,) = [d for d in of_kind(found, kind) if d["metadata"]["name"] == name]
    return document


def pod(found: list[Document]) -> Document:
    """Return the specification of the agent's pod."""
    spec: Document = named(found, "DaemonSet", "kata-gpu")["spec"]["template"]["spec"]
    return spec


def shipped() -> Iterator[tuple[Path, Document]]:
    """Yield every object of a file that is no part of a kustomization."""
    for folder in (EXAMPLES, CLASSES):
        for path in sorted(folder.glob("*.yaml")):
            for document in kustomize.documents(path):
                yield path, document


def pod_templates(document: Document) -> list[Document]:
    """Return the pods that an object is or makes: each with metadata and spec."""
    match document["kind"]:
        case "Pod":
            return [document]
        case "Deployment" | "Job" | "DaemonSet":
            return [document["spec"]["template"]]
        case _:
            return []


def requests(document: Document) -> list[Document]:
    """Return what a ResourceClaimTemplate asks for, each alternative by itself."""
    if document["kind"] != "ResourceClaimTemplate":
        return []
    found: list[Any] = []
    for request in document["spec"]["spec"]["devices"]["requests"]:
        found += request.get("firstAvailable", []) or [request["exactly"]]
    return found
