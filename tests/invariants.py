"""What holds of a fake node at every moment, also in the one after the agent was killed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from kata_gpu.errors import KataGpuError
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import Binding
from tests.kernel.bus import Function
from tests.kernel.fake import FakeKernel
from tests.kernel.specs import PCI_BRIDGE
from tests.passthrough import CDI, journal_of

Home = Mapping[str, Binding]
"""By address, what the world last did to each function that was not ours at the time."""

_NODES: Final = "/dev/vfio/"


def violations(kernel: FakeKernel, home: Home, *, is_spec_ours: bool = True) -> list[str]:
    """Return what does not hold; each text says where.

    Of a spec that is not *ours* as it stands, nothing is asked.
    """
    try:
        ledger = journal_of(kernel.host).ledger
    except KataGpuError as error:
        return [f"the ledger cannot be read: {error}"]
    of_the_spec = [*of_the_offer(kernel, ledger), *_of_the_files(kernel, ledger)]
    of_devices = [*_of_the_originals(kernel, ledger, home), *_of_the_sleepers(kernel, ledger)]
    return [*(of_the_spec if is_spec_ours else []), *of_devices]


def offered(kernel: FakeKernel) -> dict[str, tuple[str, ...]]:
    """Return the devices of our CDI spec, each with its nodes; none when it is no spec."""
    spec = kernel.host.path(CDI)
    try:
        devices = json.loads(spec.read_text())["devices"]
        return {
            device["name"]: tuple(n["path"] for n in device["containerEdits"]["deviceNodes"])
            for device in devices
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def binding(function: Function) -> Binding:
    """Return who holds a function, as the kernel knows it."""
    return Binding(driver=function.driver, override=function.override)


def guests(kernel: FakeKernel, nodes: Iterable[str]) -> list[Function]:
    """Return the functions that a VM gets with these group nodes."""
    groups = {int(node.removeprefix(_NODES)) for node in nodes}
    return [
        function
        for function in kernel.bus.functions.values()
        if function.spec.group in groups and function.spec.class_code != PCI_BRIDGE
    ]


def of_the_offer(kernel: FakeKernel, ledger: Ledger) -> Iterator[str]:
    """Yield what is offered and may not be had."""
    for unit, nodes in offered(kernel).items():
        entry = ledger.entry(unit)
        if entry is None:
            yield f"{unit} is offered and not in the ledger"
            continue
        missing = [node for node in nodes if not kernel.host.path(node).exists()]
        if missing:
            yield f"{unit} is offered, and {', '.join(missing)} is not there"
        given = guests(kernel, nodes)
        for function in given:
            if function.vfio is None or function.stuck:
                yield f"{unit} is offered, and {function.spec.address} has {binding(function)}"
        lacking = {str(f.address) for f in entry.functions} - {f.spec.address for f in given}
        if lacking:
            yield f"{unit} is offered without {', '.join(sorted(lacking))}"
        if entry.quarantine is not None:
            yield f"{unit} is offered and in quarantine"


def _of_the_originals(kernel: FakeKernel, ledger: Ledger, home: Home) -> Iterator[str]:
    known = {str(f.address): f.original for entry in ledger.entries for f in entry.functions}
    for address, function in kernel.bus.functions.items():
        if address not in home:
            continue
        if address in known and known[address] != home[address]:
            yield f"{address} came from {home[address]}, and the ledger says {known[address]}"
        if address not in known and binding(function) != home[address]:
            yield (
                f"{address} is not in the ledger, has {binding(function)} and came from "
                f"{home[address]}"
            )


def _of_the_sleepers(kernel: FakeKernel, ledger: Ledger) -> Iterator[str]:
    woken = {str(address) for entry in ledger.entries for address in entry.woken}
    for address, function in kernel.bus.functions.items():
        if function.vfio is not None and not function.may_sleep and address not in woken:
            yield f"{address} is kept awake, and the ledger does not say so"


def _of_the_files(kernel: FakeKernel, ledger: Ledger) -> Iterator[str]:
    if kernel.host.path(CDI).exists() and CDI not in ledger.files:
        yield f"{CDI} is there and not in the ledger"
