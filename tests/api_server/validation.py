"""What an API server has against an object: the rules of Kubernetes 1.36 and 1.37.

Source: pkg/apis/resource/validation/validation.go, pkg/apis/core/validation/events.go and
apimachinery's validation of names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

Json = dict[str, Any]

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUALIFIED: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_SEMVER: Final = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?",
    re.ASCII,
)
_QUANTITY: Final = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII
)
_EFFECTS: Final = ("None", "NoSchedule", "NoExecute")
_STANDARD: Final = {
    "resource.kubernetes.io/pcieRoot": ("string", r"pci[0-9a-f]{4,8}:[0-9a-f]{2}"),
    "resource.kubernetes.io/pciBusID": (
        "string",
        r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]",
    ),
    "resource.kubernetes.io/numaNode": ("int", r"\d+"),
}


def is_label(text: object) -> bool:
    return isinstance(text, str) and len(text) <= 63 and bool(_LABEL.fullmatch(text))


def is_subdomain(text: object, longest: int = 253) -> bool:
    return isinstance(text, str) and len(text) <= longest and bool(_SUBDOMAIN.fullmatch(text))


def is_label_name(text: object) -> bool:
    """Tell whether it is a label's key: ``[domain/]name``."""
    if not isinstance(text, str) or text.count("/") > 1:
        return False
    domain, slash, name = text.rpartition("/")
    return (
        (not slash or is_subdomain(domain)) and len(name) <= 63 and bool(_QUALIFIED.fullmatch(name))
    )


def is_label_value(text: object) -> bool:
    if not isinstance(text, str) or len(text) > 63:
        return False
    return text == "" or bool(_QUALIFIED.fullmatch(text))


def label_faults(labels: Mapping[str, object]) -> Iterator[str]:
    for key, value in labels.items():
        if not is_label_name(key):
            yield f"metadata.labels: Invalid value: {key!r}"
        if not is_label_value(value):
            yield f"metadata.labels[{key}]: Invalid value: {value!r}"


def slice_faults(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return all that is wrong with a ResourceSlice."""
    spec = found.get("spec") or {}
    return (*_metadata_faults(found), *_spec_faults(spec), *_content_faults(spec))


def _metadata_faults(found: Mapping[str, Any]) -> Iterator[str]:
    if (found.get("apiVersion"), found.get("kind")) != ("resource.k8s.io/v1", "ResourceSlice"):
        yield "apiVersion, kind: not a resource.k8s.io/v1 ResourceSlice"
    metadata = found.get("metadata") or {}
    name, prefix = metadata.get("name"), metadata.get("generateName")
    if not name and not prefix:
        yield "metadata.name: Required value: name or generateName is required"
    if name and not is_subdomain(name):
        yield f"metadata.name: Invalid value: {name!r}"
    if prefix and not (len(prefix) <= 253 and is_subdomain(f"{prefix[:58]}x")):
        yield f"metadata.generateName: Invalid value: {prefix!r}"
    for owner in metadata.get("ownerReferences") or ():
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield f"metadata.ownerReferences.{key}: Required value"


def _spec_faults(spec: Mapping[str, Any]) -> Iterator[str]:
    if not is_subdomain(spec.get("driver"), 63):
        yield f"spec.driver: Invalid value: {spec.get('driver')!r}"
    pool = spec.get("pool") or {}
    name = pool.get("name")
    if not isinstance(name, str) or len(name) > 253 or not all(map(is_subdomain, name.split("/"))):
        yield f"spec.pool.name: Invalid value: {name!r}"
    if not 0 <= pool.get("generation", 0) < 2**63:
        yield "spec.pool.generation: must be greater than or equal to zero, and 64 bits"
    if pool.get("resourceSliceCount", 0) <= 0:
        yield "spec.pool.resourceSliceCount: must be greater than zero"
    wheres = ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection")
    if sum(bool(spec.get(where)) for where in wheres) != 1:
        yield f"spec: exactly one of {', '.join(wheres)} is required"
    if spec.get("nodeName") and not is_subdomain(spec["nodeName"]):
        yield f"spec.nodeName: Invalid value: {spec['nodeName']!r}"


def _content_faults(spec: Mapping[str, Any]) -> Iterator[str]:
    devices, sets = spec.get("devices") or [], spec.get("sharedCounters") or []
    if devices and sets:
        yield "spec: only one of devices and sharedCounters may be set"
    is_special = any(d.get("taints") or d.get("consumesCounters") for d in devices)
    if len(devices) > (64 if is_special else 128):
        yield f"spec.devices: Too many: {len(devices)}"
    if len(sets) > 8:
        yield f"spec.sharedCounters: Too many: {len(sets)}"
    yield from _duplicates("spec.devices", [device.get("name") for device in devices])
    yield from _duplicates("spec.sharedCounters", [found.get("name") for found in sets])
    for index, device in enumerate(devices):
        for fault in _device_faults(device):
            yield f"spec.devices[{index}].{fault}"
    for index, found in enumerate(sets):
        for fault in _set_faults(found):
            yield f"spec.sharedCounters[{index}].{fault}"


def _duplicates(where: str, names: Sequence[object]) -> Iterator[str]:
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"{where}: Duplicate value: {name!r}"


def _device_faults(device: Mapping[str, Any]) -> Iterator[str]:
    if not is_label(device.get("name")):
        yield f"name: Invalid value: {device.get('name')!r}"
    attributes, capacity = device.get("attributes") or {}, device.get("capacity") or {}
    if len(attributes) + len(capacity) > 32:
        yield f"attributes: Too many: {len(attributes) + len(capacity)}, with capacity"
    for name, value in attributes.items():
        yield from _name_faults("attributes", name)
        yield from _attribute_faults(name, value)
    for name, value in capacity.items():
        yield from _name_faults("capacity", name)
        yield from _quantity_faults(f"capacity[{name}]", value, {"value"})
    taints = device.get("taints") or []
    if len(taints) > 16:
        yield f"taints: Too many: {len(taints)}"
    for taint in taints:
        yield from _taint_faults(taint)
    yield from _consumption_faults(device.get("consumesCounters") or [])


def _name_faults(where: str, name: str) -> Iterator[str]:
    domain, slash, identifier = name.rpartition("/")
    if slash and not is_subdomain(domain, 63):
        yield f"{where}: Invalid value: {name!r}: domain"
    if len(identifier) > 32 or not _IDENTIFIER.fullmatch(identifier):
        yield f"{where}: Invalid value: {name!r}: C identifier of at most 32 characters"


def _attribute_faults(name: str, value: Mapping[str, Any]) -> Iterator[str]:
    if len(value) != 1 or not set(value) <= {"bool", "int", "string", "version"}:
        yield f"attributes[{name}]: exactly one value must be specified, got {sorted(value)}"
        return
    kind: str = next(iter(value))
    held: Any = value[kind]
    types = {"bool": "bool", "int": "int", "string": "str", "version": "str"}
    if type(held).__name__ != types[kind]:
        yield f"attributes[{name}].{kind}: Invalid type: {held!r}"
    elif kind == "int" and not -(2**63) <= held < 2**63:
        yield f"attributes[{name}].int: Invalid value: {held}"
    elif kind in {"string", "version"} and len(held.encode()) > 64:
        yield f"attributes[{name}].{kind}: Too long: may not be more than 64 bytes"
    elif kind == "version" and not _SEMVER.fullmatch(held):
        yield f"attributes[{name}].version: Invalid value: {held!r}: must be semver 2.0.0"
    if name in _STANDARD:
        wanted, pattern = _STANDARD[name]
        if kind != wanted or not re.fullmatch(pattern, str(held)):
            yield f"attributes[{name}]: Invalid value: {value}: not as the standard has it"


def _quantity_faults(where: str, value: Mapping[str, Any], allowed: set[str]) -> Iterator[str]:
    held = value.get("value")
    if not isinstance(held, str) or not _QUANTITY.fullmatch(held):
        yield f"{where}.value: Invalid value: {held!r}: must be a quantity"
    if set(value) - allowed:
        yield f"{where}: unknown fields {sorted(set(value) - allowed)}"


def _taint_faults(taint: Mapping[str, Any]) -> Iterator[str]:
    if not is_label_name(taint.get("key")):
        yield f"taints.key: Invalid value: {taint.get('key')!r}"
    if not is_label_value(taint.get("value", "")):
        yield f"taints.value: Invalid value: {taint.get('value')!r}"
    if taint.get("effect") not in _EFFECTS:
        yield f"taints.effect: Unsupported value: {taint.get('effect')!r}"


def _consumption_faults(consumed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(consumed) > 2:
        yield f"consumesCounters: Too many: {len(consumed)}"
    yield from _duplicates("consumesCounters", [found.get("counterSet") for found in consumed])
    for found in consumed:
        if not is_label(found.get("counterSet")):
            yield f"consumesCounters.counterSet: Invalid value: {found.get('counterSet')!r}"
        yield from _counter_faults("consumesCounters", found.get("counters") or {})


def _set_faults(found: Mapping[str, Any]) -> Iterator[str]:
    if not is_label(found.get("name")):
        yield f"name: Invalid value: {found.get('name')!r}"
    yield from _counter_faults("counters", found.get("counters") or {})


def _counter_faults(where: str, counters: Mapping[str, Any]) -> Iterator[str]:
    if not counters:
        yield f"{where}.counters: Required value"
    if len(counters) > 32:
        yield f"{where}.counters: Too many: {len(counters)}"
    for name, value in counters.items():
        if not is_label(name):
            yield f"{where}.counters: Invalid value: {name!r}"
        yield from _quantity_faults(f"{where}.counters[{name}]", value, {"value"})


def pool_faults(slices: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return why an allocator would pass over the pool that these slices are."""
    pools = [found["spec"]["pool"] for found in slices]
    faults = []
    if {pool["resourceSliceCount"] for pool in pools} != {len(slices)}:
        faults.append("the number of slices is not resourceSliceCount")
    if len({pool["generation"] for pool in pools}) > 1:
        faults.append("there is more than one generation")
    sets = {
        found["name"]: found["counters"]
        for body in slices
        for found in body["spec"].get("sharedCounters") or ()
    }
    devices = [device for body in slices for device in body["spec"].get("devices") or ()]
    faults += _duplicates("the pool's devices", [device["name"] for device in devices])
    for device in devices:
        for taken in device.get("consumesCounters") or ():
            unknown = set(taken["counters"]) - set(sets.get(taken["counterSet"], ()))
            faults += [f"{device['name']}: counter {name} is not defined" for name in unknown]
    return tuple(faults)


_EVENT_WORDS: Final = ("reportingController", "reportingInstance", "action", "reason")
_EVENT_WORD_MAX: Final = 128
_EVENT_FIELDS: Final = {
    *("apiVersion", "kind", "metadata", "eventTime", "series", "reportingController"),
    *("reportingInstance", "action", "reason", "regarding", "related", "note", "type"),
}


def event_faults(event: Mapping[str, Any]) -> tuple[str, ...]:
    """Return all that is wrong with an events.k8s.io/v1 Event that is to be created."""
    faults = [f"{key}: must be empty or unknown" for key in sorted(set(event) - _EVENT_FIELDS)]
    regarding = event.get("regarding") or {}
    metadata = event.get("metadata") or {}
    if not is_subdomain(metadata.get("name")):
        faults.append("metadata.name: Invalid value")
    if metadata.get("namespace") != (regarding.get("namespace") or "default"):
        faults.append("regarding.namespace: does not match event.namespace")
    if not _is_micro_time(event.get("eventTime")):
        faults.append("eventTime: Required value")
    if event.get("type") not in {"Normal", "Warning"}:
        faults.append(f"type: Invalid value: {event.get('type')!r}")
    if not is_label_name(event.get("reportingController")):
        faults.append("reportingController: must be a qualified name")
    faults += [
        f"{key}: can have at most {_EVENT_WORD_MAX} characters, and not none"
        for key in _EVENT_WORDS
        if not 0 < len(event.get(key) or "") <= _EVENT_WORD_MAX
    ]
    if len((event.get("note") or "").encode()) > 1024:
        faults.append("note: can have at most 1024 characters")
    return (*faults, *_series_faults(event.get("series")))


def _series_faults(series: Mapping[str, Any] | None) -> Iterator[str]:
    if series is None:
        return
    if series.get("count", 0) <= 1:
        yield "series.count: should be greater than 1"
    if not _is_micro_time(series.get("lastObservedTime")):
        yield "series.lastObservedTime: Required value"


def event_update_faults(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what an update of an Event may not change: all but its series."""
    changed = sorted(
        key
        for key in {*before, *after} - {"series", "metadata"}
        if before.get(key) != after.get(key)
    )
    return (*(f"{k}: field is immutable" for k in changed), *_series_faults(after.get("series")))


def _is_micro_time(text: object) -> bool:
    if not isinstance(text, str) or not re.fullmatch(r"[-0-9]{10}T[0-9:]{8}\.\d{6}Z", text):
        return False
    return bool(datetime.fromisoformat(text.replace("Z", "+00:00")))
