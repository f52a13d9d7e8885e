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
    path = settings_path(options)
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

    return file.load(blueprint_path(options, found))


def settings_path(options: argparse.Namespace) -> Path:
    """Return where the settings file is, if there is one."""
    named: Path | None = options.settings
    return named or host(options).path(agent.DEFAULT_PATH)


def blueprint_path(options: argparse.Namespace, found: Settings) -> Path:
    """Return where the blueprint is."""
    named: Path | None = options.blueprint
    return named or host(options).path(found.blueprint)
