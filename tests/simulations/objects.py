"""Kubernetes objects as short calls, for scenarios and tests."""

from typing import Any, Final

from kata_gpu.settings.manifests.documents import Document

Tree = dict[str, Any]

GPU: Final = "gpu.kata-passthrough.io"
FABRIC: Final = "fabric.kata-passthrough.io"
NUMA: Final = "resource.kubernetes.io/numaNode"
DRA: Final = "resource.k8s.io/v1"


def tree(version: str, kind: str, name: str, **rest: Any) -> Tree:
    metadata = {"name": name, **rest.pop("metadata", {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def device(name: str, *, taints: tuple[str, ...] = (), **attributes: bool | int | str) -> Tree:
    """Return a device; a taint is written as ``key=value:Effect``."""
    made: Tree = {"name": name, "attributes": {}}
    for key, value in attributes.items():
        kind = {bool: "bool", int: "int", str: "string"}[type(value)]
        made["attributes"][NUMA if key == "numa" else key] = {kind: value}
    if taints:
        made["taints"] = [_taint(text) for text in taints]
    return made


def _taint(text: str) -> Tree:
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "value": value, "effect": effect}


def gpus(count: int, **attributes: Any) -> list[Tree]:
    return [device(f"gpu-{number}", **attributes) for number in range(count)]


def slice_(node: str, devices: list[Tree], *, driver: str = GPU, **spec: Any) -> Tree:
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1, **spec.pop("pool", {})}
    name = spec.pop("name", f"{node}-{driver}")
    body = {"driver": driver, "pool": pool, "nodeName": node, "devices": devices, **spec}
    return tree(DRA, "ResourceSlice", name, spec=body)


def class_(
    name: str = "kata-gpu", expression: str = f"device.driver == '{GPU}'", **spec: Any
) -> Tree:
    selectors = [{"cel": {"expression": expression}}]
    return tree(DRA, "DeviceClass", name, spec={"selectors": selectors, **spec})


def exactly(name: str = "gpu", class_name: str = "kata-gpu", *selectors: str, **more: Any) -> Tree:
    body: Tree = {"deviceClassName": class_name, **more}
    if selectors:
        body["selectors"] = [{"cel": {"expression": text}} for text in selectors]
    return {"name": name, "exactly": body}


def first_of(name: str, *choices: Tree) -> Tree:
    return {
        "name": name,
        "firstAvailable": [{"name": c["name"], **c["exactly"]} for c in choices],
    }


def template(name: str, *requests: Tree, constraints: tuple[Tree, ...] = ()) -> Tree:
    devices: Tree = {"requests": list(requests)}
    if constraints:
        devices["constraints"] = list(constraints)
    return tree(DRA, "ResourceClaimTemplate", name, spec={"spec": {"devices": devices}})


def claim(
    name: str, *requests: Tree, has: tuple[tuple[str, str], ...] = (), **metadata: Any
) -> Tree:
    """Return a claim; *has* are pools and devices that it has been given."""
    made = tree(
        DRA,
        "ResourceClaim",
        name,
        spec={"devices": {"requests": list(requests)}},
        metadata=metadata,
    )
    if has:
        results = [
            {"request": "gpu", "driver": GPU, "pool": pool, "device": name} for pool, name in has
        ]
        made["status"] = {"allocation": {"devices": {"results": results}}}
    return made


def spec(
    *templates: str, shared: tuple[str, ...] = (), resources: Tree | None = None, **more: Any
) -> Tree:
    """Return a pod's spec with a claim of each template, and those that are shared."""
    claims = [{"name": name, "resourceClaimTemplateName": name} for name in templates]
    claims += [{"name": name, "resourceClaimName": name} for name in shared]
    container: Tree = {"name": "main", "image": "example.com/main"}
    if resources:
        container["resources"] = {"limits": resources}
    return {"containers": [container], "resourceClaims": claims, **more}


def pod(name: str, *templates: str, metadata: Tree | None = None, **more: Any) -> Tree:
    return tree("v1", "Pod", name, spec=spec(*templates, **more), metadata=metadata or {})


def deployment(name: str, replicas: int, body: Tree, **metadata: Any) -> Tree:
    made = {"metadata": metadata, "spec": body}
    return tree("apps/v1", "Deployment", name, spec={"replicas": replicas, "template": made})


def job(name: str, count: int, body: Tree, *, minimum: int | None = None, queue: str = "") -> Tree:
    """Return a Job for KAI, of whose pods *minimum* start together."""
    metadata: Tree = {"labels": {"kai.scheduler/queue": queue}}
    if minimum is not None:
        metadata["annotations"] = {
            "kai.scheduler/batch-min-member": str(minimum),
            "kai.scheduler/topology": "racks",
        }
    spec_ = {"completions": count, "parallelism": count, "template": {"spec": body}}
    return tree("batch/v1", "Job", name, metadata=metadata, spec=spec_)


def node(name: str, resources: Tree | None = None, **more: Any) -> Tree:
    labels = more.pop("labels", {})
    status = {} if resources is None else {"allocatable": resources}
    return tree("v1", "Node", name, metadata={"labels": labels}, spec=more, status=status)


def kai(queue: str, group: str | None = None, subgroup: str | None = None) -> Tree:
    """Return a pod's metadata for KAI."""
    labels = {"kai.scheduler/queue": queue}
    if subgroup:
        labels["kai.scheduler/subgroup-name"] = subgroup
    annotations = {"pod-group-name": group} if group else {}
    return {"labels": labels, "annotations": annotations}


def gang(name: str, minimum: int, **more: Any) -> Tree:
    body = {"minMember": minimum, **more}
    return tree("scheduling.run.ai/v2alpha2", "PodGroup", name, spec=body)


def queue(name: str, parent: str = "", **resources: Tree) -> Tree:
    body: Tree = {"resources": resources}
    if parent:
        body["parentQueue"] = parent
    return tree("scheduling.run.ai/v2", "Queue", name, spec=body)


def documents(*trees: Tree) -> list[Document]:
    return [Document(f"document {number}", found) for number, found in enumerate(trees, 1)]
