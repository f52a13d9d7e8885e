"""Read a TOML file into a pydantic model, or say what is wrong in the author's terms.

Every message names the file, the key, what was found and what is allowed. Unknown keys are
refused: a misspelt key that is ignored is a setting that silently does not hold.
"""

from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.settings import toml_text

_SHOWN = 80
_ALLOWED: Final = {
    "tuple_type": "expected an array",
    "model_type": "expected a table",
    "too_short": "expected at least one",
    "string_type": "expected text in quotes",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
}


def _absolute(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/") or not text.isprintable():
        raise ValueError("expected an absolute path without .. or unprintable characters")
    return text


AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class Table(BaseModel):
    """A TOML table: unknown keys are refused, values are not coerced."""

    # deferred, for only the outermost table validates, and the others go into its schema
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)


TableT = TypeVar("TableT", bound=Table)


def load(path: Path, model: type[TableT], *, advice: str = "") -> TableT:
    """Return the content of *path* as *model*; *advice* is for who has no such file.

    Raises:
        InvalidBlueprint: it is missing, unreadable, not TOML, or not what it must be.
    """
    text = toml_text.read(path)
    if text is None:
        raise InvalidBlueprint(f"cannot read {path}: it does not exist{advice and f'; {advice}'}")
    return parse(text, model, origin=str(path))


def parse(text: str, model: type[TableT], *, origin: str) -> TableT:
    """Return TOML *text* as *model*; *origin* names it in messages."""
    tables = toml_text.tables(text, origin=origin)
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        found = _without_consequences(error.errors(include_url=False))
        lines = "; ".join(_explain(detail, model) for detail in found)
        raise InvalidBlueprint(f"cannot use {origin}: {lines}") from error


def _without_consequences(found: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return what is wrong, less the arrays that seem short since an item of theirs is."""
    return [
        detail
        for detail in found
        if detail["type"] != "too_short"
        or not any(other["loc"][:-1][: len(detail["loc"])] == detail["loc"] for other in found)
    ]


def _explain(detail: ErrorDetails, model: type[Table]) -> str:
    where = _where(detail["loc"])
    if detail["type"] == "extra_forbidden":
        fields = _table_at(detail["loc"][:-1], model).model_fields
        allowed = ", ".join(sorted(field.alias or name for name, field in fields.items()))
        return f"unknown key {where} (allowed here: {allowed})"
    if detail["type"] == "missing":
        return f"key {where} is missing"
    message = _message(detail)
    found = detail["input"]
    if isinstance(found, dict | tuple):
        return f"{where or 'the file'}: {message}"
    shown = repr(found)
    return f"{where} is {shown[:_SHOWN]}{'…' if len(shown) > _SHOWN else ''}: {message}"


def _message(detail: ErrorDetails) -> str:
    """Return what is allowed; our own words as they are, pydantic's for who writes TOML."""
    message = detail["msg"]
    if detail["type"] == "value_error":
        return message.removeprefix("Value error, ")
    return _ALLOWED.get(detail["type"]) or f"{message[:1].lower()}{message[1:]}"


def _where(location: tuple[int | str, ...]) -> str:
    """Return ``pool[2].select[1].vendor``, counted from 1 as people count tables."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            key = part if part.isprintable() else repr(part)
            text += f".{key}" if text else key
    return text


def _table_at(location: tuple[int | str, ...], model: type[Table]) -> type[Table]:
    """Return the model of the table at *location* below *model*."""
    for part in location:
        if isinstance(part, str):
            model = _table_in(model.model_fields[_field_of(part, model)].annotation) or model
    return model


def _field_of(key: str, model: type[Table]) -> str:
    return next(n for n, field in model.model_fields.items() if key in {n, field.alias})


def _table_in(annotation: Any) -> type[Table] | None:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation
    return next((t for t in map(_table_in, get_args(annotation)) if t), None)
