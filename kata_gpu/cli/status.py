"""``kata-gpu status``: what the running agent says of the node and each unit."""

import argparse
from pathlib import Path
from typing import Any, Final

from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import HostError
from kata_gpu.observe import client

_BAD: Final = frozenset({"refused", "failed", "stuck"})
_HEADER: Final = ("UNIT", "STATE", "POOL", "RESOURCE", "GROUP", "NUMA", "DEVICE")
_WIDE: Final = ("DRIVERS", "NODES")


def status(options: argparse.Namespace) -> int:
    """Print the state of the node."""
    state = client.get(_socket(options), "/v1/status")
    if options.output in {"json", "yaml"}:
        print(output.dump(state, options.output))
        return ExitCode.OK
    try:
        text = _text(state, is_wide=options.output == "wide")
    except (KeyError, TypeError, AttributeError) as error:
        raise HostError(
            f"cannot read the agent's answer ({error!r}): it is of another version; -o json "
            f"shows it as it is"
        ) from error
    print(text)
    return ExitCode.OK


def _socket(options: argparse.Namespace) -> Path:
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
        output.coloured(f"{unit['id']} is {unit['state']}: {unit['reason']}", "bad")
        for unit in state["units"]
        if unit["state"] in _BAD | {"pending"}
    ]
    lines += [
        f"{finding['severity']}: {finding['subject']}: {finding['reason']}; {finding['remedy']}"
        for finding in state["findings"]
    ]
    lines += [f"problem: {p['subject']}: {p['reason']}" for p in state["problems"]]
    if "read_only" in state:
        lines.append(output.coloured(f"read-only: {state['read_only']}", "bad"))
    if "blueprint_error" in state:
        lines.append(output.coloured(f"blueprint not reloaded: {state['blueprint_error']}", "bad"))
    if "turn_error" in state:
        lines.append(output.coloured(f"this is old: {state['turn_error']}", "bad"))
    return "\n".join(lines)


def _row(unit: dict[str, Any], *, is_wide: bool) -> list[object]:
    row = [
        unit["id"],
        unit["state"],
        unit["pool"],
        unit["resource"],
        ",".join(map(str, unit["groups"])),
        unit["numa_node"],
        unit["functions"][0]["label"] if unit["functions"] else None,
    ]
    if is_wide:
        row.append(",".join(f["binding"]["driver"] or "none" for f in unit["functions"]))
        row.append(" ".join(unit["nodes"]))
    return row


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "on" if value else "off"
