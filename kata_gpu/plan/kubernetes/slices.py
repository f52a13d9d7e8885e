"""ResourceSlices: what the scheduler may choose from on this node, for one driver.

All slices of a node and driver are one pool. One slice is one write that nobody sees half of,
so there is one unless counters are shared or there are more than 64 devices. A pool without
devices is published too, as an empty slice: "none" is an answer, silence is not.

Source: resource.k8s.io/v1, ResourceSlice; the generation is that of
k8s.io/dynamic-resource-allocation.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kata_gpu.model.kubernetes import Attribute, Device, Door, Taint
from kata_gpu.model.slices import NodeIdentity, Object, SliceChanges, is_of
from kata_gpu.plan.kubernetes import counters
from kata_gpu.plan.kubernetes.names import DNS_LABEL, label_value

API_VERSION: Final = "resource.k8s.io/v1"
DEVICES_MAX: Final = 64
"""Per slice: 128 as long as no device has a taint or takes a counter, which may come."""

FIELDS_MAX: Final = 32
"""Attributes and capacities of a device, together."""

TAINTS_MAX: Final = 16
TEXT_MAX_BYTES: Final = 64
_DOMAIN: Final = re.compile(
    r"(?=.{1,63}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_STANDARD: Final = "resource.kubernetes.io/"
_INT64: Final = range(-(2**63), 2**63)
_INDEX: Final = re.compile(r"([0-9a-f]{5})-")
_PREFIX_MAX: Final = 58
"""Characters of a ``generateName`` that the server keeps; it refuses one of more than 253."""

_GENERATIONS: Final = range(2**62)
"""Those after which enough come; whoever counts reaches no other."""

_OTHERS: Final = ("labels", "annotations", "finalizers")
"""What others may have put on a slice of ours."""

_NUMBERS: Final = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(.*)", re.DOTALL)
_SEMVER_REST: Final = re.compile(
    r"(-(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?"
    r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
_UNITS: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_QUANTITY: Final = re.compile(r"(\d+)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?")
_FACTORS: Final = {
    **{unit: 1024**power for power, unit in enumerate(_UNITS)},
    **{unit: 1000**power for power, unit in enumerate("kMGTPE", 1)},
}


def slices(
    driver: str, node: NodeIdentity, devices: Sequence[Device], generation: int
) -> tuple[Object, ...]:
    """Return the slices that the API server should have for *driver* on *node*.

    Devices of other drivers and doors are passed over, and so is one that the API has no way to
    describe: by its name, or because it takes too many counters. They come in the order of
    *devices*, in which a scheduler tries them.
    """
    named = list(_expressible(driver, devices))
    ours = counters.within_limits(named)
    shared = counters.share(ours)
    bodies = [
        dict[str, Any](devices=[_device(driver, device, shared) for device in part])
        for part in _parts(ours, DEVICES_MAX)
    ] or [{"devices": []}]
    bodies += [{"sharedCounters": list(part)} for part in _parts(shared.sets, counters.SETS_MAX)]
    pool = {"name": node.name, "generation": generation, "resourceSliceCount": len(bodies)}
    return tuple(
        {
            "apiVersion": API_VERSION,
            "kind": "ResourceSlice",
            "metadata": {
                "generateName": _prefix(index, driver, node),
                "ownerReferences": [_owner(node)],
            },
            "spec": {"driver": driver, "nodeName": node.name, "pool": pool, **body},
        }
        for index, body in enumerate(bodies)
    )


def _prefix(index: int, driver: str, node: NodeIdentity) -> str:
    return f"{index:05x}-{driver}-{node.name}"[: _PREFIX_MAX - 1].rstrip(".-") + "-"


def _expressible(driver: str, devices: Iterable[Device]) -> Iterator[Device]:
    seen: set[str] = set()
    for device in devices:
        is_ours = device.door is Door.DRA and device.driver == driver
        if is_ours and device.name not in seen and DNS_LABEL.fullmatch(device.name):
            seen.add(device.name)
            yield device


def _parts(whole: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def _owner(node: NodeIdentity) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "name": node.name,
        "uid": node.uid,
        "controller": True,
    }


def _device(driver: str, device: Device, shared: counters.Shared) -> Object:
    capacity = {
        name: {"value": quantity(size)}
        for name, size in sorted(device.capacity_bytes.items())[:FIELDS_MAX]
        if size in _INT64 and size >= 0 and _is_name(name)
    }
    taken = shared.consumed(device)
    found = {
        "name": device.name,
        "attributes": _attributes(driver, device, FIELDS_MAX - len(capacity)),
        "capacity": capacity,
        "consumesCounters": taken,
        "taints": [_taint(taint) for taint in _taints(device)],
    }
    return {key: value for key, value in found.items() if value}


def _attributes(driver: str, device: Device, number: int) -> dict[str, Object]:
    """Return as many as there may be: the standard ones first, the others by name."""
    named = {name.removeprefix(f"{driver}/"): value for name, value in device.attributes.items()}
    by_weight = sorted(named, key=lambda name: (not name.startswith(_STANDARD), name))
    found = ((name, attribute(name, named[name])) for name in by_weight if _is_name(name))
    return dict([(name, value) for name, value in found if value is not None][:number])


def _is_name(name: str) -> bool:
    domain, slash, identifier = name.rpartition("/")
    is_domain = bool(_DOMAIN.fullmatch(domain)) if slash else True
    return is_domain and bool(_IDENTIFIER.fullmatch(identifier))


def attribute(name: str, value: Attribute) -> Object | None:
    """Return a value as the API has it; None when it has none for it.

    The name decides what is a version, and not the value: selectors compare nodes. What is
    too long is cut, for it is there to be read.
    """
    if isinstance(value, bool):
        return {"bool": value}
    if isinstance(value, int):
        return {"int": value} if value in _INT64 else None
    if name.endswith(("Version", "/version")) or name == "version":
        version = semantic_version(value)
        return None if version is None else {"version": version}
    return {"string": _cut(value)}


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:TEXT_MAX_BYTES].decode(errors="ignore")


def semantic_version(text: str) -> str | None:
    """Return a version by the rules of SemVer 2.0.0; None when it is too far from one.

    Drivers and kernels have numbers with zeros before them, or but two: ``580.95.05``.
    """
    match = _NUMBERS.fullmatch(text[: TEXT_MAX_BYTES + 1])
    if match is None or not text.isascii():
        return None
    *numbers, rest = match.groups()
    if not _SEMVER_REST.fullmatch(rest):
        return None
    version = ".".join(str(int(number or 0)) for number in numbers) + rest
    return version if max(len(version), len(text)) <= TEXT_MAX_BYTES else None


def quantity(size: int) -> str:
    """Return a number of bytes in the form in which the API server keeps it."""
    power = 0
    while size and size % 1024 == 0 and power < len(_UNITS) - 1:
        size //= 1024
        power += 1
    return f"{size}{_UNITS[power]}"


def _taints(device: Device) -> list[Taint]:
    return sorted(set(device.taints), key=lambda t: (t.key, t.effect, t.value))[:TAINTS_MAX]


def _taint(taint: Taint) -> Object:
    value = label_value(taint.value)
    told = {"value": value} if value else {}
    return {"key": taint.key, **told, "effect": taint.effect.value}


def plan(
    driver: str, node: NodeIdentity, devices: Sequence[Device], stored: Sequence[Object]
) -> SliceChanges:
    """Return what turns the *stored* slices of this driver and node into the desired ones.

    A single slice that changed keeps its generation, for one write is atomic. Otherwise all
    are written with the next one: schedulers pass over a pool until they see all of it. What is
    of another driver, node or pool is left alone.
    """
    ours = [found for found in stored if is_of(found, driver, node.name)]
    current = max(filter(_GENERATIONS.__contains__, map(_generation, ours)), default=0)
    desired = slices(driver, node, devices, max(current, 1))
    kept, obsolete = _match(ours, len(desired), current)
    changed = [i for i, found in kept.items() if not is_same(found, desired[i])]
    is_atomic = len(changed) <= 1 and len(kept) == len(desired)
    is_shrinking = any(_generation(found) == current for found in obsolete)
    if not changed and is_atomic and not is_shrinking:
        return SliceChanges(deletes=obsolete)
    if ours and (not is_atomic or is_shrinking):
        desired = slices(driver, node, devices, current + 1)
        changed = list(kept)
    return SliceChanges(
        deletes=obsolete,
        replaces=tuple(_replacement(kept[i], desired[i]) for i in sorted(changed)),
        creates=tuple(body for i, body in enumerate(desired) if i not in kept),
    )


def _match(
    stored: Sequence[Object], number: int, generation: int
) -> tuple[dict[int, Object], tuple[Object, ...]]:
    """Return the stored slices by the index in their names, and those that none needs."""
    kept: dict[int, Object] = {}
    obsolete = []
    for found in sorted(stored, key=lambda found: str(found["metadata"]["name"])):
        match = _INDEX.match(str(found["metadata"]["name"]))
        index = int(match[1], 16) if match else number
        if index >= number or index in kept or _generation(found) != generation:
            obsolete.append(found)
        else:
            kept[index] = found
    return kept, tuple(obsolete)


def _generation(found: Object) -> int:
    return int(found["spec"]["pool"].get("generation", 0))  # 0 is not written


def _replacement(found: Object, desired: Object) -> Object:
    """Return *desired* for the place of *found*; a taint that stays keeps its time."""
    metadata = {key: found["metadata"][key] for key in ("name", "uid", "resourceVersion")}
    metadata |= {key: found["metadata"][key] for key in _OTHERS if key in found["metadata"]}
    owners = desired["metadata"]["ownerReferences"]
    spec = dict(desired["spec"])
    if spec.get("devices"):
        times = dict(_times(found))
        spec["devices"] = [_with_times(device, times) for device in spec["devices"]]
    return {**desired, "metadata": {**metadata, "ownerReferences": owners}, "spec": spec}


def _times(found: Object) -> Iterator[tuple[tuple[str, ...], object]]:
    for device in found["spec"].get("devices") or ():
        for taint in device.get("taints") or ():
            yield (device["name"], *_taint_id(taint)), taint.get("timeAdded")


def _taint_id(taint: Object) -> tuple[str, ...]:
    return tuple(str(taint.get(field) or "") for field in ("key", "value", "effect"))


def _with_times(device: Object, times: Mapping[tuple[str, ...], object]) -> Object:
    if not device.get("taints"):
        return device
    taints = []
    for taint in device["taints"]:
        time = times.get((device["name"], *_taint_id(taint)))
        taints.append({**taint, "timeAdded": time} if time else taint)
    return {**device, "taints": taints}


def is_same(stored: Object, desired: Object) -> bool:
    """Tell whether a stored slice says what the desired one says.

    What the server fills in does not count: metadata but for the owner, and the times of taints.
    """
    owners = stored["metadata"].get("ownerReferences") or []
    return all(owner in owners for owner in desired["metadata"]["ownerReferences"]) and (
        meaning(stored["spec"]) == meaning(desired["spec"])
    )


def meaning(value: Any) -> Any:
    """Return JSON without what makes no difference: nothing, times of taints, forms of sizes."""
    if isinstance(value, Mapping):
        found = {key: meaning(v) for key, v in value.items() if key != "timeAdded"}
        if set(found) == {"value"} and isinstance(found["value"], str):
            return {"value": _amount(found["value"])}
        return {key: v for key, v in found.items() if v is not None and v not in ([], {})}
    if isinstance(value, list | tuple):
        return [meaning(item) for item in value]
    return value


def _amount(text: str) -> int | str:
    match = _QUANTITY.fullmatch(text)
    return int(match[1]) * _FACTORS[match[2] or ""] if match else text


def differences(stored: Object, desired: Object) -> tuple[str, ...]:
    """Name the fields in which a stored slice does not say what the desired one says."""
    return tuple(_differences(meaning(stored["spec"]), meaning(desired["spec"]), "spec"))


def _differences(stored: Any, desired: Any, path: str) -> Iterator[str]:
    if isinstance(desired, Mapping) and isinstance(stored, Mapping):
        for key in sorted({*desired, *stored}):
            yield from _differences(stored.get(key), desired.get(key), f"{path}.{key}")
    elif isinstance(desired, list) and isinstance(stored, list) and len(desired) == len(stored):
        for index, pair in enumerate(zip(stored, desired, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif stored != desired:
        yield path
