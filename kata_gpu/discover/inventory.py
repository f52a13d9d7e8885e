"""Make the inventory in one pass over sysfs.

A function matters if it is a GPU or an NVSwitch, or if the caller is interested in it; so
do its virtual functions, the others of its slot, of its bus and of their IOMMU groups, and the
bridges above. Of the rest only the identity is read. A function that vanishes or lies in
between is a problem in the inventory: it never spoils the others.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from kata_gpu.discover import functions, platform
from kata_gpu.discover.functions import DEVICES, Place, UnreadableFunctionError
from kata_gpu.errors import HostError, StuckError
from kata_gpu.host import Host, files, pci_ids, sriov
from kata_gpu.host.children import Answer
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.inventory import FileContent, Inventory, KataBase, Problem
from kata_gpu.model.iommu import IommuGroup
from kata_gpu.model.pci import Identity, PciAddress, PciFunction

if TYPE_CHECKING:
    from kata_gpu.model.kata import Configuration
    from kata_gpu.model.operation import Operation

Interest = Callable[[Identity], bool]

_GROUPS: Final = "kernel/iommu_groups"
_NOIOMMU: Final = "vfio-noiommu"
_UUID: Final = re.compile(r"^GPU UUID:\s+(GPU-[0-9a-f-]{36})$", re.MULTILINE)
_DIRECT: Final = "direct"


def is_accelerator(identity: Identity) -> bool:
    """The least that always matters: GPUs and NVSwitches."""
    return identity.is_gpu or identity.is_nvswitch


def collect(
    host: Host,
    *,
    interest: Interest = is_accelerator,
    handlers: Mapping[str, str] | None = None,
    paths: Iterable[str] = (),
    operations: "tuple[Operation, ...]" = (),
) -> Inventory:
    """Look at the host once.

    *interest* adds functions to those that always matter; *handlers* are base files of
    Kata by handler; *paths* are files whose content the planner compares; *operations* are
    known to hang, so that nobody waits for the same lock again.
    """
    read_at = datetime.now(UTC)
    problems: list[Problem] = []
    places = _places(host.sysfs, problems)
    wanted = _that_matter(host.sysfs, places, interest)
    near = [places[address] for address in sorted(wanted)]
    with _overrides(host.sysfs, wanted, operations) as answers:
        numbers = {place.group for place in near if place.group is not None}
        groups = {number: _group(host.sysfs, number) for number in sorted(numbers)}
        facts, unknown = platform.read(host)
        overrides = answers()
    if any(isinstance(answer, StuckError) for answer in overrides.values()):
        from kata_gpu.host import leftovers  # noqa: PLC0415 - there are hardly ever any

        operations = leftovers.find(host.path("/proc"))
    found = tuple(_functions(host, near, overrides, problems))
    known = {function.iommu_group for function in found}
    theirs = [group for number, group in groups.items() if number in known]
    problems += [group for group in theirs if isinstance(group, Problem)]
    bases, configurations = _kata(host, handlers) if handlers else ((), ())
    return Inventory(
        functions=found,
        groups=tuple(group for group in theirs if isinstance(group, IommuGroup)),
        platform=facts,
        kata=bases,
        files=tuple(
            _contents(host, (*paths, *(base.drop_in for base in bases if base.drop_in)), problems)
        ),
        holders={},
        operations=operations,
        problems=(*problems, *unknown),
        read_at=read_at,
        configurations=configurations,
    )


def _kata(
    host: Host, handlers: Mapping[str, str]
) -> "tuple[tuple[KataBase, ...], tuple[Configuration, ...]]":
    """Return where the handlers' base files are, and each real one with what lies beside it."""
    from kata_gpu.discover import kata  # noqa: PLC0415 - most verbs look at no handler

    bases = tuple(kata.find(host, name, config) for name, config in handlers.items())
    reals = dict.fromkeys(base.file for base in bases if base.file)
    return bases, tuple(kata.configuration(host, real) for real in reals)


def _uuid(host: Host, function: PciFunction) -> str | None:
    """Return what NVIDIA's driver calls a GPU that it has; None for any other."""
    if function.binding.driver != "nvidia":
        return None
    try:
        said = files.read(host.path(f"/proc/driver/nvidia/gpus/{function.address}/information"))
    except HostError:
        return None
    match = _UUID.search(said or "")
    return None if match is None else match[1]


@contextmanager
def _overrides(
    sysfs: Sysfs, wanted: Iterable[PciAddress], operations: "Iterable[Operation]"
) -> Iterator[Callable[[], dict[PciAddress, Answer]]]:
    """Begin to read the overrides; what this yields waits for them."""
    hung = {op.address: StuckError(f"cannot read it: {op}", op.pid) for op in operations}
    asked = {functions.override_path(address): address for address in wanted if address not in hung}
    with sysfs.locking(list(asked)) as answers:
        yield lambda: {
            **{address: error for address, error in hung.items() if address is not None},
            **{asked[path]: answer for path, answer in answers().items()},
        }


def _functions(
    host: Host,
    near: Iterable[Place],
    overrides: Mapping[PciAddress, Answer],
    problems: list[Problem],
) -> Iterator[PciFunction]:
    slots = functions.slots(host.sysfs)
    with pci_ids.opened(host.root) as names:
        for place in near:
            address = place.identity.address
            slot = slots.get(address.slot)
            try:
                function = functions.details(
                    host.sysfs, place, names, overrides[address], slot=slot
                )
                uuid = None if function.serial else _uuid(host, function)
                yield function if uuid is None else replace(function, serial=uuid)
            except UnreadableFunctionError as error:
                problems.append(Problem(subject=str(address), reason=str(error)))


def _places(sysfs: Sysfs, problems: list[Problem]) -> dict[PciAddress, Place]:
    places = {}
    for name in sysfs.names(DEVICES):
        try:
            where = functions.place(sysfs, name)
        except UnreadableFunctionError as error:
            problems.append(Problem(subject=ascii(name)[1:-1][:32], reason=str(error)))
        else:
            places[where.identity.address] = where
    return places


def _that_matter(
    sysfs: Sysfs, places: Mapping[PciAddress, Place], interest: Interest
) -> set[PciAddress]:
    chosen = {
        address
        for address, where in places.items()
        if is_accelerator(where.identity) or interest(where.identity)
    }
    chosen |= {virtual for parent in chosen for virtual in _virtuals(sysfs, parent)}
    near = {_neighbourhood(places[address]) for address in chosen & places.keys()}
    groups = {where.group for where in places.values() if _neighbourhood(where) in near}
    company = {
        address
        for address, where in places.items()
        if _neighbourhood(where) in near or (where.group is not None and where.group in groups)
    }
    above = {bridge for address in company for bridge in places[address].bridges}
    return company | (above & places.keys())


def _virtuals(sysfs: Sysfs, parent: PciAddress) -> tuple[PciAddress, ...]:
    try:
        return sriov.virtuals(sysfs, parent)
    except HostError:
        return ()  # which makes the parent a problem, when its details are read


def _neighbourhood(where: Place) -> tuple[int, ...]:
    """Return what functions share that may share a card or a reset: the bus behind a bridge."""
    address = where.identity.address
    return (address.domain, address.bus) if where.bridges else address.slot


def _group(sysfs: Sysfs, number: int) -> IommuGroup | Problem:
    directory = f"{_GROUPS}/{number}"
    try:
        members = sysfs.names(f"{directory}/devices")
        found = sysfs.attributes(directory, ("type", "reserved_regions", "name"))
        return IommuGroup(
            number=number,
            members=tuple(sorted(PciAddress.parse(name) for name in members)),
            domain_type=found.get("type"),
            has_direct_region=any(
                line.split()[-1:] == [_DIRECT]
                for line in found.get("reserved_regions", "").split("\n")
            ),
            is_noiommu=found.get("name") == _NOIOMMU,
        )
    except (HostError, ValueError) as error:
        return Problem(subject=f"group {number}", reason=str(error))


def _contents(host: Host, paths: Iterable[str], problems: list[Problem]) -> Iterable[FileContent]:
    for path in dict.fromkeys(paths):
        try:
            yield FileContent(path=path, content=files.read(host.path(path)))
        except HostError as error:
            problems.append(Problem(subject=path, reason=str(error)))
