"""Which file a runtime takes a device from, and which files are in each other's way."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.cdi import (
    CdiDevice,
    CdiDocument,
    CdiFault,
    CdiFile,
    CdiSpecs,
    NodeKind,
    device_nodes,
    host_path,
    members,
)
from kata_gpu.plan.cdi.libraries import LIBRARIES
from kata_gpu.plan.cdi.rules import fault
from kata_gpu.plan.cdi.spec import is_ours

Claim = tuple[CdiFile, int, Mapping[str, Any]]
"""A device of a file, with its number in it."""


def claims(specs: CdiSpecs) -> dict[str, list[Claim]]:
    """Return who has each device, by its qualified name."""
    found: dict[str, list[Claim]] = {}
    for file in specs.files:
        for name, number, device in _named(file):
            found.setdefault(name, []).append((file, number, device))
    return found


def _named(file: CdiFile) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    tree = file.content.tree if isinstance(file.content, CdiDocument) else None
    if not isinstance(tree, Mapping) or not isinstance(tree.get("kind"), str):
        return
    seen = set()
    for number, device in members(tree.get("devices")):
        name = device.get("name")
        if isinstance(name, str) and name not in seen:
            seen.add(name)  # the second in one file is that file's own fault
            yield f"{tree['kind']}={name}", number, device


def conflicts(specs: CdiSpecs) -> list[CdiFault]:
    """Return the faults of devices that more than one file has; both files have it."""
    found = []
    for name, rivals in claims(specs).items():
        for file, number, _ in rivals if len(rivals) > 1 else ():
            others = [f for f, _, _ in rivals if f is not file and _readers(f, file)]
            near = [other for other in others if other.directory == file.directory]
            rule = "twice-in-directory" if near else "twice-in-directories"
            met = near or others
            readers = tuple(r for r in Runtime if any(r in _readers(f, file) for f in met))
            paths = ", ".join(other.path for other in met)
            what = f"{name} is in {paths} too"
            found.append(fault(rule, replace(file, readers=readers), f"devices[{number}]", what))
    return [one for one in found if one.scopes]


def _readers(one: CdiFile, other: CdiFile) -> frozenset[Runtime]:
    """Return who looks at both files."""
    return frozenset(one.readers) & frozenset(other.readers)


def devices(specs: CdiSpecs) -> tuple[CdiDevice, ...]:
    """Return every device, by name.

    Whether some file keeps a runtime from reading any is not told here: see `judge`.
    """
    return tuple(
        _device(specs, name, claim, [file for file, _, _ in rivals])
        for name, rivals in sorted(claims(specs).items())
        for claim in rivals
    )


def _device(specs: CdiSpecs, name: str, claim: Claim, rivals: list[CdiFile]) -> CdiDevice:
    file, number, device = claim
    paths = tuple(host_path(node) for _, node in device_nodes(device))
    return CdiDevice(
        name=name,
        file=file.path,
        number=number,
        nodes=paths,
        missing=tuple(p for p in paths if specs.nodes.get(p) is not NodeKind.DEVICE),
        is_ours=is_ours(specs.ours, file.path),
        go=_wins(file, rivals, Runtime.GO),
        rust=_wins(file, rivals, Runtime.RUST),
    )


def _wins(file: CdiFile, rivals: list[CdiFile], runtime: Runtime) -> bool:
    """Tell whether *runtime* takes the device from *file*: alone in the last of its directories."""
    order = LIBRARIES[runtime].directories
    read = [f for f in rivals if runtime in f.readers and f.directory in order]
    last = max((order.index(f.directory) for f in read), default=-1)
    return [f for f in read if order.index(f.directory) == last] == [file]
