"""Hold what a pod was given against what Kata can make of it, and name the likely cause.

What is wrong now goes before what a log said: a log may be of a mend ago.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.cdi import CdiDevice, CdiFault, Scope
from kata_gpu.model.explanation import Cause, PodExplanation, Said, Section
from kata_gpu.model.node_facts import Unknown
from kata_gpu.model.pod import JournalLine, PodDevice, PodFacts
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import cdi
from kata_gpu.plan.cdi.libraries import LIBRARIES
from kata_gpu.plan.kata.dialect import DIALECTS
from kata_gpu.plan.pods import failures

_SHIM: Final = re.compile(r"io\.containerd\.(kata[a-z0-9-]*)\.v2")
_HANDLER: Final = re.compile(r"runtime_?handler[^a-z0-9]{1,5}(kata[a-z0-9-]*)", re.IGNORECASE)
_GROUP: Final = re.compile(r"/dev/vfio/\d+", re.ASCII)
_IN_ORDER: Final = frozenset({UnitState.AVAILABLE, UnitState.IN_USE})
_LINES_SHOWN: Final = 10
_CAUSES_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One pod as it stands."""

    facts: PodFacts
    uid: str | None
    devices: tuple[PodDevice, ...]
    handler: str | None
    runtimes: tuple[Runtime, ...]
    """Those that the pod may be with: both where nobody knows its handler."""

    known: tuple[CdiDevice, ...]


def explain(facts: PodFacts) -> PodExplanation:
    """Return why the pod of *facts* does not get its devices, or that nothing is in its way."""
    case = _case(facts)
    causes = tuple(dict.fromkeys(_causes(case)))[:_CAUSES_MAX]
    pod = f"{facts.namespace}/{facts.name}"
    return PodExplanation(
        pod=pod,
        uid=case.uid,
        handler=case.handler,
        is_in_order=not causes and case.uid is not None,
        headline=_headline(case, pod, causes),
        source=_source(facts),
        causes=causes,
        sections=tuple(_sections(case, causes)),
        actions=tuple(dict.fromkeys(_actions(case, causes))),
    )


def _case(facts: PodFacts) -> _Case:
    by_plugin = {} if isinstance(facts.allocations, Unknown) else facts.allocations.devices
    by_claim = {} if isinstance(facts.claims, Unknown) else facts.claims
    with_devices = [uid for uid in facts.uids if uid in by_plugin or uid in by_claim]
    uid = next(reversed(facts.uids), None)
    if uid not in with_devices and with_devices:
        uid = with_devices[-1]
    handler = _handler(facts)
    return _Case(
        facts=facts,
        uid=uid,
        devices=tuple(dict.fromkeys((*by_plugin.get(uid or "", ()), *by_claim.get(uid or "", ())))),
        handler=handler,
        runtimes=_runtimes(facts, handler),
        known=cdi.devices(facts.specs),
    )


def _handler(facts: PodFacts) -> str | None:
    """Return the handler that the journal names; else the blueprint's only one; else None."""
    lines = () if isinstance(facts.lines, Unknown) else facts.lines
    for line in reversed(lines):
        match = _SHIM.search(line.text) or _HANDLER.search(line.text)
        if match is not None and match[1] != "kata":
            return match[1]
    return facts.handlers[0].name if len(facts.handlers) == 1 else None


def _runtimes(facts: PodFacts, handler: str | None) -> tuple[Runtime, ...]:
    chosen = {h.runtime for h in facts.handlers if handler in {None, h.name}}
    if not chosen and handler is not None and handler.endswith("-runtime-rs"):
        chosen = {Runtime.RUST}
    return tuple(r for r in Runtime if r in chosen) or tuple(Runtime)


# Causes


def _causes(case: _Case) -> Iterator[Cause]:
    """Yield what is wrong, the likeliest first."""
    yield from _refused_files(case)
    for device in case.devices:
        yield from _of_device(case, device)
    yield from _of_handler(case)
    yield from _told(case)


def _refused_files(case: _Case) -> Iterator[Cause]:
    if not case.devices:
        return
    for fault in cdi.judge(case.facts.specs, case.runtimes):
        hit = [r for r in case.runtimes if _scope(fault, r) is Scope.EVERY_POD]
        if hit:
            names = " and ".join(LIBRARIES[runtime].name for runtime in hit)
            yield Cause(
                what=f"{fault}; {names} resolves no device at all while that file is there",
                mend=fault.remedy,
                source=f"rule {fault.rule} of kata-gpu cdi validate",
            )


def _scope(fault: CdiFault, runtime: Runtime) -> Scope | None:
    return fault.go if runtime is Runtime.GO else fault.rust


def _of_device(case: _Case, device: PodDevice) -> Iterator[Cause]:
    name = device.cdi_name
    entries = [known for known in case.known if known.name == name]
    won = [known for known in entries if any(_is_won(known, r) for r in case.runtimes)]
    if not won:
        where = ", ".join(known.file for known in entries) or "no CDI file"
        yield Cause(
            what=f"{device.owner} has {name}, which is in {where}, so Kata resolves it to nothing",
            mend=_unresolved_mend(case, device),
            source="device_cold_plug.go:142: unresolvable CDI devices",
        )
    for known in won:
        yield from _of_entry(case, known)
    yield from _of_unit(case, device)


def _is_won(known: CdiDevice, runtime: Runtime) -> bool:
    return known.go if runtime is Runtime.GO else known.rust


def _unresolved_mend(case: _Case, device: PodDevice) -> str:
    ours = {known.name.partition("=")[0] for known in case.known if known.is_ours}
    if device.resource in ours:
        return f"kata-gpu explain {device.id} tells why it is not offered"
    return (
        f"have the device plugin of {device.resource} write a CDI file of that kind, or take "
        f"{device.resource} from the pod: Kata resolves devices of every resource"
    )


def _of_entry(case: _Case, known: CdiDevice) -> Iterator[Cause]:
    for path in known.missing:
        yield Cause(
            what=f"{known.file} gives {known.name} the node {path}, and no device is there",
            mend="have the file written again by the program it belongs to; of ours, "
            "systemctl reload kata-gpu",
            source="the node's /dev",
        )
    files = [file for file in case.facts.specs.files if file.path == known.file]
    for fault in (f for file in files for f in cdi.judge_file(file, {})):
        hit = any(_scope(fault, runtime) is Scope.DEVICE for runtime in case.runtimes)
        if hit and fault.where.startswith(f"devices[{known.number}]"):
            yield Cause(
                what=str(fault),
                mend=fault.remedy,
                source=f"rule {fault.rule} of kata-gpu cdi validate",
            )


def _of_unit(case: _Case, device: PodDevice) -> Iterator[Cause]:
    said = case.facts.said
    state = said.states.get(device.id) if isinstance(said, Said) else None
    if state is not None and state[0] not in _IN_ORDER:
        yield Cause(
            what=f"unit {device.id} is {state[0]}: {state[1]}",
            mend=f"kata-gpu explain {device.id} tells what makes it available",
            source="the agent's word",
        )


def _of_handler(case: _Case) -> Iterator[Cause]:
    handler = next((h for h in case.facts.handlers if h.name == case.handler), None)
    paths = [p for known in _entries(case) for p in known.nodes]
    if handler is None:
        return
    groups = [path for path in paths if _GROUP.fullmatch(path)]
    if handler.is_confidential and groups:
        failure = failures.FAILURES["confidential-group"]
        yield Cause(
            what=f"handler {handler.name} is for confidential VMs, and the pod has the legacy "
            f"group {groups[0]}",
            mend=failure.mend,
            source=failure.source,
        )
    yield from _of_ports(handler, paths)


def _of_ports(handler: KataHandler, paths: list[str]) -> Iterator[Cause]:
    limit = DIALECTS[handler.runtime].root_ports_max
    if len(paths) > limit:
        failure = failures.FAILURES["root-ports"]
        yield Cause(
            what=f"the pod has {len(paths)} device nodes, and a VM of handler {handler.name} has "
            f"{limit} root ports",
            mend=failure.mend,
            source=failure.source,
        )


def _told(case: _Case) -> Iterator[Cause]:
    """Yield each failure that the journal tells, with its last line."""
    found: dict[str, tuple[failures.Failure, JournalLine]] = {}
    for line in () if isinstance(case.facts.lines, Unknown) else case.facts.lines:
        match = failures.find(line.text)
        if match is not None:
            found.pop(match[0], None)
            found[match[0]] = (match[1], line)
    for failure, line in reversed(found.values()):
        yield Cause(
            what=f"{failure.cause} ({line.program} said so at {_time(line)})",
            mend=failure.mend,
            source=failure.source,
        )


# Words


def _headline(case: _Case, pod: str, causes: tuple[Cause, ...]) -> str:
    if case.uid is None:
        return f"this node knows no pod {pod}"
    if causes:
        more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
        return f"pod {pod} cannot have its devices: {causes[0].what}{more}"
    if not case.devices:
        return f"pod {pod} has no devices, as far as this node knows"
    count = len(case.devices)
    plural = "" if count == 1 else "s"
    return f"pod {pod} has {count} device{plural}, and nothing was found in the way"


def _source(facts: PodFacts) -> str:
    word = facts.said
    if isinstance(word, Said):
        return f"by a look at the node, and the word of agent {word.agent}"
    return f"by a look at the node; {word.reason}"


def _sections(case: _Case, causes: tuple[Cause, ...]) -> Iterator[Section]:
    made: dict[str, Iterable[str]] = {
        "What keeps it from its devices": (f"{c.what} [{c.source}]" for c in causes),
        "What it was given": _given(case),
        "What Kata makes of it": (
            line for device in case.devices for line in _resolved(case, device)
        ),
        "Its handler": _about_handler(case),
        "What the node's programs said": _lines(case),
    }
    for title, sentences in made.items():
        if told := tuple(sentences):
            yield Section(title=title, sentences=told)


def _given(case: _Case) -> Iterator[str]:
    facts = case.facts
    if case.uid is None:
        yield (
            "kubelet keeps no logs of such a pod in /var/log/pods: it was never on this node, or "
            "is gone, or no kubelet runs here"
        )
    elif len(facts.uids) > 1:
        yield f"{len(facts.uids)} pods of that name were here; this is the one with uid {case.uid}"
    else:
        yield f"its uid is {case.uid}"
    if isinstance(facts.allocations, Unknown):
        yield f"what kubelet gave it is not known: {facts.allocations.reason}"
    if isinstance(facts.claims, Unknown):
        yield f"what its claims have is not known: {facts.claims.reason}"
    for device in case.devices:
        yield f"{device.owner} has {device.resource} {device.id}{_withdrawn(facts, device)}"
    if not case.devices and case.uid is not None:
        yield "kubelet gave it no device, be it of a device plugin or of a claim"


def _withdrawn(facts: PodFacts, device: PodDevice) -> str:
    if isinstance(facts.allocations, Unknown) or device.owner.startswith("claim "):
        return ""
    offered = facts.allocations.registered.get(device.resource)
    return "" if offered is None or device.id in offered else ", which no plugin offers now"


def _resolved(case: _Case, device: PodDevice) -> Iterator[str]:
    name = device.cdi_name
    for runtime in case.runtimes:
        found = [k for k in case.known if k.name == name and _is_won(k, runtime)]
        who = LIBRARIES[runtime].name
        if not found:
            yield f"{who} resolves {name} to nothing"
        for known in found:
            nodes = ", ".join(known.nodes) or "no device node"
            yield f"{who} resolves {name} by {known.file} to {nodes}"
    said = case.facts.said
    if isinstance(said, Said) and device.id in said.states:
        state, reason = said.states[device.id]
        yield f"unit {device.id} is {state}: {reason}"


def _about_handler(case: _Case) -> Iterator[str]:
    runtimes = " or ".join(LIBRARIES[runtime].name for runtime in case.runtimes)
    if case.handler is None:
        yield (f"it is not known, so this is for {runtimes}; a pod without Kata needs none of it")
    else:
        yield f"{case.handler}, of {runtimes}"


def _lines(case: _Case) -> Iterator[str]:
    lines = case.facts.lines
    if isinstance(lines, Unknown):
        yield f"it is not known: {lines.reason}"
        return
    wrong = [line for line in lines if failures.find(line.text) is not None]
    for line in wrong[-_LINES_SHOWN:]:
        yield f"{_time(line)} {line.program}: {line.text}"
    if not wrong:
        yield f"{len(lines)} lines within a day, and no failure that is known among them"


def _actions(case: _Case, causes: tuple[Cause, ...]) -> Iterator[str]:
    yield from (cause.mend for cause in causes)
    if case.uid is None:
        yield "look for its node: kubectl get pod -o wide"
    elif causes:
        yield "then delete the pod, unless it is tried again by itself"
    else:
        yield "nothing on this node; kubectl describe pod tells what Kubernetes says"


def _entries(case: _Case) -> list[CdiDevice]:
    names = {device.cdi_name for device in case.devices}
    won = (k for k in case.known if any(_is_won(k, r) for r in case.runtimes))
    return [known for known in won if known.name in names]


def _time(line: JournalLine) -> str:
    return line.at.isoformat(sep=" ", timespec="seconds")
