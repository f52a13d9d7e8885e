"""``kata-gpu runtime``: how the container runtime is wired, and what the cluster is told."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.discover import runtimes as discover
from kata_gpu.errors import HostError
from kata_gpu.host import files, paths
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.runtime import ContainerRuntime, Wire
from kata_gpu.observe.document import document
from kata_gpu.plan.runtime import check as rules
from kata_gpu.plan.runtime import classes

_HEADER: Final = ("HANDLER", "WIRED", "SHIM", "BASE FILE", "RUNTIMECLASS")
_WIDE: Final = ("RUNTIME", "TYPE", "SNAPSHOTTER", "BY")
_WRITTEN: Final = "Rendered by kata-gpu runtime render."


def check(options: argparse.Namespace) -> int:
    """Print what is wired to what; exit with 3 when something is wrong or refused."""
    host = context.host(options)
    wanted = _wanted(options)
    found = discover.find(host)
    targets = discover.targets(host, rules.named_paths(wanted, found))
    wires = rules.wires(wanted, found, targets)
    faults = rules.faults(wanted, found, targets)
    body = output.printable(
        {
            "runtimes": [_runtime(runtime) for runtime in found],
            "handlers": document(wires),
            "faults": list(faults),
            "to_restart": list(rules.unread(found)),
        }
    )
    tables = rules.to_add(wanted, found)
    if options.output in {"json", "yaml"}:
        print(output.dump({**body, "tables": tables}, options.output))
    else:
        is_wide = options.output == "wide"
        print(_text(body, is_wide=is_wide))
        if is_wide and tables is not None:
            print(f"\ntables of our handlers, as this container runtime reads them:\n\n{tables}")
    is_wrong = faults or any(wire.faults for wire in wires if _matters(wire, wanted))
    return ExitCode.REFUSED if is_wrong else ExitCode.OK


def _wanted(options: argparse.Namespace) -> Blueprint:
    """Return the blueprint; without one that was named, an empty one will do."""
    settings = configuration.settings(options)
    path = configuration.blueprint_path(options, settings)
    if options.blueprint is None and paths.status(path) is None:
        return Blueprint(version="none")
    return configuration.blueprint(options, settings)


def _matters(wire: Wire, wanted: Blueprint) -> bool:
    """Tell whether a fault of a handler is the blueprint's business; all are without one."""
    known = {*(h.name for h in wanted.handlers), *(h.name for h in wanted.wiring.handlers)}
    return not known or wire.handler in known


def _runtime(runtime: ContainerRuntime) -> dict[str, Any]:
    return {
        "kind": runtime.kind.value,
        "version": runtime.version,
        "service": runtime.service,
        "files": [file.path for file in runtime.files],
    }


def _text(body: Mapping[str, Any], *, is_wide: bool) -> str:
    lines = [_line(runtime) for runtime in body["runtimes"]] or ["no container runtime was found"]
    rows = [_row(wire, is_wide=is_wide) for wire in body["handlers"]]
    header = _HEADER + _WIDE if is_wide else _HEADER
    lines += ["", output.table(header, rows) if rows else "no handler of Kata's is wired"]
    for wire in body["handlers"]:
        lines += [output.coloured(f"{wire['handler']}: {f}", "bad") for f in wire["faults"]]
    lines += [output.coloured(f"fault: {fault}", "bad") for fault in body["faults"]]
    lines += [output.coloured(line, "doubtful") for line in body["to_restart"]]
    return "\n".join(lines)


def _line(runtime: Mapping[str, Any]) -> str:
    service = f", {runtime['service']}" if runtime["service"] else ""
    read = ", ".join(runtime["files"]) or "no file"
    return f"{runtime['kind']} {runtime['version'] or '(version unknown)'}{service} reads {read}"


def _row(wire: Mapping[str, Any], *, is_wide: bool) -> list[object]:
    row: list[object] = [
        wire["handler"],
        output.Tinted("yes", "good") if wire["is_wired"] else output.Tinted("no", "bad"),
        _seen(wire["shim"], wire["is_shim_executable"]),
        _seen(wire["config"], wire["has_config"]),
        wire["runtime_class"],
    ]
    if is_wide:
        row += [wire["runtime"], wire["runtime_type"], wire["snapshotter"], wire["file"]]
    return row


def _seen(path: str | None, is_there: bool | None) -> str | None:
    return f"{path} (missing)" if path is not None and is_there is False else path


def render(options: argparse.Namespace) -> int:
    """Print or write the classes that the cluster needs for the blueprint."""
    settings = configuration.settings(options)
    wanted = configuration.blueprint(options, settings)
    texts = {name: _yaml(body) for name, body in classes.documents(wanted).items()}
    directory: Path | None = options.directory
    if directory is None:
        print("---\n".join(texts.values()), end="")
        return ExitCode.OK
    for name in _write(directory, texts):
        print(output.printable(str(directory / name)))
    return ExitCode.OK


def _write(directory: Path, texts: Mapping[str, str]) -> Iterable[str]:
    """Write what differs, and yield its name."""
    for name, text in texts.items():
        path = directory.resolve() / name
        if files.read(path) != text:
            files.replace(path, text, staging=path.parent)
            if files.read(path) != text:
                raise HostError(f"cannot write {path}: it reads back otherwise")
            yield name


def _yaml(body: Mapping[str, Any]) -> str:
    return f"# {_WRITTEN}\n{output.dump(body, 'yaml')}\n"
