"""``[runtime]`` of the blueprint file: what the container runtime is told."""

import re
from collections.abc import Collection
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator

from kata_gpu.model.blueprint import Restart, RuntimeHandler, RuntimeKind, Wiring
from kata_gpu.settings.toml_file import AbsolutePath, Table

_NAME: Final = re.compile(r"kata-gpu(-[a-z0-9]([a-z0-9-]{0,52}[a-z0-9])?)?")
_SNAPSHOTTER: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def _own_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            "expected kata-gpu or kata-gpu-… in at most 63 lower-case letters, digits and dashes: "
            "other handlers are other people's"
        )
    return text


def _snapshotter(text: str) -> str:
    if not _SNAPSHOTTER.fullmatch(text):
        raise ValueError("expected the name of a snapshotter of containerd, such as nydus")
    return text


def _restart(text: Any) -> Restart:
    if text not in list(Restart):
        raise ValueError(f"expected one of {', '.join(Restart)}")
    return Restart(text)


def _kind(text: Any) -> RuntimeKind:
    if text not in list(RuntimeKind):
        raise ValueError(f"expected one of {', '.join(RuntimeKind)}")
    return RuntimeKind(text)


class RuntimeHandlerTable(Table):
    """``[[runtime.handler]]``: a handler that the container runtime gets from us."""

    name: Annotated[str, AfterValidator(_own_name)]
    base: str
    shim: AbsolutePath | None = None
    snapshotter: Annotated[str, AfterValidator(_snapshotter)] | None = None
    guest_pull: bool = False

    def value(self) -> RuntimeHandler:
        """Return the handler."""
        return RuntimeHandler(
            name=self.name,
            base=self.base,
            shim=self.shim,
            snapshotter=self.snapshotter,
            guest_pull=self.guest_pull,
        )


class RuntimeTable(Table):
    """``[runtime]``."""

    handler: tuple[RuntimeHandlerTable, ...] = ()
    restart: Annotated[Restart, BeforeValidator(_restart)] = Restart.NEVER
    kind: Annotated[RuntimeKind, BeforeValidator(_kind)] | None = None

    def names(self) -> list[str]:
        """Return the names of the handlers."""
        return [handler.name for handler in self.handler]

    def require_bases(self, known: Collection[str]) -> None:
        """Raise ValueError if a handler's base is not among the *known* Kata handlers."""
        for handler in self.handler:
            if handler.name in known:
                raise ValueError(f"handler {handler.name} is a [[kata.handler]] too")
            if handler.base not in known:
                raise ValueError(
                    f"handler {handler.name} has base {handler.base[:63]!r}, and there is no "
                    f"[[kata.handler]] of that name (there are: {', '.join(known) or 'none'})"
                )

    def value(self) -> Wiring:
        """Return what the container runtime is told."""
        return Wiring(
            handlers=tuple(handler.value() for handler in self.handler),
            restart=self.restart,
            kind=self.kind,
        )
