"""What a workload may read of its devices: a file per request, and the CDI spec that mounts it.

It is written on demand alone: a spec lies in the directory that Kata's runtimes read, and one
that they refuse stops every pod of the node. So it has what both know: version 0.5.0, one
device, mounts, and no dot in its class. Its device has no node, and gives a VM nothing.

A pod may be let into kubelet's folder of the driver: no link in it is followed.

Source: KEP-5304; k8s.io/dynamic-resource-allocation kubeletplugin/metadata.go and api/metadata.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.host import files
from kata_gpu.model.kubernetes import Attribute, Device
from kata_gpu.publish.kubelet.prepared import (
    Claims,
    Home,
    PreparedClaim,
    PreparedDevice,
    Progress,
)

FOLDER: Final = "dra-device-metadata"
"""Of a driver's own: a folder for each claim that has files."""

_CDI_VERSION: Final = "0.5.0"
_MODE: Final = 0o644  # a workload of any user reads it
_INSIDE: Final = "/var/run/kubernetes.io/dra-device-attributes"
_POD_CLAIM: Final = "resource.kubernetes.io/pod-claim-name"
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_spec(name: str, driver: str) -> bool:
    """Tell whether a file of the CDI directory is one that mounts what is a driver's."""
    return name.startswith(f"{driver}_metadata_") and name.endswith(".json")


@dataclass(frozen=True, slots=True)
class DeviceMetadata:
    """Writes and removes the files of one driver."""

    home: Home
    cdi_directory: Path
    is_wanted: bool
    """Whether a claim that is prepared now gets any; what another got goes with it all the same."""

    def write(
        self, prepared: PreparedClaim, devices: Mapping[str, Device], claim: Mapping[str, Any]
    ) -> PreparedClaim:
        """Write the files of a claim, each whole; return it with the CDI names of the mounts.

        Raises:
            KataGpuError: they cannot be written; some may be there.
        """
        pod_claim = _pod_claim(claim)
        for request, members in _requests(prepared).items():
            document = _document(prepared, request, members, devices, pod_claim)
            host = self._file(prepared, request)
            files.replace(
                host, document, staging=host.parent, mode=_MODE, below=self.home.directory
            )
            spec = self._spec(prepared, request, host, pod_claim)
            files.replace(
                self._spec_file(prepared, request), spec, staging=self.cdi_directory, mode=_MODE
            )
        return replace(prepared, devices=tuple(self._with_mounts(prepared)))

    def may_be_there(self, prepared: PreparedClaim) -> bool:
        """Tell whether a claim has files: one that is prepared has what it was answered with."""
        if prepared.progress is not Progress.COMPLETED:
            return True  # whoever began it may have been killed after it wrote them
        kind = f"{self.home.driver}/metadata="
        return any(n.startswith(kind) for device in prepared.devices for n in device.cdi_names)

    def remove(self, prepared: PreparedClaim) -> None:
        """Remove the files of a claim, the spec first; what is gone is no error."""
        for request in _requests(prepared):
            files.remove(self._spec_file(prepared, request))
        self._remove_tree(self._folder(prepared))

    def sweep(self, claims: Claims) -> None:
        """Remove what is there for other than these claims: its agent was killed."""
        known = {
            self._spec_file(claim, request).name
            for claim in claims.values()
            for request in _requests(claim)
        }
        for name in files.names(self.cdi_directory):
            if is_spec(name, self.home.driver) and name not in known:
                files.remove(self.cdi_directory / name)
        folders = {self._folder(claim).name for claim in claims.values()}
        for name in files.names(self._folders):
            if name not in folders:
                self._remove_tree(self._folders / name)

    def _remove_tree(self, folder: Path) -> None:
        below = self.home.directory
        try:
            with files.folder(folder.parent, below=below) as parent:
                shutil.rmtree(folder.name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            why = files.reason(error, folder, below=below)
            raise HostError(f"cannot remove {folder}: {why}") from error

    @property
    def _folders(self) -> Path:
        return self.home.directory / FOLDER

    def _folder(self, prepared: PreparedClaim) -> Path:
        """Return a claim's own: one of the same name may be prepared before this one has gone."""
        return self._folders / prepared.claim.uid

    def _file(self, prepared: PreparedClaim, request: str) -> Path:
        return self._folder(prepared) / request / "metadata.json"

    def _spec_file(self, prepared: PreparedClaim, request: str) -> Path:
        uid = prepared.claim.uid
        return self.cdi_directory / f"{self.home.driver}_metadata_{uid}_{request}.json"

    def _spec(
        self, prepared: PreparedClaim, request: str, host: Path, pod_claim: str | None
    ) -> str:
        source = (
            f"resourceclaims/{prepared.claim.name}"
            if pod_claim is None
            else f"resourceclaimtemplates/{pod_claim}"
        )
        mount = {
            "hostPath": str(host),
            "containerPath": f"{_INSIDE}/{source}/{request}/{self.home.driver}-metadata.json",
            "options": ["ro", "bind"],
        }
        name = f"{prepared.claim.uid}_{request}"
        spec = {
            "cdiVersion": _CDI_VERSION,
            "kind": f"{self.home.driver}/metadata",
            "devices": [{"name": name, "containerEdits": {"mounts": [mount]}}],
        }
        return json.dumps(spec, indent=2) + "\n"

    def _with_mounts(self, prepared: PreparedClaim) -> Iterator[PreparedDevice]:
        """Yield the devices, the first of each request with the name of its mount, at its end."""
        firsts = {request: members[0] for request, members in _requests(prepared).items()}
        for device in prepared.devices:
            mounts = tuple(
                f"{self.home.driver}/metadata={prepared.claim.uid}_{request}"
                for request, first in firsts.items()
                if first is device
            )
            yield replace(device, cdi_names=(*device.cdi_names, *mounts))


def _requests(prepared: PreparedClaim) -> dict[str, list[PreparedDevice]]:
    """Return the devices of each request, subrequests under their main one."""
    found: dict[str, list[PreparedDevice]] = {}
    for device in prepared.devices:
        for base in dict.fromkeys(request.partition("/")[0] for request in device.requests):
            found.setdefault(base, []).append(device)
    return found


def _document(
    prepared: PreparedClaim,
    request: str,
    members: Iterable[PreparedDevice],
    devices: Mapping[str, Device],
    pod_claim: str | None,
) -> str:
    """Return the object that tells of one request's devices."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for member in members:
        device = devices[member.device]
        told = {
            "driver": device.driver,
            "pool": member.pool,
            "name": member.device,
            "attributes": {n: _typed(v) for n, v in sorted(device.attributes.items())},
        }
        for name in member.requests:
            if name.partition("/")[0] == request:
                by_name.setdefault(name, []).append(told)
    claim = prepared.claim
    document = {
        "apiVersion": "metadata.resource.k8s.io/v1alpha1",
        "kind": "DeviceMetadata",
        "metadata": {"name": claim.name, "namespace": claim.namespace, "uid": claim.uid},
        **({} if pod_claim is None else {"podClaimName": pod_claim}),
        "requests": [{"name": name, "devices": told} for name, told in by_name.items()],
    }
    return json.dumps(document, indent=2) + "\n"


def _typed(value: Attribute) -> dict[str, Attribute]:
    match value:
        case bool():
            return {"bool": value}
        case int():
            return {"int": value}
        case str():
            return {"string": value}


def _pod_claim(claim: Mapping[str, Any]) -> str | None:
    """Return the pod's own name for a claim that was made from a template; None for others."""
    metadata = claim.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    name = annotations.get(_POD_CLAIM) if isinstance(annotations, Mapping) else None
    if name is None:
        return None
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise KataGpuError(f"cannot write metadata for the claim: {_POD_CLAIM} is {name!r:.80}")
    return name
