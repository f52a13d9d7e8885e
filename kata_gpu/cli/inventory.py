"""``kata-gpu inventory``: what is on this node, and what may leave it."""

import argparse

from kata_gpu.cli import context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.discover.inventory import collect, is_accelerator
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.iommu import Verdict, judge, judge_without_group
from kata_gpu.model.isolation import all_bonded, bonds
from kata_gpu.model.pci import PciFunction, PhysicalFunction, VirtualFunction

_HEADER = ("ADDRESS", "DEVICE", "CLASS", "DRIVER", "GROUP", "NUMA", "PASSTHROUGH")
_WIDE = ("OVERRIDE", "ROOT", "BARS", "LINK", "RESET", "SR-IOV", "POWER", "VFIO")


def inventory(options: argparse.Namespace) -> int:
    """Print the inventory and exit with 0; problems are part of it."""
    host = context.host(options)
    found = collect(host, interest=(lambda _: True) if options.all else is_accelerator)
    if options.output != "table":  # which has no room for it
        from kata_gpu.discover import vfio  # noqa: PLC0415 - for these alone

        found = vfio.suited(host, found)
    verdicts = _verdicts(found)
    if options.output in {"json", "yaml"}:
        from kata_gpu.observe.document import document  # noqa: PLC0415 - for these alone

        body = document(found)
        for name in ("cdi", "quarantine", "set_aside"):
            del body[name]  # not looked for
        body["verdicts"] = document(tuple(verdicts.values()))
        print(output.dump(body, options.output))
    else:
        print(_text(found, verdicts, is_wide=options.output == "wide"))
    return ExitCode.OK


def _verdicts(found: Inventory) -> dict[object, Verdict]:
    """Return a verdict for each group, and for each accelerator that is in none."""
    functions, groups = found.by_address(), found.by_group()
    bonded = bonds(found.functions)
    with_endpoints = {f.iommu_group for f in found.functions if not f.is_bridge}
    sets = {all_bonded(number, bonded) for number in groups if number in with_endpoints}
    verdicts: dict[object, Verdict] = {}
    for together in sorted(sets):
        known = [groups[number] for number in together if number in groups]
        verdict = judge(known, functions, found.platform)
        verdicts.update(dict.fromkeys(together, verdict))
    for function in found.functions:
        if function.iommu_group is None and is_accelerator(function.identity):
            verdicts[function.address] = judge_without_group(function, found.platform)
    return verdicts


def _text(found: Inventory, verdicts: dict[object, Verdict], *, is_wide: bool) -> str:
    rows = []
    suited = {driver.address: driver.driver or driver.module for driver in found.vfio_drivers}
    for function in found.functions:
        verdict = verdicts.get(
            function.address if function.iommu_group is None else function.iommu_group
        )
        row: list[object] = [
            function.address,
            function.label,
            function.identity.class_hex[:4],
            function.binding.driver,
            function.iommu_group,
            function.numa_node,
            _answer(function, verdict),
        ]
        more = [*_more(function), suited.get(function.address)] if is_wide else []
        rows.append(row + more)
    text = output.table(_HEADER + _WIDE if is_wide else _HEADER, rows)
    for verdict in dict.fromkeys(verdicts.values()):
        numbers = ", ".join(map(str, verdict.groups))
        where = f"group {numbers}" if numbers else "node"
        text += "".join(f"\n{where}: {blocker}" for blocker in verdict.blockers)
    text += "".join(f"\nproblem: {problem.subject}: {problem.reason}" for problem in found.problems)
    return text


def _answer(function: PciFunction, verdict: Verdict | None) -> str | None:
    if function.is_bridge or verdict is None:
        return None
    return "yes" if verdict.is_viable else "no"


def _more(function: PciFunction) -> list[object]:
    link = function.link
    return [
        function.binding.override,
        function.root,
        "+".join(output.size(bar.size_bytes) for bar in function.bars),
        f"{link.speed_gt_s}x{link.width}/{link.max_speed_gt_s}x{link.max_width}" if link else None,
        ",".join(function.reset_methods),
        _sriov(function),
        function.power_state,
    ]


def _sriov(function: PciFunction) -> str | None:
    match function.sriov:
        case PhysicalFunction(total_vfs=total, active_vfs=active):
            return f"PF {active}/{total}"
        case VirtualFunction(parent=parent):
            return f"VF of {parent}"
        case None:
            return None
