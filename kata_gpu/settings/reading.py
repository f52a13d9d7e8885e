"""Settings and blueprint, read by a process of its own.

pydantic takes a good part of an agent's start and of its memory, for the moment in which it
parses what an admin wrote: so the agent has another process do that, imports meanwhile what it
needs itself, and never has pydantic.
"""

from dataclasses import dataclass, replace
from typing import Self, TypeVar

from kata_gpu.errors import KataGpuError
from kata_gpu.host.apart import Apart
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.settings.agent import Settings
from kata_gpu.settings.files import Files, Stamp

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What the files said, or what is wrong with them."""

    settings: Settings | KataGpuError
    blueprint: Blueprint | KataGpuError
    stamp: Stamp | None
    """That of the blueprint's file before it was read."""


class Reading:
    """A process that reads *files*, while this one does something else."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._apart = _start(files)
        self._settings: Settings | None = None
        self._first: Read | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._apart.end()

    def settings(self) -> Settings:
        """Return the settings, when they are read.

        Raises:
            HostError: they cannot be read.
            InvalidBlueprint: they are wrong.
        """
        if self._settings is None:
            self._first = _answer(self._apart)
            self._settings = _value(self._first.settings)
        return self._settings

    def blueprint(self) -> Blueprint:
        """Return the blueprint: what was read, if its file still is what it was; else read anew.

        Raises:
            HostError: it cannot be read.
            InvalidBlueprint: it is wrong.
        """
        path = self._files.blueprint(self.settings())
        read, self._first = self._first, None
        if read is None or read.stamp != Stamp.of(path):
            read = _answer(_start(replace(self._files, named_blueprint=path)))
        return _value(read.blueprint)


def read(files: Files) -> Read:
    """Read them here; what is wrong with either is in its place."""
    settings: Settings | KataGpuError
    blueprint: Blueprint | KataGpuError
    try:
        settings = files.read_settings()
    except KataGpuError as error:
        settings = error
    known = settings if isinstance(settings, Settings) else Settings()
    stamp = Stamp.of(files.blueprint(known))
    try:
        blueprint = files.read_blueprint(known)
    except KataGpuError as error:
        blueprint = error
    return Read(settings=settings, blueprint=blueprint, stamp=stamp)


def _start(files: Files) -> Apart:
    named = (files.named_settings, files.named_blueprint)
    return Apart(
        "kata_gpu.settings", (str(files.root), *("" if n is None else str(n) for n in named))
    )


def _answer(process: Apart) -> Read:
    found: Read = process.answer()
    return found


def _value(found: T | KataGpuError) -> T:
    if isinstance(found, KataGpuError):
        raise found
    return found
