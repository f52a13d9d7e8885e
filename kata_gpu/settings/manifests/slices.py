"""ResourceSlices and DeviceClasses: what there is to be had.

Source: k8s.io/api/resource/v1 types.go, and its validation.
"""

from typing import Annotated, Final

from pydantic import AfterValidator, Field, model_validator

from kata_gpu.model.kubernetes import Effect, Taint
from kata_gpu.plan.simulate import values, versions
from kata_gpu.settings.manifests.documents import Document
from kata_gpu.settings.manifests.objects import (
    Closed,
    Metadata,
    Name,
    NodeSelectorPart,
    Part,
    Quantity,
    Text,
    validate,
)

DEVICES_MAX: Final = 128
_INT64: Final = 1 << 63
_Int = Annotated[int, Field(ge=-_INT64, lt=_INT64)]


def _version(text: str) -> str:
    versions.parse(text)
    return text


class AttributePart(Part):
    """A value of one of four types."""

    bool_: bool | None = Field(None, alias="bool")
    int_: _Int | None = Field(None, alias="int")
    string: Annotated[str, Field(max_length=64)] | None = None
    version: Annotated[str, AfterValidator(_version)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "AttributePart":
        found = (self.bool_, self.int_, self.string, self.version)
        if sum(value is not None for value in found) != 1:
            raise ValueError("expected exactly one of bool, int, string and version")
        return self

    def as_value(self) -> values.Value:
        """Return it as the simulation has it."""
        if self.version is not None:
            return values.Version(self.version)
        found = (self.bool_, self.int_, self.string)
        return next(value for value in found if value is not None)


class AmountPart(Part):
    """A capacity or a counter."""

    value: Quantity


class TaintPart(Part):
    """A taint of a device; one of an effect that is not known has none, as for the scheduler."""

    key: Name
    value: Text = ""
    effect: Name

    def as_value(self) -> Taint | None:
        """Return it as the simulation has it; None where its effect is not known."""
        known = {effect.value for effect in Effect}
        if self.effect not in known:
            return None
        return Taint(key=self.key, value=self.value, effect=Effect(self.effect))


class CountersPart(Part):
    """Counters of one set, taken or there."""

    counter_set: Name | None = None
    name: Name | None = None
    counters: dict[Name, AmountPart]


class _Placed(Part):
    node_name: Name | None = None
    node_selector: NodeSelectorPart | None = None
    all_nodes: bool | None = None

    @model_validator(mode="after")
    def _one_term(self) -> "_Placed":
        if self.node_selector is not None and len(self.node_selector.node_selector_terms) != 1:
            raise ValueError("nodeSelector: expected exactly one of nodeSelectorTerms")
        return self

    def where(self) -> values.Where | None:
        """Return the nodes that it is for; None where it does not say."""
        if self.node_name is not None:
            return values.Where(node=self.node_name)
        if self.all_nodes:
            return values.Where(is_everywhere=True)
        if self.node_selector is not None:
            return values.Where(terms=self.node_selector.terms())
        return None


class DevicePart(_Placed):
    """A device."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    attributes: dict[Name, AttributePart] = Field(default_factory=dict)
    capacity: dict[Name, AmountPart] = Field(default_factory=dict)
    taints: list[TaintPart] = Field(default_factory=list)
    consumes_counters: list[CountersPart] = Field(default_factory=list)
    allow_multiple_allocations: bool | None = None
    binding_conditions: list[Name] = Field(default_factory=list)

    def as_value(self, driver: str, pool: str) -> values.Device:
        """Return it as the simulation has it."""
        taints = (part.as_value() for part in self.taints)
        return values.Device(
            id=values.DeviceId(driver, pool, self.name),
            attributes={_full(n, driver): a.as_value() for n, a in self.attributes.items()},
            capacity={_full(n, driver): c.value for n, c in self.capacity.items()},
            taints=tuple(taint for taint in taints if taint is not None),
            counts={
                (part.counter_set or "", name): amount.value
                for part in self.consumes_counters
                for name, amount in part.counters.items()
            },
            where=self.where(),
            is_shared=bool(self.allow_multiple_allocations),
        )


class PoolPart(Part):
    """The pool that a slice is of."""

    name: Name
    generation: Annotated[int, Field(ge=0)] = 0
    resource_slice_count: Annotated[int, Field(gt=0)]


class SliceSpec(_Placed):
    """``spec`` of a ResourceSlice."""

    driver: Annotated[str, Field(min_length=1, max_length=63)]
    pool: PoolPart
    per_device_node_selection: bool | None = None
    devices: Annotated[list[DevicePart], Field(max_length=DEVICES_MAX)] = Field(
        default_factory=list
    )
    shared_counters: list[CountersPart] = Field(default_factory=list)


class SliceObject(Part):
    """A ResourceSlice."""

    metadata: Metadata
    spec: SliceSpec


def slice_of(document: Document) -> tuple[values.Slice, list[str]]:
    """Return a ResourceSlice, and what of it is not simulated."""
    found = validate(document, SliceObject)
    spec = found.spec
    notes = [
        f"devices of {spec.driver}: their binding conditions are taken as met"
        for device in spec.devices
        if device.binding_conditions
    ][:1]
    where = spec.where()
    made = values.Slice(
        name=found.metadata.own,
        driver=spec.driver,
        pool=spec.pool.name,
        generation=spec.pool.generation,
        count=spec.pool.resource_slice_count,
        where=None if spec.per_device_node_selection else where or values.Where(),
        devices=tuple(device.as_value(spec.driver, spec.pool.name) for device in spec.devices),
        counters={
            (group.name or "", name): amount.value
            for group in spec.shared_counters
            for name, amount in group.counters.items()
        },
    )
    return made, notes


class RuleSelector(Closed):
    """Which devices a rule is about; an empty one is about all."""

    driver: Name | None = None
    pool: Name | None = None
    device: Name | None = None


class RuleSpec(Part):
    """``spec`` of a DeviceTaintRule."""

    device_selector: RuleSelector | None = None
    taint: TaintPart


class RuleObject(Part):
    """A DeviceTaintRule."""

    metadata: Metadata
    spec: RuleSpec


def rule_of(document: Document) -> values.TaintRule | None:
    """Return a DeviceTaintRule; None for one that is about no device, or has no known effect."""
    found = validate(document, RuleObject)
    selector, taint = found.spec.device_selector, found.spec.taint.as_value()
    if selector is None or taint is None:
        return None
    return values.TaintRule(
        name=found.metadata.own,
        taint=taint,
        driver=selector.driver,
        pool=selector.pool,
        device=selector.device,
    )


class CelPart(Part):
    """A CEL expression."""

    expression: Annotated[str, Field(min_length=1)]


class SelectorPart(Part):
    """A selector of devices."""

    cel: CelPart


class ClassSpec(Part):
    """``spec`` of a DeviceClass."""

    selectors: Annotated[list[SelectorPart], Field(max_length=32)] = Field(default_factory=list)
    extended_resource_name: Name | None = None


class ClassObject(Part):
    """A DeviceClass."""

    metadata: Metadata
    spec: ClassSpec


def class_of(document: Document) -> values.DeviceClass:
    """Return a DeviceClass."""
    found = validate(document, ClassObject)
    return values.DeviceClass(
        name=found.metadata.own,
        selectors=tuple(selector.cel.expression for selector in found.spec.selectors),
        extended_resource=found.spec.extended_resource_name,
        created=found.metadata.creation_timestamp or "",
    )


def _full(name: str, driver: str) -> str:
    return name if "/" in name else f"{driver}/{name}"
