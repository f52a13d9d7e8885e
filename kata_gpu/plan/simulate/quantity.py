"""Kubernetes' quantities: ``80Gi``, ``500m``, ``4``, as exact numbers.

Source: k8s.io/apimachinery/pkg/api/resource/quantity.go.
"""

import re
from fractions import Fraction
from typing import Final

_FORM: Final = re.compile(
    r"([+-]?)(\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,2})?",
    re.ASCII,
)
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_STEP: Final = 1024


def parse(text: str) -> Fraction:
    """Return the number that *text* is.

    Raises:
        ValueError: it is no quantity.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no quantity (expected a number such as 80Gi or 500m)")
    sign, digits, suffix = match.groups()
    number = Fraction(f"0{digits}") if digits.startswith(".") else Fraction(digits.rstrip("."))
    return (-number if sign == "-" else number) * _factor(suffix or "")


def _factor(suffix: str) -> Fraction:
    if suffix in _BINARY:
        return Fraction(_STEP ** (_BINARY.index(suffix) + 1))
    if suffix in _DECIMAL:
        return Fraction(10) ** _DECIMAL[suffix]
    return Fraction(10) ** int(suffix[1:]) if suffix else Fraction(1)


def text(number: Fraction) -> str:
    """Return *number* as a person writes it: whole binary multiples with their suffix."""
    if number.denominator != 1:
        return f"{float(number):.3f}".rstrip("0").rstrip(".")
    whole, suffix = int(number), ""
    for larger in _BINARY:
        if whole == 0 or whole % _STEP:
            break
        whole, suffix = whole // _STEP, larger
    return f"{whole}{suffix}"
