"""CEL as the API server and its allocator evaluate it, as far as what we ship goes.

Quantities are whole numbers of their unit. A domain that a device has no attribute of is an
empty map, and an attribute that it has not is an error, as in a real allocation.

Source: k8s.io/dynamic-resource-allocation/cel; Kubernetes, ValidatingAdmissionPolicy.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Final

from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_optional, ext_strings

EXPRESSION_MAX_BYTES: Final = 10 << 10
_SUFFIXES: Final = {
    **{"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12},
    **{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40},
}
_QUANTITY: Final = re.compile(r"([0-9]+)(|k|[MGT]|[KMGT]i)")
_DOMAIN: Final = re.compile(r"(?:attributes|capacity)\[\s*'([^']+)'")
_VARIABLES: Final = ("device", "request", "object", "oldObject", "variables")


class CelError(Exception):
    """An expression does not compile, or its evaluation ends in an error."""


def quantity(text: str) -> int:
    """Return the number that a resource.Quantity is; of no more forms than we write."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"no quantity: {text!r}")
    return int(found[1]) * _SUFFIXES[found[2]]


def compare(one: int, other: int) -> int:
    """Return -1, 0 or 1, as compareTo does."""
    return (one > other) - (one < other)


@cache
def _environment() -> Any:
    number, text = cel.Type.INT, cel.Type.STRING
    functions = [
        cel.FunctionDecl(
            "quantity",
            [cel.Overload("quantity_string", number, [text], is_member=False, impl=quantity)],
        ),
        cel.FunctionDecl(
            "compareTo",
            [cel.Overload("compare_to", number, [number, number], is_member=True, impl=compare)],
        ),
    ]
    return cel.NewEnv(
        variables=dict.fromkeys(_VARIABLES, cel.Type.DYN),
        extensions=[
            ext_optional.ExtOptional(),
            ext_bindings.ExtBindings(),
            ext_strings.ExtStrings(2),
            cel.CelExtension("kubernetes", functions),
        ],
    )


@cache
def compiled(expression: str) -> Any:
    """Return the expression, compiled; CelError for one that the API server would refuse."""
    if len(expression.encode()) > EXPRESSION_MAX_BYTES:
        raise CelError(f"longer than {EXPRESSION_MAX_BYTES} bytes: {expression:.40}…")
    try:
        return _environment().compile(expression)
    except RuntimeError as error:
        raise CelError(f"{error} in {expression}") from error


def evaluate(expression: str, **values: Any) -> Any:
    """Return what an expression comes to; CelError where it comes to none."""
    found = compiled(expression).eval(data=values)
    if found.type() == cel.Type.ERROR:
        raise CelError(f"{found.value()} in {expression}")
    return found.plain_value()


def device(driver: str, listed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a device of a ResourceSlice as a selector sees it."""
    attributes: dict[str, dict[str, Any]] = {}
    capacity: dict[str, dict[str, int]] = {}
    for name, value in listed.get("attributes", {}).items():
        domain, _, own = name.rpartition("/")
        attributes.setdefault(domain or driver, {})[own] = next(iter(value.values()))
    for name, value in listed.get("capacity", {}).items():
        domain, _, own = name.rpartition("/")
        capacity.setdefault(domain or driver, {})[own] = quantity(value["value"])
    return {"driver": driver, "attributes": attributes, "capacity": capacity}


def selects(expression: str, device: Mapping[str, Any]) -> bool:
    """Tell whether a selector takes a device: driver, attributes and capacity by domain."""
    domains = dict.fromkeys(_DOMAIN.findall(expression), None)
    shown = {
        "driver": device["driver"],
        **{
            kind: {**{domain: {} for domain in domains}, **device.get(kind, {})}
            for kind in ("attributes", "capacity")
        },
    }
    answer = evaluate(expression, device=shown)
    if not isinstance(answer, bool):
        raise CelError(f"{answer!r} is no answer: {expression}")
    return answer


def admits(policy: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return why a ValidatingAdmissionPolicy refuses a request; nothing where it admits it.

    *request* has ``object`` and ``oldObject`` beside what a policy sees as ``request``. What
    ends in an error is refused, as ``failurePolicy: Fail`` has it.
    """
    spec = policy["spec"]
    values: dict[str, Any] = {
        "request": request,
        "object": request.get("object"),
        "oldObject": request.get("oldObject"),
        "variables": {},
    }
    if not all(evaluate(c["expression"], **values) for c in spec.get("matchConditions", ())):
        return ()
    for variable in spec.get("variables", ()):
        with suppress(CelError):  # who uses it fails, as there: it is evaluated when it is used
            found = evaluate(variable["expression"], **values)
            values["variables"] = {**values["variables"], variable["name"]: found}
    return tuple(_refusals(spec["validations"], values))


def _refusals(validations: Any, values: Mapping[str, Any]) -> Any:
    for rule in validations:
        try:
            if evaluate(rule["expression"], **values) is True:
                continue
        except CelError as error:
            yield str(error)
            continue
        text = rule.get("messageExpression")
        yield rule["message"] if text is None else str(evaluate(text, **values))
