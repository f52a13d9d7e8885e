"""``kata-gpu doctor``: is this node fit for GPU passthrough, and if not, what is to be done?"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.discover import node_facts
from kata_gpu.errors import KataGpuError
from kata_gpu.host import Host, paths
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.doctor import Check, Grade
from kata_gpu.model.node_facts import AgentFacts, AgentPart, PartState
from kata_gpu.plan import doctor as checks
from kata_gpu.settings.agent import Settings

_COLOURS: Final = {
    Grade.ERROR: "bad",
    Grade.WARNING: "doubtful",
    Grade.INFO: "dim",
    Grade.OK: "good",
}
_HEADER: Final = ("GRADE", "CHECK", "FOUND", "WHY", "WHAT TO DO")
_SHOWN: Final = 400
_ANSWER_TIMEOUT_S: Final = 3.0


def doctor(options: argparse.Namespace) -> int:
    """Print the checks, the worst first; exit with 3 when one is an error."""
    only = checks.CHECKS if options.only is None else options.only
    strangers = [name for name in only if name not in checks.CHECKS]
    if strangers:
        print(
            f"kata-gpu: cannot check {', '.join(map(_clean, strangers))}: there is no such check "
            f"(there are: {', '.join(checks.CHECKS)})",
            file=sys.stderr,
        )
        return ExitCode.USAGE
    host = context.host(options)
    found, agent, blueprint = _agent(options, host)
    facts = node_facts.collect(
        host,
        state_directory=found.state_directory,
        cdi_directory=found.cdi_directory,
        agent=agent,
        kata_prefixes=found.kata_prefixes,
        blueprint=replace(blueprint, pod_resources=found.pod_resources),
        link=found.pod_resources_link,
    )
    answers = [_printable(check) for check in checks.judge(facts, only)]
    _print(answers, options.output)
    is_unfit = any(check.grade is Grade.ERROR for check in answers)
    return ExitCode.REFUSED if is_unfit else ExitCode.OK


def _agent(options: argparse.Namespace, host: Host) -> tuple[Settings, AgentFacts, Blueprint]:
    """Return the settings in force, how each part of the agent is, and the blueprint.

    Without one that can be used it is empty.
    """
    found, part = _settings(options)
    part_of_blueprint, blueprint = _blueprint(host.path(found.blueprint))
    parts = AgentFacts(
        settings=part,
        blueprint=part_of_blueprint,
        ledger=_ledger(host.path(found.ledger)),
        socket=_socket(host.path(found.socket)),
    )
    return found, parts, blueprint


def _settings(options: argparse.Namespace) -> tuple[Settings, AgentPart]:
    try:
        found = configuration.settings(options)
    except KataGpuError as error:
        return Settings(), _fault(error)
    return found, AgentPart(state=PartState.SOUND, detail=f"files in {found.state_directory}")


def _blueprint(path: Path) -> tuple[AgentPart, Blueprint]:
    try:
        if paths.status(path) is None:
            return AgentPart(
                state=PartState.ABSENT, detail=f"none at {path}"
            ), node_facts.NO_BLUEPRINT
        from kata_gpu.settings import blueprint  # noqa: PLC0415 - pydantic is for who parses

        found = blueprint.load(path)
    except KataGpuError as error:
        return _fault(error), node_facts.NO_BLUEPRINT
    pools = ", ".join(pool.name for pool in found.pools) or "none"
    detail = f"version {found.version}, pools: {pools}"
    return AgentPart(state=PartState.SOUND, detail=detail), found


def _ledger(path: Path) -> AgentPart:
    try:
        if paths.status(path) is None:
            return AgentPart(state=PartState.ABSENT, detail=f"none at {path}: nothing is ours")
        from kata_gpu.act.journal import Journal  # noqa: PLC0415 - hashlib is for who has one

        found = Journal(path).ledger
    except KataGpuError as error:
        return _fault(error)
    return AgentPart(
        state=PartState.SOUND, detail=f"units: {len(found.entries)}, files: {len(found.files)}"
    )


def _socket(path: Path) -> AgentPart:
    try:
        if paths.status(path) is None:
            return AgentPart(state=PartState.ABSENT, detail=f"no agent runs: no {path}")
        from kata_gpu.observe import client  # noqa: PLC0415 - most of its cost is http.client

        found = client.get(path, "/v1/status", timeout_s=_ANSWER_TIMEOUT_S)
    except KataGpuError as error:
        return _fault(error)
    version = found.get("agent", "starting") if isinstance(found, dict) else "unknown"
    return AgentPart(state=PartState.SOUND, detail=f"the agent answers ({version})")


def _fault(error: KataGpuError) -> AgentPart:
    """Tell what is wrong from what this process may not see."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    state = PartState.BROKEN if cause is None else PartState.UNKNOWN
    return AgentPart(state=state, detail=str(error))


def _print(found: list[Check], form: str) -> None:
    if form in {"json", "yaml"}:
        from kata_gpu.observe.document import document  # noqa: PLC0415 - for these alone

        print(output.dump({"checks": document(found), "count": _count(found)}, form))
    elif form == "wide":
        rows = [[c.grade, c.id, c.found, c.why, c.remedy] for c in _by_grade(found)]
        print(output.table(_HEADER, rows))
    else:
        print(_text(found))


def _text(found: list[Check]) -> str:
    """Return each check in a line, and below what is to be mended why and how."""
    width = max((len(check.id) for check in found), default=0)
    lines = []
    for check in _by_grade(found):
        grade = output.coloured(f"{check.grade:8}", _COLOURS[check.grade])
        lines.append(f"{grade} {check.id:{width}}  {check.found}")
        indent = " " * (width + 11)
        lines += [f"{indent}{word} {text}" for word, text in _mend(check)]
    return "\n".join([*lines, _summary(found)])


def _summary(found: list[Check]) -> str:
    count = _count(found)
    errors, warnings = count[Grade.ERROR], count[Grade.WARNING]
    return (
        f"{errors} error{'' if errors == 1 else 's'}, "
        f"{warnings} warning{'' if warnings == 1 else 's'}, "
        f"{count[Grade.INFO]} info, {count[Grade.OK]} ok"
    )


def _mend(check: Check) -> Iterable[tuple[str, str]]:
    if check.why is not None:
        yield "because", check.why
    if check.remedy is not None:
        yield "to do:", check.remedy


def _by_grade(found: list[Check]) -> list[Check]:
    order = list(Grade)
    return sorted(found, key=lambda check: order.index(check.grade))


def _count(found: list[Check]) -> dict[str, int]:
    return {grade.value: sum(c.grade is grade for c in found) for grade in Grade}


def _printable(check: Check) -> Check:
    """Return the check without what a hostile node could do to a terminal or a log."""
    return replace(
        check,
        found=_clean(check.found),
        why=check.why and _clean(check.why),
        remedy=check.remedy and _clean(check.remedy),
    )


def _clean(text: str) -> str:
    shown = output.printable(text[:_SHOWN])
    return f"{shown}…" if len(text) > _SHOWN else shown
