"""How the kernel answers a store, other than by doing it."""

import errno
import os
from typing import NoReturn


class WouldBlockForever(AssertionError):  # noqa: N818 - it says what the store would do
    """A store that the real kernel would answer only when the device's user lets go."""


def refuse(code: int) -> NoReturn:
    """Answer a store with an errno."""
    raise OSError(code, os.strerror(code))


def parse_number(value: str) -> int:
    """Read a number as kstrtoul does with base 0; EINVAL for anything else."""
    text = value.removesuffix("\n")
    octal = text.startswith("0") and text[1:2] not in {"x", "X"}
    try:
        number = int(text, 8 if octal else 0)
    except ValueError:
        refuse(errno.EINVAL)
    return number if number >= 0 else refuse(errno.EINVAL)
