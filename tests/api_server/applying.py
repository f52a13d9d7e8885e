"""Server-side apply, as far as an agent may use it: a node's labels.

A manager owns what it applied. What it owned and applies no more goes, unless another manager
owns it too; what another owns with another value is a conflict unless it is forced.

Source: kubernetes.io, Server-Side Apply.
"""

import copy
from collections.abc import Mapping
from typing import Any

from tests.api_server.store import Json, Key, Refusal
from tests.api_server.validation import label_faults


class Owners:
    """Which manager owns which field of which object."""

    def __init__(self) -> None:
        self._owned: dict[tuple[Key, str], dict[Any, Any]] = {}

    def merge(
        self,
        key: Key,
        manager: str,
        wanted: Mapping[Any, Any],
        have: Mapping[Any, Any],
        *,
        is_forced: bool,
    ) -> dict[Any, Any]:
        """Return *have* with what *manager* wants in it, and remember that it is theirs."""
        theirs = {
            field: other
            for (where, other), owned in self._owned.items()
            for field in owned
            if where == key and other != manager
        }
        for field, value in wanted.items():
            is_contested = field in have and have[field] != value and field in theirs
            if is_contested and not is_forced:
                raise Refusal(409, "Conflict", f"Apply failed: conflict with {theirs[field]!r}")
        before = self._owned.get((key, manager), {})
        gone = [field for field in before if field not in wanted and field not in theirs]
        self._owned[(key, manager)] = dict(wanted)
        return {**{f: v for f, v in have.items() if f not in gone}, **wanted}

    def forget(self, key: Key) -> None:
        """Know of no owner of an object that is made anew."""
        self._owned = {place: owned for place, owned in self._owned.items() if place[0] != key}

    def managed_fields(self, key: Key) -> list[Json]:
        """Return who owns what of a node, as its metadata tells it."""
        return [
            {
                "manager": manager,
                "operation": "Apply",
                "apiVersion": "v1",
                "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:labels": {f"f:{field}": {} for field in owned}}},
            }
            for (where, manager), owned in self._owned.items()
            if where == key and owned
        ]


def node_labels(
    stored: Json, body: Json, owners: Owners, key: Key, manager: str, *, is_forced: bool
) -> Json:
    """Return the node with the labels that *body* applies; it may be about nothing else."""
    metadata = body.get("metadata") or {}
    extra = {*body} - {"apiVersion", "kind", "metadata"} | {*metadata} - {"name", "labels"}
    if extra:
        raise Refusal(403, "Forbidden", f"an agent may apply labels only, not {sorted(extra)}")
    wanted = metadata.get("labels") or {}
    faults = list(label_faults(wanted))
    if faults:
        raise Refusal(422, "Invalid", "; ".join(faults))
    after = copy.deepcopy(stored)
    have = after["metadata"].get("labels") or {}
    after["metadata"]["labels"] = owners.merge(key, manager, wanted, have, is_forced=is_forced)
    return after
