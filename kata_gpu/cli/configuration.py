"""What the options say about the settings and the blueprint."""

import argparse
from pathlib import Path

from kata_gpu.cli.context import host
from kata_gpu.errors import HostError
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.settings import agent
from kata_gpu.settings.agent import Settings


def settings(options: argparse.Namespace) -> Settings:
    """Return the settings file's content; defaults without one, unless --settings names it."""
    path: Path = options.settings or host(options).path(agent.DEFAULT_PATH)
    try:
        if options.settings is None and not path.exists():
            return Settings()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    from kata_gpu.settings import agent_file  # noqa: PLC0415 - pydantic is for who parses

    return agent_file.load(path)


def blueprint(options: argparse.Namespace, found: Settings) -> Blueprint:
    """Return the blueprint in force."""
    from kata_gpu.settings import blueprint as file  # noqa: PLC0415 - pydantic is for who parses

    path: Path | None = options.blueprint
    return file.load(path or host(options).path(found.blueprint))
