"""CEL selectors, as ``resource.k8s.io`` evaluates them for a device.

The library is Google's own (cel-cpp); what of Kubernetes' environment it does not have is said
to be undecided, never false. What bounds an expression: its length, as the API server has it;
nesting (32) and iterations (10,000 in all), by the library. What does not: how long a text grows
that an expression puts together, for which the caller limits the memory of the process.

Source: k8s.io/dynamic-resource-allocation/cel/compile.go.
"""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from kata_gpu.plan.simulate.values import Device, DeviceId, Value, Version

EXPRESSION_MAX_BYTES: Final = 10 << 10
_UNKNOWN: Final = re.compile(r"(?:undeclared reference to|overload for) '([A-Za-z_.]+)'")
_ABSENT_HERE: Final = frozenset(
    {
        *("find", "findAll", "sets", "isSorted", "sum", "min", "max", "indexOf", "lastIndexOf"),
        *("ip", "isIP", "cidr", "isCIDR", "url", "isURL", "format", "validate", "includes"),
        *("reverse", "replace", "quote", "sort", "sortBy", "distinct", "flatten", "slice", "lists"),
        *("all", "exists", "existsOne", "transformList", "transformMap", "transformMapEntry"),
    }
)
"""Functions and macros that Kubernetes has, whether or not the library does, or not for all that
Kubernetes has them for: lists, and two variables."""

_BUDGETS: Final = ("Iteration budget", "recursion limit")
_QUOTED: Final = re.compile(r"""["']([A-Za-z0-9.-]{1,63})["']""")
_TESTED: Final = re.compile(
    r"""["']([A-Za-z0-9.-]{1,63})["']\s+in\s+device\.(?:attributes|capacity)(?![\w.\[])"""
)
_PLAIN: Final = re.compile(r"device\.(?:attributes|capacity)\.\??([A-Za-z_]\w*+)(?!\()")
_WHOLE: Final = re.compile(r"device\.(?:attributes|capacity)(?:\.\w+\(|(?![\w.\[]))")
_INDEXED: Final = re.compile(r"""\[\s*\??\s*["']([A-Za-z0-9.-]{1,63})["']\s*\]""")
_HAS_MEMBER: Final = re.compile(
    r"\bhas\(\s*device\.(?:driver|attributes|capacity|allowMultipleAllocations)\s*\)"
)
_MIXED: Final = re.compile(
    r"overload for '_[<>]=?_' applied to '\((?:int|uint|double), (?:int|uint|double)\)'"
)
_CODES: Final = re.compile(r"^[A-Z_]+: (?:ERROR: )?(?:<input>:\d+:\d+: )?| \[[A-Z_]+\]$")
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class CelFailure:
    """An expression that has no answer for a device."""

    text: str
    _: KW_ONLY
    is_ours: bool = False
    """Whether Kubernetes may have one: it is this simulation that cannot find it out."""


_VERSION_AND_TEXT: Final = CelFailure(
    "to compare a version with a text is an error in Kubernetes, where it comes to that: write "
    "semver('1.2.3')",
    is_ours=True,
)


class Selectors:
    """Compiles each expression once, and evaluates it once for devices that are alike."""

    def __init__(self) -> None:
        self._environment: Any = None
        self._compiled: dict[str, Any] = {}
        self._found: dict[tuple[str, int], bool | CelFailure] = {}
        self._likes: dict[DeviceId, int] = {}
        self._numbers: dict[object, int] = {}

    def evaluate(self, expression: str, device: Device) -> bool | CelFailure:
        """Tell whether *device* is selected."""
        key = (expression, self._like(device))
        if key not in self._found:
            found = self._evaluate(expression, device)
            if isinstance(found, bool) and _compares_version_with_text(device, expression):
                found = _VERSION_AND_TEXT
            self._found[key] = found
        return self._found[key]

    def _like(self, device: Device) -> int:
        """Return a number that devices share which no expression can tell apart."""
        if device.id not in self._likes:
            typed = {name: (type(value), value) for name, value in device.attributes.items()}
            seen = (frozenset(typed.items()), frozenset(device.capacity.items()))
            key = (device.id.driver, device.is_shared, *seen)
            self._likes[device.id] = self._numbers.setdefault(key, len(self._numbers))
        return self._likes[device.id]

    def compiled(self, expression: str) -> Any:
        """Return the expression, ready to be evaluated, or why it cannot be."""
        if expression not in self._compiled:
            self._compiled[expression] = self._compile(expression)
        return self._compiled[expression]

    def _compile(self, expression: str) -> Any:
        length = len(expression.encode())
        if length > EXPRESSION_MAX_BYTES:
            return CelFailure(f"it has {length} bytes, and {EXPRESSION_MAX_BYTES} are allowed")
        if self._environment is None:
            self._environment = _environment()
        try:
            made = self._environment.compile(_HAS_MEMBER.sub("true", expression))
        except RuntimeError as error:
            return _failure(str(error))
        kind = made.return_type().name()
        if kind not in {"BOOL", "DYN"}:
            return CelFailure(f"it must be a bool, and is of type {kind.lower()}")
        return made

    def _evaluate(self, expression: str, device: Device) -> bool | CelFailure:
        program = self.compiled(expression)
        if isinstance(program, CelFailure):
            return program
        values = _device(device, expression)
        data = {"device": values, **{f"device.{name}": value for name, value in values.items()}}
        try:
            found = program.eval(data=data)
        except RuntimeError as error:
            return _failure(str(error))
        except MemoryError:
            return CelFailure("it takes more memory than this process may have", is_ours=True)
        if found.type().name() == "ERROR":
            return _failure(str(found.value()))
        answer = found.plain_value()
        if not isinstance(answer, bool):
            return CelFailure(f"it must be a bool, and is of type {found.type().name().lower()}")
        return answer


def _environment() -> Any:
    from cel_expr_python import cel  # noqa: PLC0415 - for who has a selector
    from cel_expr_python.ext import (  # noqa: PLC0415
        ext_bindings,
        ext_optional,
        ext_strings,
    )

    from kata_gpu.plan.simulate import cel_functions  # noqa: PLC0415

    text, anything = cel.Type.STRING, cel.Type.DYN
    quantities = cel.Type.Map(text, cel_functions.QUANTITY)
    return cel.NewEnv(
        descriptor_pool=cel_functions.POOL,
        variables={
            "device": cel.Type.Map(text, anything),
            # CEL takes the longest name: these give the members their types
            "device.driver": text,
            "device.attributes": cel.Type.Map(text, cel.Type.Map(text, anything)),
            "device.capacity": cel.Type.Map(text, quantities),
            "device.allowMultipleAllocations": cel.Type.BOOL,
        },
        extensions=[
            ext_strings.ExtStrings(2),
            ext_bindings.ExtBindings(),
            ext_optional.ExtOptional(),
            cel_functions.extension(),
        ],
    )


def _device(device: Device, expression: str) -> dict[str, Any]:
    from kata_gpu.plan.simulate import cel_functions  # noqa: PLC0415 - as above

    quoted = _INDEXED if _WHOLE.search(expression) else _QUOTED
    named = {*quoted.findall(expression), *_PLAIN.findall(expression)}
    domains = named - set(_TESTED.findall(expression))
    capacity = {name: cel_functions.of_quantity(number) for name, number in device.capacity.items()}
    return {
        "driver": device.id.driver,
        "attributes": _by_domain({n: _plain(v) for n, v in device.attributes.items()}, domains),
        "capacity": _by_domain(capacity, domains),
        "allowMultipleAllocations": device.is_shared,
    }


def _compares_version_with_text(device: Device, expression: str) -> bool:
    """Tell of an ``==`` that the library finds false; what it is of is seen in the text alone."""
    if "==" not in expression:
        return False
    names = {
        re.escape(qualified.rpartition("/")[2])
        for qualified, value in device.attributes.items()
        if isinstance(value, Version)
    }
    return any(
        re.search(
            rf"""\.{name}\s*==\s*["']|["']{name}["']\s*\]\s*==\s*["']"""
            rf"""|["']\s*==\s*device\.attributes\[[^]]*\](?:\.{name}\b|\[["']{name}["']\])""",
            expression,
        )
        for name in names
    )


def _plain(value: Value) -> Any:
    from kata_gpu.plan.simulate import cel_functions  # noqa: PLC0415 - as above

    return cel_functions.of_version(value.text) if isinstance(value, Version) else value


def _by_domain(values: Mapping[str, Any], domains: set[str]) -> dict[str, dict[str, Any]]:
    """Return values by domain and name; a domain that is asked for is there, if empty."""
    found: dict[str, dict[str, Any]] = {domain: {} for domain in domains}
    for qualified, value in values.items():
        domain, _, name = qualified.partition("/")
        found.setdefault(domain, {})[name] = value
    return found


def _failure(message: str) -> CelFailure:
    unknown = set(_UNKNOWN.findall(message)) & _ABSENT_HERE
    if unknown:
        names = ", ".join(sorted(unknown))
        return CelFailure(
            f"{names} is known to Kubernetes, and not to this simulation", is_ours=True
        )
    if _MIXED.search(message):
        return CelFailure(
            "Kubernetes compares numbers of two kinds, and this simulation does not: give both "
            "the same, as in 80.0 for 80",
            is_ours=True,
        )
    line = _CODES.sub("", message.splitlines()[0]) if message else "it failed"
    is_ours = any(budget in message for budget in _BUDGETS)
    return CelFailure(_CODES.sub("", line)[:_SHOWN], is_ours=is_ours)
