"""The CDI spec: which device nodes a name stands for, valid for both Kata runtimes at once.

The rules that make it so:

- ``kind`` is the Kubernetes resource and ``name`` the kubelet's device id, since Kata joins
  the two into the CDI name it looks up;
- version 0.5.0: the Go runtime refuses 0.7.0 and later, and names that begin with a digit
  need 0.5.0;
- device nodes at device level only, with path equal to hostPath, and never the control
  node /dev/vfio/vfio, which runtime-rs takes for a group;
- at least one device, or no file: runtime-rs refuses an empty list;
- one bad file in the directory fails every pod of the node, so ours is written by rename.

Source: Container Device Interface SPEC.md; Kata's device_cold_plug.go and
pod-resources-rs.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

VERSION: Final = "0.5.0"
_PREFIX: Final = "kata-gpu-"
_NO_SPEC: Final = (ValueError, KeyError, TypeError, RecursionError)


def path(directory: str, kind: str) -> str:
    """Return where the spec of *kind* (``vendor.tld/class``) lies.

    A vendor holds no underscore, so no two kinds share a file.
    """
    return f"{directory}/{_PREFIX}{kind.replace('/', '_')}.json"


def is_ours(directory: str, file: str) -> bool:
    """Tell whether *file* is where a spec of ours would lie."""
    return file.startswith(f"{directory}/{_PREFIX}") and file.endswith(".json")


def render(kind: str, devices: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return the spec that gives each device id its nodes; None without a device."""
    if not devices:
        return None
    return _text(
        {
            "cdiVersion": VERSION,
            "kind": kind,
            "devices": [_device(name, devices[name]) for name in sorted(devices)],
        }
    )


def without(content: str, names: Iterable[str]) -> str | None:
    """Return a spec of ours less the named devices; None when none is left.

    A bundle goes with the first of its units. What cannot be read as a spec names nothing that
    could be kept: None.
    """
    leaving = set(names)
    try:
        spec = json.loads(content)
        gone = {node for d in spec["devices"] if d["name"] in leaving for node in _nodes(d)}
        spec["devices"] = [
            d
            for d in spec["devices"]
            if d["name"] not in leaving and (_is_unit(d) or gone.isdisjoint(_nodes(d)))
        ]
        return _text(spec) if spec["devices"] else None
    except _NO_SPEC:
        return None


def published(content: str, name: str) -> tuple[str, ...]:
    """Return the nodes that a spec of ours gives the named device; empty when it has none."""
    return all_published(content).get(name, ())


def all_published(content: str) -> dict[str, tuple[str, ...]]:
    """Return the nodes that a spec of ours gives each device, up to what is no device."""
    found: dict[str, tuple[str, ...]] = {}
    with suppress(*_NO_SPEC):
        for device in json.loads(content)["devices"]:
            nodes = _nodes(device)
            is_sound = all(isinstance(path, str) for path in nodes)
            found.setdefault(device["name"], nodes if is_sound else ())
    return found


def _nodes(device: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(node["path"] for node in device["containerEdits"]["deviceNodes"])


def _is_unit(device: Mapping[str, Any]) -> bool:
    """Tell an address from the name of a bundle, which has no colon."""
    return ":" in device["name"]


def _device(name: str, paths: tuple[str, ...]) -> dict[str, Any]:
    edits = {"deviceNodes": [{"path": path, "hostPath": path} for path in paths]}
    return {"name": name, "containerEdits": edits}


def _text(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, indent=2) + "\n"
