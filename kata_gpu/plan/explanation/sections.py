"""The sentences: each function says one side of the matter, or nothing where there is none."""

from collections.abc import Iterable
from datetime import datetime

from kata_gpu.model import confidential
from kata_gpu.model.blueprint import Mode, Pool
from kata_gpu.model.explanation import ModuleUse, Said, Section
from kata_gpu.model.iommu import Verdict
from kata_gpu.model.kubernetes import Door
from kata_gpu.model.ledger import LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.operation import Operation
from kata_gpu.model.pci import NVIDIA, PciFunction
from kata_gpu.model.plan import virtual_functions
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import cdi
from kata_gpu.plan.explanation.case import Case, Facts, holds_up_the_bus
from kata_gpu.plan.explanation.selection import missed

_STAGES = {
    Stage.BINDING: "it is ours; its binding was begun and has not ended",
    Stage.BOUND: "it is ours: bound, and verified",
    Stage.RELEASING: "it is ours; its release was begun and has not ended",
}


def sections(facts: Facts, case: Case) -> tuple[Section, ...]:
    """Return everything that is known, less the sides on which there is nothing to say."""
    found = {
        "What it is": _device(case),
        "Where it belongs": _belonging(facts, case),
        "Whether a VM may have it": _judged(case),
        "What hangs": _stuck(case),
        "Who has it": _held(case),
        "Who uses its driver": _modules(facts, case),
        "What was done, and is next": _steps(facts, case),
        "What was left by its last user": _cleaned(case),
        "Whose it is": _ours(case),
        "Where it is published": _published(facts, case),
    }
    return tuple(
        Section(title=title, sentences=sentences)
        for title, made in found.items()
        if (sentences := tuple(made))
    )


def _device(case: Case) -> Iterable[str]:
    function = case.function
    if function is None:
        yield f"nothing is at {case.address} now"
        return
    kind = "bridge" if function.is_bridge else "function"
    slot = "a slot that has no name" if function.slot is None else f"slot {function.slot}"
    numa = "unknown" if function.numa_node is None else function.numa_node
    yield (
        f"it is {function.label}, a {kind} of class {function.identity.class_hex} in {slot}; "
        f"its NUMA node is {numa}"
    )
    yield from _company(case, function)
    yield from map(_driver, case.functions)
    yield from _memory(case)
    yield from _confidential(case)


def _memory(case: Case) -> Iterable[str]:
    """Say what drivers said of the memory of its GPUs; nothing where none did."""
    before = {f.address: f.memory_bytes for f in case.entry.functions} if case.entry else {}
    for function in case.functions:
        found = function.memory_bytes or before.get(function.address)
        if found is not None:
            driver = "its driver says" if function.memory_bytes else "its host driver said"
            yield f"{function.address} has {found >> 20} MiB of memory, as {driver}"


def _confidential(case: Case) -> Iterable[str]:
    """Say the mode, or why nobody knows it; of what has none by its chip, nothing."""
    gpus = [f for f in case.functions if f.is_gpu and f.vendor == NVIDIA and f.parent is None]
    found = {confidential.has_mode(gpu) for gpu in gpus} - {False}
    if not found:
        return
    if True not in found:
        yield "whether it has a confidential mode its name in pci.ids does not tell"
        return
    entry = case.entry
    if entry is not None and entry.cc_mode is not None:
        yield f"its confidential mode was {entry.cc_mode} when it was bound, or cleaned last"
        return
    why = "it is read when this agent binds it, and after each cleaning"
    if entry is not None and entry.stage is Stage.BOUND:
        why = "it is read after its next cleaning, or when the agent starts anew"
    if entry is not None and entry.cc_unread is not None:
        why = entry.cc_unread
    yield f"its confidential mode is not known: {why}"


def _company(case: Case, function: PciFunction) -> Iterable[str]:
    if function.iommu_group is None:
        yield "it is in no IOMMU group"
        return
    groups = case.unit.groups if case.unit else (function.iommu_group,)
    numbers = ", ".join(map(str, groups))
    word = "groups" if len(groups) > 1 else "group"
    if not case.mates:
        yield f"it has IOMMU {word} {numbers} for itself"
        return
    others = ", ".join(f"{m.address} ({_kind(m)}{m.label})" for m in case.mates)
    yield f"it shares IOMMU {word} {numbers} with {others}"


def _kind(function: PciFunction) -> str:
    return "bridge " if function.is_bridge else ""


def _driver(function: PciFunction) -> str:
    binding = function.binding
    holder = f"driver {binding.driver} has" if binding.driver else "no driver has"
    only = f", and only {binding.override} may" if binding.override else ""
    return f"{holder} {function.address}{only}"


def _belonging(facts: Facts, case: Case) -> Iterable[str]:
    function, unit, pool = case.function, case.unit, case.pool
    if unit is not None and pool is not None:
        if case.address != unit.primary:
            yield _passenger(case)
        others = ", ".join(str(f) for f in unit.functions if f != unit.primary)
        yield f"unit {unit.id} goes as a whole, with {others or 'no other function'}"
        yield f"pool {pool.name} has it, with mode {pool.mode}{_offered(pool)}"
    elif case.is_bridge:
        yield from _bridge(facts, case)
    elif function is not None:
        yield from _unselected(facts, case, function)


def _offered(pool: Pool) -> str:
    if pool.resource is None:
        return ""
    parts = {Door.DEVICE_PLUGIN: " as part of", Door.DRA: " beside"}
    bundle = f"{parts.get(pool.door, '')} bundle {pool.bundle}" if pool.bundle else ""
    doors = {Door.DEVICE_PLUGIN: "by the device plugin", Door.DRA: "through DRA"}
    door = doors.get(pool.door)
    how = f"offered to Kubernetes {door}{bundle}" if door else "not offered to Kubernetes"
    return f", as resource {pool.resource}, {how}"


def _passenger(case: Case) -> str:
    unit = case.unit.id if case.unit else ""
    if case.function is not None and case.function.is_bridge:
        return f"{case.address} is a bridge in the group of unit {unit}: it stays on the host"
    return f"{case.address} goes along with unit {unit}, whose group it is in"


def _bridge(facts: Facts, case: Case) -> Iterable[str]:
    yield "VFIO passes a bridge over, so what is below it goes to a VM without it"
    for function in case.below:
        yield f"below it: {function.address} ({function.label})"


def _unselected(facts: Facts, case: Case, function: PciFunction) -> Iterable[str]:
    if not facts.blueprint.pools:
        yield f"blueprint {facts.blueprint.version} has no pools"
    for one in (function, *(mate for mate in case.mates if mate.is_gpu)):
        whose = "" if one is function else f"{one.address}, with which it would go: "
        for pool in facts.blueprint.pools:
            yield f"{whose}{missed(pool, one)}"


def _judged(case: Case) -> Iterable[str]:
    verdict = case.verdict
    if verdict is None:
        return
    if verdict.is_viable:
        yield f"nothing is in the way of a VM that gets {_together(verdict)}"
        return
    if not case.is_wanted:
        yield "no pool gives it to a VM; if one did, this would be in the way:"
    for blocker in verdict.blockers:
        yield f"in the way: {blocker}"
    for problem in case.problems:
        yield f"{problem.subject} is not known: {problem.reason}"


def _together(verdict: Verdict) -> str:
    return ", ".join(map(str, verdict.passengers))


def _stuck(case: Case) -> Iterable[str]:
    for operation in case.operations:
        yield str(operation)
        yield f"as long as it hangs nothing else can be done to {_blocked(case, operation)}"
        if holds_up_the_bus(operation):
            yield (
                "it is a removal, so every other removal, rescan and change of SR-IOV virtual "
                "functions on this node waits too"
            )
        yield "a reboot will hang as well; nothing can end the process"


def _blocked(case: Case, operation: Operation) -> str:
    mates = [str(f.address) for f in case.functions]
    groups = sorted({f.iommu_group for f in case.functions if f.iommu_group is not None})
    if operation.address not in {f.address for f in case.functions} or not groups:
        return str(operation.address)
    return f"IOMMU group {', '.join(map(str, groups))} ({', '.join(mates)})"


def _held(case: Case) -> Iterable[str]:
    if case.function is None or case.is_bridge:
        return
    yield from map(str, case.holders)
    if not case.holders:
        yield "nobody has it"


def _modules(facts: Facts, case: Case) -> Iterable[str]:
    if case.is_bridge:
        return
    drivers = {function.binding.driver for function in case.functions}
    for use in facts.modules:
        if use.driver in drivers:
            yield _use(use)


def _use(use: ModuleUse) -> str:
    if use.module is None:
        return f"driver {use.driver} is built into the kernel"
    count = "an unknown number of" if use.count is None else str(use.count)
    users = f", modules {', '.join(use.users)} among them" if use.users else ""
    return (
        f"module {use.module} of driver {use.driver} has {count} users{users}; which of them use "
        f"this device the kernel does not tell"
    )


def _steps(facts: Facts, case: Case) -> Iterable[str]:
    for outcome in case.outcomes:
        why = f": {outcome.detail}" if outcome.detail else ""
        yield (
            f"{time(outcome.ended_at)} {outcome.result}: {outcome.step}"
            f" ({outcome.elapsed_s:.2f} s){why}"
        )
    for step in case.steps if case.state is not UnitState.FAILED else ():  # a look tries it again
        yield f"next: {step.headline}, because {step.reason}"
    if isinstance(facts.said, Said):
        yield from facts.said.troubles


def _cleaned(case: Case) -> Iterable[str]:
    entry = case.entry
    if entry is None:
        return
    if entry.cleaned is not None:
        cleaned = entry.cleaned
        yield f"it was cleaned last at {time(cleaned.at)} by {cleaned.method}: {cleaned.result}"
    if entry.is_used:
        yield "somebody has had it, so nobody else gets it before it is clean again"
    if entry.quarantine is not None:
        yield f"it is in quarantine: {entry.quarantine}"


def _ours(case: Case) -> Iterable[str]:
    if case.is_bridge:
        return
    if case.made is not None:
        yield f"this agent made {virtual_functions(case.made.count)} of it"
    if case.entry is None:
        if case.made is None:
            yield "this agent has changed nothing about it"
        return
    yield _STAGES[case.entry.stage]
    yield from (_original(function, case.entry) for function in case.entry.functions)


def _original(function: OriginalFunction, entry: LedgerEntry) -> str:
    before = function.original
    override = "no override" if before.override is None else f"override {before.override}"
    return f"before, {function.address} had {before.driver or 'no driver'} and {override}"


def _published(facts: Facts, case: Case) -> Iterable[str]:
    pool = case.pool
    if pool is None or pool.mode is not Mode.PASSTHROUGH or pool.resource is None:
        return
    path = cdi.path(facts.cdi_directory, pool.resource)
    if not case.nodes and case.state is UnitState.UNCLAIMED:
        yield f"a claim that asks for it brings it into {path}"
        return
    if not case.nodes:
        yield f"it is not in {path}, so no pod can be given it"
        return
    yield f"{path} offers it as {pool.resource}={case.name}, with {', '.join(case.nodes)}"


def time(when: datetime) -> str:
    """Return a time as a person reads it, to the second."""
    return when.isoformat(sep=" ", timespec="seconds")
