"""Settings and blueprint, read by a process of its own.

pydantic takes a good part of an agent's start and of its memory, for the moment in which it
parses what an admin wrote: so the agent has another process do that, imports meanwhile what it
needs itself, and never has pydantic.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeVar

from kata_gpu.errors import KataGpuError
from kata_gpu.host.apart import Apart
from kata_gpu.settings.files import Files, Stamp

if TYPE_CHECKING:
    from kata_gpu.model.blueprint import Blueprint
    from kata_gpu.settings.agent import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBlueprint:
    """What the blueprint's file said, or what is wrong with it."""

    blueprint: "Blueprint | KataGpuError"
    stamp: Stamp | None
    """The file's before it was read."""


class Reading:
    """A process that reads *files*, while this one does something else."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._process = _start(files)
        self._is_taken = False
        """Whether the blueprint that it reads was asked for."""

        self._settings: Settings | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.end()

    def settings(self) -> "Settings":
        """Return the settings, as soon as they are read.

        Raises:
            HostError: they cannot be read.
            InvalidBlueprint: they are wrong.
        """
        if self._settings is None:
            self._settings = _value(self._process.answer())
        return self._settings

    def blueprint(self) -> "Blueprint":
        """Return the blueprint: what was read, if its file still is what it was; else read anew.

        Raises:
            HostError: it cannot be read.
            InvalidBlueprint: it is wrong.
        """
        path = self._files.blueprint(self.settings())
        if not self._is_taken:
            self._is_taken = True
            first = _blueprint_of(self._process)
            if first.stamp == Stamp.of(path):
                return _value(first.blueprint)
        process = _start(replace(self._files, named_blueprint=path))
        process.answer()  # the settings stay what they were
        return _value(_blueprint_of(process).blueprint)


def answers(files: Files) -> Iterator[object]:
    """Yield the settings and a ReadBlueprint, read here; what is wrong is in a value's place."""
    from kata_gpu.settings.agent import Settings  # noqa: PLC0415 - for who reads

    settings = _attempt(files.read_settings)
    yield settings
    known = settings if isinstance(settings, Settings) else Settings()
    stamp = Stamp.of(files.blueprint(known))
    blueprint = _attempt(lambda: files.read_blueprint(known))
    yield ReadBlueprint(blueprint=blueprint, stamp=stamp)


def _start(files: Files) -> Apart:
    named = (files.named_settings, files.named_blueprint)
    words = (str(files.root), *("" if path is None else str(path) for path in named))
    return Apart("kata_gpu.settings.child", words)


def _blueprint_of(process: Apart) -> ReadBlueprint:
    found: ReadBlueprint = process.answer()
    process.end()
    return found


def _attempt(read: Callable[[], T]) -> T | KataGpuError:
    try:
        return read()
    except KataGpuError as error:
        return error


def _value(found: T | KataGpuError) -> T:
    if isinstance(found, KataGpuError):
        raise found
    return found
