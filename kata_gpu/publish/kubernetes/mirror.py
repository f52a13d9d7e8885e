"""What the API server holds of ours, as far as it was told."""

from collections.abc import Iterable, Mapping
from typing import Any

from kata_gpu.model.slices import Object


class Mirror:
    """The slices of one driver and node, and the version up to which they are known.

    What we wrote is in it before the watch tells; what the watch tells late does not undo it.
    """

    def __init__(self) -> None:
        self.version = ""
        """From where a watch goes on."""

        self._listed = 0
        self._by_uid: dict[str, Object] = {}

    @property
    def objects(self) -> tuple[Object, ...]:
        """The slices, in no order."""
        return tuple(self._by_uid.values())

    def reset(self, items: Iterable[Object], version: str) -> None:
        """Know exactly these, as a list of that version told."""
        self.version = version
        self._listed = _number(version)
        self._by_uid = {str(item["metadata"]["uid"]): item for item in items}

    def keep(self, stored: Object) -> None:
        """Know a slice as the answer to our own write has it."""
        self._by_uid[str(stored["metadata"]["uid"])] = stored

    def drop(self, deleted: Object) -> None:
        """Know that a slice is gone."""
        self._by_uid.pop(str(deleted["metadata"]["uid"]), None)

    def hear(self, event: Mapping[str, Any]) -> bool:
        """Take what a watch told; tell whether somebody else changed something."""
        found = event["object"]
        version = str(found["metadata"]["resourceVersion"])
        self.version = version
        if event["type"] == "BOOKMARK" or _number(version) <= self._listed:
            return False
        known = self._by_uid.get(str(found["metadata"]["uid"]))
        if event["type"] == "DELETED":
            self.drop(found)
            return known is not None
        if known and _number(version) <= _number(str(known["metadata"]["resourceVersion"])):
            return False
        self.keep(found)
        return True


def _number(version: str) -> int:
    """Return a version to compare by, as the API allows for one resource; 0 for a strange one."""
    return int(version) if version.isascii() and version.isdigit() else 0
