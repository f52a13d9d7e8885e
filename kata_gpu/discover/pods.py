"""What kubelet and the journal know of one pod. Neither has to be there.

Source: Kubernetes pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go, cm/dra/state/state.go;
journalctl(1); systemd's Journal JSON Format.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, cgroups, files
from kata_gpu.model.node_facts import Unknown
from kata_gpu.model.pod import Allocations, JournalLine, PodDevice

KUBELET: Final = "/var/lib/kubelet"
CHECKPOINT: Final = "device-plugins/kubelet_internal_checkpoint"
CLAIMS: Final = "dra_manager_state"
"""Both below kubelet's directory."""

_CHECKPOINT_MAX_BYTES: Final = 16 << 20
_NO_CHECKPOINT: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_PROGRAMS: Final = ("kata", "containerd", "crio", "kubelet", "k3s", "rke2", "kata-runtime")
_SINCE: Final = "-24h"
_LINES_MAX: Final = 5000
_KEPT_MAX: Final = 200
_TEXT_MAX: Final = 2000
_JOURNAL_TIMEOUT_S: Final = 10.0
_SANDBOX: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def uids(host: Host, namespace: str, name: str) -> tuple[str, ...]:
    """Return the uids of pods of that name that kubelet keeps logs of, the oldest first."""
    logs = host.root / "var/log/pods"
    found = [
        uid for uid, names in cgroups.pod_names(host.root).items() if names == (namespace, name)
    ]
    return tuple(sorted(found, key=lambda uid: _age(logs / f"{namespace}_{name}_{uid}")))


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # it is being removed
        return 0.0


def allocations(host: Host, kubelet: str = KUBELET) -> Allocations | Unknown:
    """Return what the checkpoint in *kubelet*'s directory says, or why it does not."""
    import json  # noqa: PLC0415 - for who looks at a pod

    path = host.path(f"{kubelet}/{CHECKPOINT}")
    try:
        data = json.loads(files.read_plain(path, max_bytes=_CHECKPOINT_MAX_BYTES))["Data"]
        return Allocations(
            devices=_by_pod(data["PodDeviceEntries"] or ()),
            registered={
                str(resource): tuple(map(str, ids or ()))
                for resource, ids in (data.get("RegisteredDevices") or {}).items()
            },
        )
    except HostError as error:
        return Unknown(reason=str(error))
    except _NO_CHECKPOINT as error:
        return Unknown(reason=f"cannot read {path}: it has another form ({error!r:.100})")


def _by_pod(entries: Iterable[Mapping[str, Any]]) -> dict[str, tuple[PodDevice, ...]]:
    found: dict[str, tuple[PodDevice, ...]] = {}
    for entry in entries:
        uid = str(entry["PodUID"])
        made = (
            PodDevice(
                owner=f"container {entry['ContainerName']}",
                resource=str(entry["ResourceName"]),
                id=one,
            )
            for one in _ids(entry["DeviceIDs"])
        )
        found[uid] = (*found.get(uid, ()), *made)
    return found


def _ids(listed: Any) -> Iterator[str]:
    """Yield ids by NUMA node, or as one list, which kubelet wrote before 1.20."""
    groups = listed.values() if isinstance(listed, dict) else (listed,)
    for group in groups:
        yield from map(str, group or ())


def claims(host: Host, kubelet: str = KUBELET) -> dict[str, tuple[PodDevice, ...]] | Unknown:
    """Return what the claims of each pod have, by its uid, or why that is not known.

    None where kubelet has prepared no claim.
    """
    import json  # noqa: PLC0415 - for who looks at a pod

    path = host.path(f"{kubelet}/{CLAIMS}")
    if not path.exists():
        return {}
    found: dict[str, tuple[PodDevice, ...]] = {}
    try:
        state = json.loads(files.read_plain(path, max_bytes=_CHECKPOINT_MAX_BYTES))
        data = json.loads(state["Data"])
        for claim in data.get("Entries") or data.get("ClaimInfoStateList") or ():
            devices = tuple(_of_claim(claim))
            for uid in map(str, claim["PodUIDs"]):
                found[uid] = (*found.get(uid, ()), *devices)
    except HostError as error:
        return Unknown(reason=str(error))
    except _NO_CHECKPOINT as error:
        return Unknown(reason=f"cannot read {path}: it has another form ({error!r:.100})")
    return found


def _of_claim(claim: Mapping[str, Any]) -> Iterator[PodDevice]:
    for driver in (claim["DriverState"] or {}).values():
        for device in driver["Devices"] or ():
            for name in device["CDIDeviceIDs"] or ():
                kind, _, one = str(name).partition("=")
                yield PodDevice(owner=f"claim {claim['ClaimName']}", resource=kind, id=one)


def journal(
    host: Host, namespace: str, name: str, uids: Iterable[str]
) -> tuple[JournalLine, ...] | Unknown:
    """Return what was said of the pod within a day, and of its sandboxes; the last of it."""
    root = () if os.fspath(host.root) == "/" else (f"--root={host.root}",)
    names = (word for program in _PROGRAMS for word in ("-t", program))
    argv = (
        *("journalctl", *root, "-o", "json", "--output-fields=MESSAGE,SYSLOG_IDENTIFIER"),
        *("-q", "--no-pager", f"--since={_SINCE}", "-n", str(_LINES_MAX), *names),
    )
    try:
        said = host.run(argv, timeout_s=_JOURNAL_TIMEOUT_S)
    except HostError as error:
        return Unknown(reason=str(error))
    return _about(tuple(_lines(said)), namespace, name, frozenset(uids))


def _lines(said: str) -> Iterator[JournalLine]:
    import json  # noqa: PLC0415 - for who looks at a pod

    for line in said.splitlines()[-_LINES_MAX:]:
        try:
            entry = json.loads(line)
            stamp = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
            yield JournalLine(
                at=datetime.fromtimestamp(stamp, UTC),
                program=str(entry.get("SYSLOG_IDENTIFIER")),
                text=_message(entry["MESSAGE"])[:_TEXT_MAX],
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError):
            continue  # cut off, or too long for journalctl to show
        except RecursionError:
            continue


def _message(value: Any) -> str:
    """Return a text; what is none is told as its bytes."""
    return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")


def _about(
    lines: tuple[JournalLine, ...], namespace: str, name: str, uids: frozenset[str]
) -> tuple[JournalLine, ...]:
    seen = [
        (line, _names(line.text, namespace, name, uids), set(_SANDBOX.findall(line.text)))
        for line in lines
    ]
    sandboxes = {one for _, is_named, found in seen if is_named for one in found}
    kept = [line for line, is_named, found in seen if is_named or found & sandboxes]
    return tuple(kept[-_KEPT_MAX:])


def _names(text: str, namespace: str, name: str, uids: frozenset[str]) -> bool:
    """Tell whether a line is about the pod: by uid, or by both its names as words."""
    if any(uid in text for uid in uids):
        return True
    return _has_word(text, name) and _has_word(text, namespace)


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text) is not None
