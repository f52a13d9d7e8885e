"""Whether a value of TOML is of the type that a runtime wants."""

from typing import Any, Final

from kata_gpu.plan.kata.dialect import Kind
from kata_gpu.plan.kata.parsing import Record

_WHOLE: Final = {
    Kind.U32: range(1 << 32),
    Kind.U64: range(1 << 63),  # TOML's own limit is below 64 bits without sign
    Kind.I64: range(-(1 << 63), 1 << 63),
}


def is_of(kind: Kind, value: Any) -> bool:
    """Tell whether *value* is of that type; what is in a table is not looked at."""
    match kind:
        case Kind.STRING:
            return isinstance(value, str)
        case Kind.BOOL:
            return isinstance(value, bool)
        case Kind.F32:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case Kind.STRINGS | Kind.TABLES:
            inner = str if kind is Kind.STRINGS else Record
            return isinstance(value, tuple) and all(isinstance(item, inner) for item in value)
        case Kind.TABLE:
            return True
        case Kind.U32 | Kind.U64 | Kind.I64:
            return type(value) is int and value in _WHOLE[kind]
