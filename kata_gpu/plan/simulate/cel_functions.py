"""What Kubernetes adds to CEL for devices: quantities and semantic versions.

In CEL a quantity is a message of our own, so that the checker knows it from every other type;
a version is a list of one text, for the library tells functions apart by kinds of values, and
both have ``compareTo``. Either is unequal to a value of another type, which is an error there.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Final

from cel_expr_python import cel
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from kata_gpu.plan.simulate import quantity, versions

_INT64: Final = 1 << 63
_TYPE: Final = "kubernetes.Quantity"


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="kubernetes.proto", package="kubernetes", syntax="proto3"
    )
    message = file.message_type.add(name="Quantity")
    message.field.add(
        name="number",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    made = descriptor_pool.DescriptorPool()
    made.AddSerializedFile(file.SerializeToString())
    return made


POOL: Final = _pool()
_Message: Final[Any] = message_factory.GetMessageClass(POOL.FindMessageTypeByName(_TYPE))
_QUANTITY: Final = cel.Type(_TYPE)
_VERSION: Final = cel.Type.List(cel.Type.STRING)
_BOOL, _INT, _STRING = cel.Type.BOOL, cel.Type.INT, cel.Type.STRING

QUANTITY: Final = _QUANTITY


def of_quantity(number: Fraction) -> Any:
    """Return *number* as CEL has it; equal numbers are equal there."""
    return _Message(number=str(number))


def of_version(text: str) -> list[str]:
    """Return a version as CEL has it; versions that differ after their ``+`` are equal there."""
    versions.parse(text)
    return [text.partition("+")[0]]


def _number(message: Any) -> Fraction:
    return Fraction(message.number or 0)


def _compared(one: Any, other: Any) -> int:
    first, second = _number(one), _number(other)
    return (first > second) - (first < second)


def _whole(message: Any) -> int:
    number = _number(message)
    if not _is_whole(message):
        raise ValueError(f"{quantity.text(number)} is no integer of 64 bits")
    return int(number)


def _is_whole(message: Any) -> bool:
    number = _number(message)
    return number.denominator == 1 and -_INT64 <= number < _INT64


def _sign(message: Any) -> int:
    return (_number(message) > 0) - (_number(message) < 0)


def _is(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _version_of(text: str, normalize: bool) -> list[str]:
    return of_version(versions.normalized(text) if normalize else text)


def _is_version(text: str, normalize: bool) -> bool:
    return _is(versions.parse, versions.normalized(text) if normalize else text)


def _made() -> Iterator[tuple[str, list[Any]]]:
    yield "quantity", [_function(_QUANTITY, [_STRING], lambda t: of_quantity(quantity.parse(t)))]
    yield "sign", [_function(_INT, [_QUANTITY], _sign)]
    yield "isQuantity", [_function(_BOOL, [_STRING], lambda t: _is(quantity.parse, t))]
    yield (
        "semver",
        [
            _function(_VERSION, [_STRING], of_version),
            _function(_VERSION, [_STRING, _BOOL], _version_of),
        ],
    )
    yield (
        "isSemver",
        [
            _function(_BOOL, [_STRING], lambda t: _is(versions.parse, t)),
            _function(_BOOL, [_STRING, _BOOL], _is_version),
        ],
    )


def _members() -> Iterator[tuple[str, list[Any]]]:
    yield "isInteger", [_member(_BOOL, [_QUANTITY], _is_whole)]
    yield "asInteger", [_member(_INT, [_QUANTITY], _whole)]
    yield (
        "asApproximateFloat",
        [_member(cel.Type.DOUBLE, [_QUANTITY], lambda q: float(_number(q)))],
    )
    sums: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
    }
    for name, work in sums.items():
        yield (
            name,
            [
                _member(
                    _QUANTITY,
                    [_QUANTITY, _QUANTITY],
                    lambda a, b, work=work: of_quantity(work(_number(a), _number(b))),
                ),
                _member(
                    _QUANTITY,
                    [_QUANTITY, _INT],
                    lambda a, b, work=work: of_quantity(work(_number(a), Fraction(b))),
                ),
            ],
        )
    for number, name in enumerate(("major", "minor", "patch")):
        yield name, [_member(_INT, [_VERSION], lambda v, at=number: versions.parse(v[0])[at])]


def _comparisons() -> Iterator[tuple[str, list[Any]]]:
    answers: dict[str, tuple[Any, Callable[[int], Any]]] = {
        "compareTo": (_INT, lambda found: found),
        "isGreaterThan": (_BOOL, lambda found: found > 0),
        "isLessThan": (_BOOL, lambda found: found < 0),
    }
    for name, (kind, answer) in answers.items():
        yield (
            name,
            [
                _member(
                    kind, [_QUANTITY, _QUANTITY], lambda a, b, say=answer: say(_compared(a, b))
                ),
                _member(
                    kind,
                    [_VERSION, _VERSION],
                    lambda a, b, say=answer: say(versions.compare(a[0], b[0])),
                ),
            ],
        )


def _function(kind: Any, parameters: list[Any], work: Callable[..., Any]) -> dict[str, Any]:
    return {
        "return_type": kind,
        "parameters": parameters,
        "is_member": False,
        "impl": work,
    }


def _member(kind: Any, parameters: list[Any], work: Callable[..., Any]) -> dict[str, Any]:
    return {**_function(kind, parameters, work), "is_member": True}


def extension() -> Any:
    """Return all of it, for an environment."""
    declared = []
    for name, overloads in (*_made(), *_members(), *_comparisons()):
        named = [
            cel.Overload(id=f"kubernetes_{name}_{number}", **overload)
            for number, overload in enumerate(overloads)
        ]
        declared.append(cel.FunctionDecl(name, named))
    return cel.CelExtension("kubernetes", declared)
