"""``kata-gpu status``: what the running agent says of the node and each unit."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import HostError
from kata_gpu.observe import client

_IN_ORDER: Final = frozenset({"available", "unclaimed", "host", "ignored"})
"""States that the table says all about, unless somebody has what a claim could ask for."""

_SECONDS: Final = len("2026-01-01T00:00:00")
_HELD: Final = frozenset({"in-use", "waiting"})
_HEADER: Final = ("UNIT", "STATE", "POOL", "RESOURCE", "GROUP", "NUMA", "DEVICE")
_WIDE: Final = ("OFFER", "DRIVERS", "NODES", "CLEANED")


def status(options: argparse.Namespace) -> int:
    """Print the state of the node."""
    state = output.printable(client.get(socket(options), "/v1/status"))
    if options.output in {"json", "yaml"}:
        print(output.dump(state, options.output))
        return ExitCode.OK
    try:
        text = _text(state, is_wide=options.output == "wide")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HostError(
            f"cannot read the agent's answer ({error!r}): it is of another version; -o json "
            f"shows it as it is"
        ) from error
    print(text)
    return ExitCode.OK


def socket(options: argparse.Namespace) -> Path:
    """Return where the agent serves."""
    if options.socket is not None:
        return Path(options.socket)
    return context.host(options).path(configuration.settings(options).socket)


def _text(state: dict[str, Any], *, is_wide: bool) -> str:
    if not state["ready"]:
        return "the agent takes its first turn; ask again"
    platform = state["platform"]
    lines = [
        f"agent {state['agent']}, blueprint {state['blueprint']}, "
        f"turn {state['pass_number']} at {state['read_at']}",
        f"kernel {platform['kernel_release']}, IOMMU {platform['iommu'] or 'off'}, interrupt "
        f"remapping {_yes(platform['interrupt_remapping'])}, iommufd {_yes(platform['iommufd'])}, "
        f"TEE {', '.join(platform['tees']) or 'none'}",
        "",
        output.table(
            _HEADER + _WIDE if is_wide else _HEADER,
            [_row(unit, is_wide=is_wide) for unit in state["units"]],
        )
        if state["units"]
        else "no unit is selected by any pool",
    ]
    lines += [
        output.coloured(line, _colour(unit))
        for unit in state["units"]
        if unit["state"] not in _IN_ORDER or (unit["state"] == "unclaimed" and unit["holders"])
        for line in _why(unit)
    ]
    lines += [
        f"{finding['severity']}: {finding['subject']}: {finding['reason']}; {finding['remedy']}"
        for finding in state["findings"]
    ]
    lines += [f"problem: {p['subject']}: {p['reason']}" for p in state["problems"]]
    lines += _kubernetes(state.get("kubernetes", {}))
    if "read_only" in state:
        lines.append(output.coloured(f"read-only: {state['read_only']}", "bad"))
    if "blueprint_error" in state:
        lines.append(output.coloured(f"blueprint not reloaded: {state['blueprint_error']}", "bad"))
    if "turn_error" in state:
        lines.append(output.coloured(f"this is old: {state['turn_error']}", "bad"))
    return "\n".join(lines)


def _kubernetes(told: dict[str, Any]) -> Iterable[str]:
    """Yield what keeps Kubernetes from hearing of the node."""
    for kind, name in (("device_plugins", "resource"), ("dra_drivers", "driver")):
        for part in told.get(kind, ()):
            if part["problem"]:
                yield f"kubernetes: {part[name]}: {part['problem']}"
    for what, trouble in told.get("troubles", {}).items():
        yield f"kubernetes: {what}: {trouble}"


def _why(unit: dict[str, Any]) -> Iterable[str]:
    """Yield why a unit is in its state; who has it in a line for each."""
    about = f"{unit['id']} is {unit['state']}"
    if unit["state"] not in _HELD or not unit["holders"]:
        yield f"{about}: {unit['reason']}"
        return
    from kata_gpu.model.holder import Holder, How  # noqa: PLC0415 - where somebody has one

    yield f"{about}:"
    for holder in unit["holders"]:
        yield f"  {Holder(**{**holder, 'how': How(holder['how'])})}"


def _colour(unit: dict[str, Any]) -> str:
    return output.STATES.get(unit["state"], "doubtful")


def _row(unit: dict[str, Any], *, is_wide: bool) -> list[object]:
    row = [
        unit["id"],
        output.Tinted(unit["state"], _colour(unit)),
        unit["pool"],
        unit["resource"],
        ",".join(map(str, unit["groups"])),
        unit["numa_node"],
        unit["functions"][0]["label"] if unit["functions"] else None,
    ]
    if is_wide:
        row.append(", ".join(how for how in (unit.get("offer"), unit.get("bundle")) if how))
        row.append(",".join(f["binding"]["driver"] or "none" for f in unit["functions"]))
        row.append(" ".join(unit["nodes"]))
        row.append(_cleaned(unit["cleaned"]))
    return row


def _cleaned(cleaned: dict[str, Any] | None) -> str | None:
    if cleaned is None:
        return None
    return f"{cleaned['at'][:_SECONDS]} {cleaned['method']}: {cleaned['result']}"


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "on" if value else "off"
