"""``kata-gpu cdi``: can Kata's runtimes read the CDI files of this node, and what is in them?"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.discover import cdi as reading
from kata_gpu.host import Host
from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.cdi import CdiDevice, CdiFault, CdiSpecs, Scope
from kata_gpu.plan import cdi as rules

_SCOPES: Final = {
    Scope.EVERY_POD: "stops every pod",
    Scope.DEVICE: "breaks this device",
    Scope.AMBIGUOUS: "the runtimes disagree",
    Scope.IGNORED: "is not looked at",
    Scope.UNKNOWN: "cannot be judged",
}
_COLOURS: Final = {Scope.EVERY_POD: "bad", Scope.DEVICE: "bad", Scope.UNKNOWN: "doubtful"}
_HEADER: Final = ("FILE", "WHERE", "RULE", "GO", "RUST", "FOUND", "WHAT TO DO")
_DEVICES: Final = ("DEVICE", "FILE", "OURS", "GO", "RUST", "NODES", "MISSING")


def validate(options: argparse.Namespace) -> int:
    """Print every fault of the files; exit with 3 when one of them is refused or invalid."""
    host = context.host(options)
    runtimes = tuple(Runtime) if options.runtime is None else (Runtime(options.runtime),)
    if options.files:
        specs = reading.read_files(host, _named(host, options.files))
    else:
        specs = reading.read(host, configuration.settings(options).cdi_directory)
    found = rules.judge(specs, runtimes)
    _print(specs, found, options.output)
    is_refused = bool(specs.problems) or any(not fault.is_note for fault in found)
    return ExitCode.REFUSED if is_refused else ExitCode.OK


def list_(options: argparse.Namespace) -> int:
    """Print every device that a file names; exit with 3 when no runtime could resolve one."""
    specs = reading.read(context.host(options), configuration.settings(options).cdi_directory)
    found = rules.devices(specs)
    stoppers = [f for f in rules.judge(specs) if Scope.EVERY_POD in f.scopes]
    if options.output in {"json", "yaml"}:
        from kata_gpu.observe.document import document  # noqa: PLC0415 - for these alone

        body = {"devices": document(found), "stopped_by": document(stoppers)}
        print(output.dump(output.printable(body), options.output))
    else:
        _print_devices(found, stoppers)
    return ExitCode.REFUSED if stoppers else ExitCode.OK


def _named(host: Host, named: Sequence[Path]) -> list[str]:
    """Return paths as the host has them; those on the command line are this process's own."""
    root = host.root
    paths = (path.absolute() for path in named)
    return [f"/{p.relative_to(root)}" if p.is_relative_to(root) else str(p) for p in paths]


def _print(specs: CdiSpecs, found: Sequence[CdiFault], form: str) -> None:
    if form in {"json", "yaml"}:
        from kata_gpu.observe.document import document  # noqa: PLC0415 - for these alone

        body = {
            "files": [file.path for file in specs.files],
            "faults": document(found),
            "problems": list(specs.problems),
        }
        print(output.dump(output.printable(body), form))
    elif form == "wide":
        rows = [[f.file, f.where, f.rule, f.go, f.rust, f.reason, f.remedy] for f in found]
        print(output.table(_HEADER, map(output.printable, rows)))
    else:
        _print_lines(specs, found)


def _print_lines(specs: CdiSpecs, found: Sequence[CdiFault]) -> None:
    for fault in found:
        worst = next((scope for scope in Scope if scope in fault.scopes), None)
        colour = "dim" if worst is None else _COLOURS.get(worst, "doubtful")
        print(output.coloured(output.printable(f"{fault} [{fault.rule}]"), colour))
        print(f"    {_breaks(fault)}")
        print(f"    to do: {fault.remedy}")
    for problem in specs.problems:
        print(f"problem: {output.printable(problem)}")
    sick = len({fault.file for fault in found if not fault.is_note})
    files = f"{len(specs.files)} file{'' if len(specs.files) == 1 else 's'}"
    print(
        f"{files}, {sick} with faults"
        if sick
        else f"{files}, all valid for the runtimes asked about"
    )


def _breaks(fault: CdiFault) -> str:
    sides = (("Go runtime", fault.go), ("runtime-rs", fault.rust))
    told = [f"{name}: {'fine' if scope is None else _SCOPES[scope]}" for name, scope in sides]
    if not fault.scopes:
        return "against the CDI specification; Kata's runtimes take it"
    return "; ".join(told)


def _print_devices(found: Sequence[CdiDevice], stoppers: Sequence[CdiFault]) -> None:
    rows = [
        [
            device.name,
            device.file,
            "yes" if device.is_ours else "no",
            "yes" if device.go else "no",
            "yes" if device.rust else "no",
            " ".join(device.nodes),
            " ".join(device.missing),
        ]
        for device in found
    ]
    print(
        output.table(_DEVICES, [output.printable(row) for row in rows]) if found else "no devices"
    )
    for fault in stoppers:
        names = rules.stopped(fault)
        print(output.coloured(output.printable(f"{names} resolve none: {fault}"), "bad"))
