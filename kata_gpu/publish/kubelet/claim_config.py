"""What a claim, or the class behind it, asks of a GPU: opaque parameters of kind KataGpuConfig.

Users write claims and admins write classes, so the two are not worth the same. Of each the last
entry for a request counts; a claim's adds to what its class demands and takes nothing from it,
and some values are the admin's alone. Decoding is strict: a misspelt demand that is ignored is
one that silently does not hold.

Source: k8s.io/api resource/v1, DeviceAllocationConfiguration.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final

from kata_gpu.errors import KataGpuError
from kata_gpu.model.kubernetes import Attribute

API_VERSION: Final = "gpu.kata-passthrough.io/v1alpha1"
KIND: Final = "KataGpuConfig"
PARAMETERS_MAX_BYTES: Final = 10 * 1024
_CONFIGS_MAX: Final = 64  # 32 of a class and 32 of a claim


class Confidential(StrEnum):
    """What a claim wants to know of a GPU's confidential computing."""

    ANY = "any"
    REQUIRED = "required"
    """The device's attribute ``confidential`` is true."""

    OFF = "off"
    """It is not: for debugging, and the admin's to say."""


class Source(StrEnum):
    """Who wrote an entry."""

    CLASS = "FromClass"
    CLAIM = "FromClaim"


@dataclass(frozen=True, slots=True, kw_only=True)
class KataGpuConfig:
    """What is asked of a device."""

    confidential: Confidential = Confidential.ANY
    require_reset: bool = False
    """Whether it must have a way to be reset, without which it cannot be cleaned."""

    def objection(self, attributes: Mapping[str, Attribute]) -> str | None:
        """Return why a device of these *attributes* is not what is asked for; None when it is."""
        is_confidential = attributes.get("confidential") is True
        if self.confidential is Confidential.REQUIRED and not is_confidential:
            return "it is not ready for confidential VMs, and the claim has confidential: required"
        if self.confidential is Confidential.OFF and is_confidential:
            return "it is in confidential mode, and the claim's class has confidential: off"
        if self.require_reset and not attributes.get("resetMethod"):
            return "it has no way to be reset, and the claim has requireReset: true"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaqueConfig:
    """One entry of an allocation for this driver."""

    source: Source
    requests: tuple[str, ...]
    """Those it is for; empty for all."""

    config: KataGpuConfig

    def is_for(self, request: str) -> bool:
        """Tell whether it counts for a *request*; one that names ``main`` does for ``main/sub``."""
        return (
            not self.requests
            or request in self.requests
            or request.partition("/")[0] in self.requests
        )


def opaque_configs(entries: Sequence[Any], *, driver: str) -> tuple[OpaqueConfig, ...]:
    """Return the entries for *driver*, in their order.

    Raises:
        KataGpuError: one of them cannot be used; the text names its place.
    """
    if len(entries) > _CONFIGS_MAX:
        raise KataGpuError(f"cannot use more than {_CONFIGS_MAX} configurations of a claim")
    found = (_entry(entry, f"config[{n}]", driver) for n, entry in enumerate(entries))
    return tuple(entry for entry in found if entry is not None)


def effective(configs: Sequence[OpaqueConfig], request: str) -> KataGpuConfig:
    """Return what holds for *request*: the last entry of the class, and of the claim over it.

    Raises:
        KataGpuError: the two contradict each other.
    """
    last = {entry.source: entry.config for entry in configs if entry.is_for(request)}
    default = KataGpuConfig()
    return both(last.get(Source.CLASS, default), last.get(Source.CLAIM, default))


def both(one: KataGpuConfig, other: KataGpuConfig) -> KataGpuConfig:
    """Return what asks for all that either asks for; KataGpuError when no device could be it."""
    wanted = {one.confidential, other.confidential} - {Confidential.ANY}
    if len(wanted) > 1:
        raise KataGpuError("cannot have confidential: off, as the class says, and required at once")
    return KataGpuConfig(
        confidential=next(iter(wanted), Confidential.ANY),
        require_reset=one.require_reset or other.require_reset,
    )


def _entry(entry: Any, at: str, driver: str) -> OpaqueConfig | None:
    """Return one entry; None for another driver's."""
    opaque = entry.get("opaque") if isinstance(entry, Mapping) else None
    if not isinstance(opaque, Mapping):
        raise KataGpuError(f"cannot use {at} of the claim: it has no opaque parameters")
    if opaque.get("driver") != driver:
        return None
    try:
        source = Source(entry.get("source"))
    except ValueError as error:
        raise KataGpuError(
            f"cannot use {at} of the claim: its source is {entry.get('source')!r:.80}, not "
            f"FromClass or FromClaim"
        ) from error
    requests = entry.get("requests") or ()
    if not isinstance(requests, list | tuple) or not all(isinstance(r, str) for r in requests):
        raise KataGpuError(f"cannot use {at} of the claim: its requests are no list of names")
    config = decode(opaque.get("parameters"), f"{at}.opaque.parameters", source)
    return OpaqueConfig(source=source, requests=tuple(requests), config=config)


def decode(parameters: Any, at: str, source: Source) -> KataGpuConfig:
    """Return what *parameters* at the place *at* ask for.

    Raises:
        KataGpuError: they are no KataGpuConfig, too long, or not for this *source* to ask for.
    """
    if not isinstance(parameters, Mapping):
        raise KataGpuError(f"cannot use {at}: it is no object")
    try:
        text = json.dumps(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise KataGpuError(f"cannot use {at}: it is no JSON: {error!s:.80}") from error
    length = len(text.encode())
    if length > PARAMETERS_MAX_BYTES:
        raise KataGpuError(
            f"cannot use {at}: it has {length} bytes, and {PARAMETERS_MAX_BYTES} are the limit"
        )
    table = _validated(text, at)
    if table.confidential is Confidential.OFF and source is Source.CLAIM:
        raise KataGpuError(
            f"cannot use {at}.confidential: off is for a DeviceClass to say, not for a claim"
        )
    return KataGpuConfig(confidential=table.confidential, require_reset=table.require_reset)


def _validated(text: str, at: str) -> Any:
    from pydantic import ValidationError  # noqa: PLC0415 - most claims have no configuration

    try:
        return _table().model_validate_json(text)
    except ValidationError as error:
        told = [_explain(detail, at) for detail in error.errors(include_url=False)]
        raise KataGpuError(f"cannot use {'; '.join(told[:_TOLD_MAX])}") from error


_TOLD_MAX: Final = 3


def _explain(detail: Any, at: str) -> str:
    where = ".".join((at, *(str(part)[:80] for part in detail["loc"])))
    if detail["type"] == "extra_forbidden":
        return f"{where}: there is no such field"
    message = str(detail["msg"])
    return f"{where}: {message[:1].lower()}{message[1:]}"


@cache
def _table() -> Any:
    """Return the pydantic model: it is built when the first configuration is met."""
    from typing import Literal  # noqa: PLC0415 - beside what uses it

    from pydantic import BaseModel, ConfigDict, Field  # noqa: PLC0415 - it is dear to import

    class Table(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

        api_version: Literal["gpu.kata-passthrough.io/v1alpha1"] = Field(alias="apiVersion")
        kind: Literal["KataGpuConfig"]
        confidential: Confidential = Confidential.ANY
        require_reset: bool = Field(default=False, alias="requireReset")

    return Table
