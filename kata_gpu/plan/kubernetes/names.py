"""Names as Kubernetes has them.

Source: apimachinery, util/validation.
"""

import re
from typing import Final

DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A device's name, or a counter's."""

_MAX: Final = 63


def label_value(text: str) -> str:
    """Return *text* as a label's value has it: letters, digits and marks, at most 63 of them."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return safe.lstrip("._-")[:_MAX].rstrip("._-")


def dns_label(text: str) -> str:
    """Return *text* as a DNS label: ``0000-41-00-0`` for an address; empty if nothing is left."""
    safe = re.sub(r"[^a-z0-9-]", "-", text.lower())
    return safe.lstrip("-")[:_MAX].rstrip("-")
