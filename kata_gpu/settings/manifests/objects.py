"""What all Kubernetes objects are made of, and messages that name the place of a fault.

What a placement does not hang on is passed over, for an object has more fields than anybody
knows; where every field counts, in claims, one that is not known is refused: it might be a
condition.
"""

from fractions import Fraction
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.plan.simulate import quantity
from kata_gpu.plan.simulate.values import Key, Toleration
from kata_gpu.settings.manifests.documents import Document

_SHOWN: Final = 80
_FAULTS_SHOWN: Final = 5
_ALLOWED: Final = {
    "dict_type": "expected an object",
    "list_type": "expected a list",
    "model_type": "expected an object",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "bool_type": "expected true or false",
}


class Part(BaseModel):
    """An object of which some fields count; one that is null is absent, as for the API server."""

    model_config = ConfigDict(
        alias_generator=to_camel, defer_build=True, extra="ignore", frozen=True, strict=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        return {key: value for key, value in found.items() if value is not None}


class Closed(Part):
    """An object of which every field counts."""

    model_config = ConfigDict(extra="forbid")


def _named(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters")
    return text


def _quantity(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a quantity, such as 80Gi")  # noqa: TRY004 - pydantic wants it
    return quantity.parse(str(value))


def _amount(number: Fraction) -> Fraction:
    if number < 0:
        raise ValueError("expected no negative amount")
    return number


Name = Annotated[str, Field(min_length=1, max_length=253), AfterValidator(_named)]
Text = Annotated[str, Field(max_length=4096), AfterValidator(_named)]
Quantity = Annotated[Fraction, BeforeValidator(_quantity), AfterValidator(_amount)]
Amounts = dict[Name, Quantity]
Labels = dict[Name, Text]


class Metadata(Part):
    """``metadata``."""

    name: Name | None = None
    generate_name: Name | None = None
    namespace: Name = "default"
    labels: Labels = Field(default_factory=dict)
    annotations: dict[Name, Annotated[str, Field(max_length=1 << 20)]] = Field(default_factory=dict)
    creation_timestamp: Name | None = None

    @property
    def own(self) -> str:
        """The name; of an object that is yet to get one, what it begins with."""
        return self.name or f"{self.generate_name or 'unnamed-'}0"

    @property
    def full(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.own}"


class TolerationPart(Part):
    """A toleration, of a pod or of a request."""

    key: Text = ""
    operator: Literal["", "Equal", "Exists", "Lt", "Gt"] = "Equal"
    value: Text = ""
    effect: Text = ""

    def as_value(self) -> Toleration:
        """Return it as the simulation has it."""
        return Toleration(
            key=self.key,
            operator=self.operator or "Equal",
            value=self.value,
            effect=self.effect,
        )


class KeyPart(Part):
    """A condition of a node selector."""

    key: Name
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[Text] = Field(default_factory=list)


class TermPart(Part):
    """Conditions of a node selector that hold together."""

    match_expressions: list[KeyPart] = Field(default_factory=list)
    match_fields: list[KeyPart] = Field(default_factory=list)

    def keys(self) -> tuple[Key, ...]:
        """Return all conditions."""
        both = [(part, False) for part in self.match_expressions]
        both += [(part, True) for part in self.match_fields]
        return tuple(
            Key(key=p.key, operator=p.operator, values=tuple(p.values), is_field=is_field)
            for p, is_field in both
        )


class NodeSelectorPart(Part):
    """A node selector."""

    node_selector_terms: list[TermPart]

    def terms(self) -> tuple[tuple[Key, ...], ...]:
        """Return its terms, of which one must hold."""
        return tuple(term.keys() for term in self.node_selector_terms)


PartT = TypeVar("PartT", bound=Part)


def validate(document: Document, model: type[PartT]) -> PartT:
    """Return a document as *model*.

    Raises:
        InvalidBlueprint: it is not what it must be.
    """
    try:
        return model.model_validate(document.tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        told = [_explain(detail) for detail in found[:_FAULTS_SHOWN]]
        if len(found) > len(told):
            told.append(f"and {len(found) - len(told)} more")
        raise InvalidBlueprint(f"cannot use {document.origin}: {'; '.join(told)}") from error


def _explain(detail: ErrorDetails) -> str:
    where = _where(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{where} is not known here, and may be a condition"
    if detail["type"] == "missing":
        return f"{where} is missing"
    message = detail["msg"]
    message = _ALLOWED.get(detail["type"]) or f"{message[:1].lower()}{message[1:]}"
    message = message.removeprefix("value error, ")
    found = detail["input"]
    if isinstance(found, dict | list):
        return f"{where or 'the object'}: {message}"
    shown = repr(found)
    return f"{where} is {shown[:_SHOWN]}{'…' if len(shown) > _SHOWN else ''}: {message}"


def _where(location: tuple[int | str, ...]) -> str:
    """Return ``spec.devices.requests[0].name``, counted from 0 as the API server does."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            key = part if part.isprintable() else repr(part)
            text += f".{key[:_SHOWN]}" if text else key[:_SHOWN]
    return text
