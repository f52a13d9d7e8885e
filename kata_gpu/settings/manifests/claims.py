"""ResourceClaims and their templates: what is asked for.

Every field of a request counts: what is not known here is refused, for it might be a condition.

Source: k8s.io/api/resource/v1 types.go, and its validation.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.plan.simulate import values
from kata_gpu.settings.manifests.documents import Document
from kata_gpu.settings.manifests.objects import (
    Amounts,
    Closed,
    Metadata,
    Name,
    NodeSelectorPart,
    Part,
    TolerationPart,
    validate,
)
from kata_gpu.settings.manifests.slices import SelectorPart

REQUESTS_MAX: Final = 32
CHOICES_MAX: Final = 8
_COUNT_MAX: Final = 1 << 31
QUEUE_LABEL: Final = "kai.scheduler/queue"


class CapacityPart(Closed):
    """What a device must have at least."""

    requests: Amounts = Field(default_factory=dict)


class ExactPart(Closed):
    """``exactly``: devices of one class."""

    device_class_name: Name
    selectors: Annotated[list[SelectorPart], Field(max_length=32)] = Field(default_factory=list)
    allocation_mode: Literal["ExactCount", "All"] = "ExactCount"
    count: Annotated[int, Field(ge=1, lt=_COUNT_MAX)] | None = None
    admin_access: bool | None = None
    tolerations: Annotated[list[TolerationPart], Field(max_length=16)] = Field(default_factory=list)
    capacity: CapacityPart | None = None

    @model_validator(mode="after")
    def _no_count_of_all(self) -> "ExactPart":
        if self.allocation_mode == "All" and self.count is not None:
            raise ValueError("count is for allocationMode ExactCount")
        return self

    def as_value(self, name: str) -> values.Choice:
        """Return it as the simulation has it."""
        return values.Choice(
            name=name,
            class_name=self.device_class_name,
            selectors=tuple(selector.cel.expression for selector in self.selectors),
            count=self.count or 1,
            is_all=self.allocation_mode == "All",
            is_admin=bool(self.admin_access),
            tolerations=tuple(toleration.as_value() for toleration in self.tolerations),
            capacity={} if self.capacity is None else dict(self.capacity.requests),
        )


class SubPart(ExactPart):
    """One of ``firstAvailable``."""

    name: Name


class RequestPart(Closed):
    """A request."""

    name: Name
    exactly: ExactPart | None = None
    first_available: (
        Annotated[list[SubPart], Field(min_length=1, max_length=CHOICES_MAX)] | None
    ) = None

    @model_validator(mode="after")
    def _one(self) -> "RequestPart":
        if (self.exactly is None) == (self.first_available is None):
            raise ValueError("expected exactly one of exactly and firstAvailable")
        return self

    def as_value(self) -> values.Request:
        """Return it as the simulation has it."""
        choices = tuple(
            sub.as_value(f"{self.name}/{sub.name}") for sub in self.first_available or ()
        )
        if self.exactly is not None:
            choices = (self.exactly.as_value(self.name),)
        return values.Request(
            name=self.name, choices=choices, is_prioritized=self.first_available is not None
        )


class ConstraintPart(Closed):
    """A constraint."""

    requests: Annotated[list[Name], Field(max_length=REQUESTS_MAX)] = Field(default_factory=list)
    match_attribute: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None
    distinct_attribute: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None

    @model_validator(mode="after")
    def _one(self) -> "ConstraintPart":
        if (self.match_attribute is None) == (self.distinct_attribute is None):
            raise ValueError("expected exactly one of matchAttribute and distinctAttribute")
        return self


class DevicesPart(Closed):
    """``spec.devices``."""

    requests: Annotated[list[RequestPart], Field(max_length=REQUESTS_MAX)] = Field(
        default_factory=list
    )
    constraints: Annotated[list[ConstraintPart], Field(max_length=32)] = Field(default_factory=list)
    config: list[Any] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names(self) -> "DevicesPart":
        known: list[str] = []
        for request in self.requests:
            known.append(request.name)
            known += [f"{request.name}/{sub.name}" for sub in request.first_available or ()]
        twice = sorted({name for name in known if known.count(name) > 1})
        if twice:
            raise ValueError(f"two requests are called {', '.join(twice)}")
        for constraint in self.constraints:
            for name in constraint.requests:
                if name not in known:
                    raise ValueError(f"a constraint is about a request {name}, and there is none")
        return self


class ClaimSpec(Closed):
    """``spec`` of a claim."""

    devices: DevicesPart = Field(default_factory=DevicesPart)


class ResultPart(Part):
    """A device that a claim has."""

    request: Name
    driver: Name
    pool: Name
    device: Name
    admin_access: bool | None = None


class ResultsPart(Part):
    """All devices that a claim has."""

    results: list[ResultPart] = Field(default_factory=list)


class AllocationPart(Part):
    """``status.allocation``."""

    devices: ResultsPart = Field(default_factory=ResultsPart)
    node_selector: NodeSelectorPart | None = None


class UserPart(Part):
    """What a claim is reserved for."""

    resource: str
    name: Name


class ClaimStatus(Part):
    """``status`` of a claim."""

    allocation: AllocationPart | None = None
    reserved_for: list[UserPart] = Field(default_factory=list)


class ClaimObject(Part):
    """A ResourceClaim."""

    metadata: Metadata
    spec: ClaimSpec
    status: ClaimStatus = Field(default_factory=ClaimStatus)


class HeldObject(Part):
    """A ResourceClaim that has its devices, whatever it asked for."""

    metadata: Metadata
    status: ClaimStatus


class TemplateSpec(Part):
    """``spec`` of a template."""

    metadata: Metadata = Field(default_factory=Metadata)
    spec: ClaimSpec


class TemplateObject(Part):
    """A ResourceClaimTemplate."""

    metadata: Metadata
    spec: TemplateSpec


def claim_of(document: Document) -> values.Claim:
    """Return a ResourceClaim, with what it has already."""
    held = _held(document)
    try:
        found = validate(document, ClaimObject)
    except InvalidBlueprint:
        if held is None:
            raise
        return held  # what it asked for in a way that is not known here, it has
    asked = values.Claim(
        name=found.metadata.full,
        requests=tuple(request.as_value() for request in found.spec.devices.requests),
        constraints=_constraints(found.spec),
        queue=found.metadata.labels.get(QUEUE_LABEL),
    )
    if held is None:
        return asked
    return replace(asked, picks=held.picks, where=held.where, users=held.users)


def _held(document: Document) -> values.Claim | None:
    """Return what a claim has; None before its allocation."""
    if not document.tree.get("status"):
        return None
    found = validate(document, HeldObject)
    allocation = found.status.allocation
    if allocation is None:
        return None
    selector = allocation.node_selector
    return values.Claim(
        name=found.metadata.full,
        requests=(),
        picks=tuple(_picks(allocation.devices.results)),
        where=None if selector is None else values.Where(terms=selector.terms()),
        queue=found.metadata.labels.get(QUEUE_LABEL),
        users=frozenset(_users(found)),
    )


def _users(found: HeldObject) -> Iterable[str]:
    """Yield what a claim is reserved for: pods by their names, anything else with its kind."""
    for user in found.status.reserved_for:
        kind = "" if user.resource == "pods" else f"{user.resource} "
        yield f"{kind}{found.metadata.namespace}/{user.name}"


def template_of(document: Document) -> values.Claim:
    """Return what a ResourceClaimTemplate makes."""
    found = validate(document, TemplateObject)
    spec = found.spec.spec
    return values.Claim(
        name=found.metadata.full,
        requests=tuple(request.as_value() for request in spec.devices.requests),
        constraints=_constraints(spec),
        queue=found.spec.metadata.labels.get(QUEUE_LABEL),
    )


def _picks(results: Iterable[ResultPart]) -> Iterable[values.Pick]:
    """Return the devices that are gone with a claim: admin access takes none."""
    for result in results:
        if not result.admin_access:
            device = values.DeviceId(result.driver, result.pool, result.device)
            yield values.Pick(request=result.request, device=device)


def _constraints(spec: ClaimSpec) -> tuple[values.Constraint, ...]:
    return tuple(
        values.Constraint(
            attribute=part.match_attribute or part.distinct_attribute or "",
            requests=tuple(part.requests),
            is_distinct=part.distinct_attribute is not None,
        )
        for part in spec.devices.constraints
    )
