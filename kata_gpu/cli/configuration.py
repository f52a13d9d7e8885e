"""What the options say about the settings and the blueprint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kata_gpu.settings.files import Files

if TYPE_CHECKING:
    from kata_gpu.model.blueprint import Blueprint
    from kata_gpu.settings.agent import Settings


def files(options: argparse.Namespace) -> Files:
    """Return where they are."""
    root: Path = options.root
    return Files(
        root=root.absolute(),
        named_settings=options.settings,
        named_blueprint=getattr(options, "blueprint", None),  # not every verb has one
    )


def settings(options: argparse.Namespace) -> "Settings":
    """Return the settings file's content; defaults without one, unless --settings names it."""
    return files(options).read_settings()


def blueprint(options: argparse.Namespace, found: "Settings") -> "Blueprint":
    """Return the blueprint in force."""
    return files(options).read_blueprint(found)


def blueprint_path(options: argparse.Namespace, found: "Settings") -> Path:
    """Return where the blueprint is."""
    return files(options).blueprint(found)
