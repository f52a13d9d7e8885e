"""``kata-gpu kata``: which Kata handlers are here, and what configuration counts for each."""

import argparse
import sys
from collections.abc import Iterable
from typing import Final

from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.discover import kata as discover
from kata_gpu.errors import HostError, KataGpuError
from kata_gpu.host import Host
from kata_gpu.model.blueprint import KataHandler
from kata_gpu.model.kata import Handler, InstalledFile
from kata_gpu.plan.kata import handlers, printing
from kata_gpu.settings import handlers as declarations

_HEADER: Final = ("HANDLER", "RUNTIME", "HYPERVISOR", "VERSION", "INSTALLED", "TEE", "BLUEPRINT")
_WIDE: Final = ("CONFIG", "BASE")


def list_(options: argparse.Namespace) -> int:
    """Print every handler; exit with 3 when a runtime would start no pod of one."""
    host = context.host(options)
    prefixes = configuration.settings(options).kata_prefixes
    files = discover.installed(host, prefixes, _declared(options, host))
    found = [handlers.describe(file) for file in files]
    if options.output in {"json", "yaml"}:
        from kata_gpu.observe.document import document  # noqa: PLC0415 - for these alone

        body = {"handlers": output.printable(document(found))}
        print(output.dump(body, options.output))
    else:
        print(_table(found, is_wide=options.output == "wide"))
        _complain(f"{h.name}: {problem}" for h in found for problem in h.problems)
    return ExitCode.REFUSED if any(handler.problems for handler in found) else ExitCode.OK


def _table(found: list[Handler], *, is_wide: bool) -> str:
    if not found:
        return "no Kata handler is installed"
    rows: list[list[object]] = []
    for handler in found:
        row: list[object] = [
            output.Tinted(handler.name, "bad") if handler.problems else handler.name,
            handler.runtime.value,
            handler.hypervisor,
            handler.version or "unknown",
            handler.installed.value,
            handler.tee.value,
            "yes" if handler.in_blueprint else "no",
        ]
        rows.append([*row, handler.config, handler.base] if is_wide else row)
    return output.table(_HEADER + _WIDE if is_wide else _HEADER, map(output.printable, rows))


def show(options: argparse.Namespace) -> int:
    """Print what counts for one handler; exit with 3 when its runtime would start no pod."""
    host = context.host(options)
    file = _chosen(options, host, _declared(options, host))
    found = handlers.merged(file)
    if options.output in {"json", "yaml"}:
        print(output.dump(output.printable(printing.document(found, file)), options.output))
    else:
        form = printing.with_origins if options.origin else printing.toml
        text = form(found).rstrip("\n")
        print(output.plain(text))
        _complain(f"{'refused' if f.is_fatal else 'note'}: {f}" for f in found.faults)
    return ExitCode.REFUSED if found.fatal else ExitCode.OK


def _chosen(
    options: argparse.Namespace, host: Host, known: tuple[KataHandler, ...]
) -> InstalledFile:
    """Return the base file that is asked for, by its path or by its handler's name."""
    asked: str = options.handler
    named = next((h for h in known if asked in {h.name, h.config}), None)
    if named is not None:
        return _there(host, discover.declared(host, named), named.config)
    if asked.startswith("/"):
        return _there(host, discover.undeclared(host, asked), asked)
    found = discover.places(host, configuration.settings(options).kata_prefixes)
    chosen = next((file for file in found if file.name == asked), None)
    if chosen is None:
        names = ", ".join(dict.fromkeys(file.name for file in found)) or "none"
        raise HostError(f"cannot show {asked}: there is no such handler (there are: {names})")
    return discover.read(host, chosen)


def _there(host: Host, file: InstalledFile | None, config: str) -> InstalledFile:
    if file is None:
        raise HostError(f"cannot show {config}: {discover.find(host, '', config).reason}")
    return file


def _declared(options: argparse.Namespace, host: Host) -> tuple[KataHandler, ...]:
    """Return the blueprint's handlers; none, with a word on it, where it cannot be used."""
    found = configuration.settings(options)
    path = configuration.blueprint_path(options, found)
    try:
        known = declarations.load(path)
    except KataGpuError as error:
        if options.blueprint is not None:
            raise
        _complain([f"note: {error}; this goes on without it"])
        return ()
    if known is None and options.blueprint is not None:
        raise HostError(f"cannot read {path}: it does not exist")
    return known or ()


def _complain(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"kata-gpu: {output.printable(line)}", file=sys.stderr)
