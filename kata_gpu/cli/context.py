"""What the options say about where things are: the host, the settings, the blueprint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kata_gpu.host import Host

if TYPE_CHECKING:  # pydantic is imported by who needs it
    from kata_gpu.settings.agent import Settings


def host(options: argparse.Namespace) -> Host:
    """Return the host at --root."""
    root: Path = options.root
    return Host.at(root.absolute())


def settings(options: argparse.Namespace) -> "Settings":
    """Return the settings file's content; defaults without one, unless --settings names it."""
    from kata_gpu.settings import agent  # noqa: PLC0415 - see above

    path: Path = options.settings or host(options).path(agent.DEFAULT_PATH)
    return agent.load(path, is_required=options.settings is not None)


def blueprint_path(options: argparse.Namespace, found: "Settings") -> Path:
    """Return the path of the blueprint in force."""
    path: Path | None = options.blueprint
    return path or host(options).path(found.blueprint)
