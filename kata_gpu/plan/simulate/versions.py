"""Semantic versions as Kubernetes' CEL has them; what comes after a ``+`` does not count.

Source: semver.org 2.0.0, items 2, 9, 10 and 11; k8s.io/apiserver/pkg/cel/library/semver.go.
"""

import re
from typing import Final

_NUMBER: Final = r"(0|[1-9]\d{0,17})"
_FORM: Final = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?", re.ASCII
)
_LONGEST: Final = 256
_PARTS: Final = 3


def parse(text: str) -> tuple[int, int, int, tuple[str, ...]]:
    """Return major, minor and patch, and what says that it is before that release.

    Raises:
        ValueError: it is no semantic version.
    """
    match = _FORM.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError(f"{text[:40]!r} is no semantic version")
    before = tuple((match[4] or "").split(".")) if match[4] else ()
    if any(not part or (part.isdigit() and part != str(int(part))) for part in before):
        raise ValueError(f"{text[:40]!r} is no semantic version")
    return int(match[1]), int(match[2]), int(match[3]), before


def normalized(text: str) -> str:
    """Return *text* without a leading v and leading zeros, and with all its three numbers."""
    core, mark, rest = text[:_LONGEST].removeprefix("v"), "", ""
    for sign in "+-":
        head, found, tail = core.partition(sign)
        if found:
            core, mark, rest = head, found, tail + mark + rest
    numbers = [part.lstrip("0") or "0" if part else part for part in core.split(".")]
    numbers += ["0"] * (_PARTS - len(numbers))
    return f"{'.'.join(numbers)}{mark}{rest}"


def compare(one: str, other: str) -> int:
    """Return -1, 0 or 1 as *one* is before, equal to or after *other*."""
    first, second = _order(one), _order(other)
    return (first > second) - (first < second)


def _order(text: str) -> tuple[object, ...]:
    *release, before = parse(text)
    parts = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in before]
    return (*release, not before, parts)
