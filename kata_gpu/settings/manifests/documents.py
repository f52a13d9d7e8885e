"""Files for a simulation as documents: YAML of several, JSON of one, and lists taken apart.

Other people's files: what is made to grow or to nest without end is refused at no more cost than
its length. An alias counts as often as it is used.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.host import files
from kata_gpu.model.text import printable

FILE_MAX_BYTES: Final = 64 << 20
YAML_MAX_BYTES: Final = 1 << 20
"""Of one document; JSON, which a program writes, may be as long as a file."""

YAML_FILE_MAX_BYTES: Final = 8 << 20
NODES_MAX: Final = 200_000
"""Values in one YAML document, with all that its aliases stand for."""

DEPTH_MAX: Final = 64
_TAGS: Final = "tag:yaml.org,2002:"
_TEXTS: Final = frozenset({"str", "timestamp", "value", "int", "float", "bool"})
_SHOWN: Final = 200
_LONG: Final = "write what has more than 1 MiB, or files of more than 8, as JSON"


@dataclass(frozen=True, slots=True)
class Document:
    """One object, and where it is from."""

    origin: str
    """``FILE: document 2``, or ``FILE`` where there is but one."""

    tree: dict[str, Any]


def read(path: Path) -> list[Document]:
    """Return all objects of a file, those of lists each by itself.

    Raises:
        InvalidBlueprint: it cannot be read, is no YAML and no JSON, or is too much.
    """
    try:
        text = files.read(path, max_bytes=FILE_MAX_BYTES)
    except HostError as error:
        raise InvalidBlueprint(str(error)) from error
    if text is None:
        raise InvalidBlueprint(f"cannot read {path}: it does not exist")
    return parse(text, origin=str(path))


def parse(text: str, *, origin: str) -> list[Document]:
    """Return all objects of a *text*; *origin* names it in messages."""
    try:
        trees = [_json(text)] if text.lstrip()[:1] == "{" else list(_yaml(text))
    except json.JSONDecodeError:
        trees = list(_guarded(text, origin))  # YAML in flow style begins with a brace too
    except (ValueError, RecursionError) as error:
        raise InvalidBlueprint(f"cannot use {origin}: {_line(error)}") from error
    found: list[Document] = []
    for number, tree in enumerate(trees, 1):
        where = origin if len(trees) == 1 else f"{origin}: document {number}"
        if tree is not None:
            found += _parts(tree, where)
    return found


def _guarded(text: str, origin: str) -> Iterator[Any]:
    try:
        yield from _yaml(text)
    except (ValueError, RecursionError) as error:
        raise InvalidBlueprint(f"cannot use {origin}: {_line(error)}") from error


def _line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).split())
    if "set_int_max_str_digits" in text:  # Python's own advice is none to who has the file
        return "it has a number of more digits than any that counts"
    return printable(text[:_SHOWN])


def _parts(tree: Any, where: str) -> Iterator[Document]:
    if not isinstance(tree, dict):
        raise InvalidBlueprint(f"cannot use {where}: expected an object, with apiVersion and kind")
    kind = tree.get("kind")
    if not (
        isinstance(kind, str) and kind.endswith("List") and isinstance(tree.get("items"), list)
    ):
        yield Document(where, tree)
        return
    for number, item in enumerate(tree["items"]):
        if not isinstance(item, dict):
            raise InvalidBlueprint(f"cannot use {where}: items[{number}]: expected an object")
        inherited = {"kind": kind.removesuffix("List"), "apiVersion": tree.get("apiVersion")}
        yield Document(f"{where}: items[{number}]", {**inherited, **item})


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key is there twice among {', '.join(sorted(found))[:_SHOWN]}")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _yaml(text: str) -> Iterator[Any]:
    import yaml  # noqa: PLC0415 - for who has files in it

    if len(text) > YAML_FILE_MAX_BYTES:
        raise ValueError(f"{len(text)} characters are too many for YAML: {_LONG}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        while loader.check_node():
            root: Any = loader.get_node()
            length = root.end_mark.index - root.start_mark.index
            if length > YAML_MAX_BYTES:
                raise ValueError(f"a document of {length} bytes is too long for YAML: {_LONG}")
            yield _Walk(loader).value(root, "", 0)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from error
    finally:
        loader.dispose()


class _Walk:
    """Turns the nodes of one document into values, and counts them."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._left = NODES_MAX

    def value(self, node: Any, place: str, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"a document has more than {NODES_MAX} values, with its aliases")
        if depth > DEPTH_MAX:
            raise ValueError(f"a document is nested more than {DEPTH_MAX} deep")
        if node.id != "scalar" and node.tag not in {f"{_TAGS}map", f"{_TAGS}seq"}:
            raise ValueError(f"{place} has the tag {node.tag!r}, which is not known")
        match node.id:
            case "mapping":
                return self._members(node, place, depth)
            case "sequence":
                return [
                    self.value(inner, f"{place}[{number}]", depth + 1)
                    for number, inner in enumerate(node.value)
                ]
            case _:
                return self._scalar(node, place)

    def _members(self, node: Any, place: str, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, inner in node.value:
            if key.id != "scalar" or key.tag == f"{_TAGS}merge":
                raise ValueError(f"{place or 'the document'} has a key that is no plain text")
            here = f"{place}.{key.value}" if place else str(key.value)
            if key.value in made:
                raise ValueError(f"{here} is there twice")
            made[key.value] = self.value(inner, here, depth + 1)
        return made

    def _scalar(self, node: Any, place: str) -> Any:
        """Return JSON's own types; what only YAML 1.1 takes for something else is the text."""
        kind = node.tag.removeprefix(_TAGS)
        if kind in {"int", "float", "bool", "null"} and not _is_old(kind, node.value):
            return self._loader.construct_object(node)
        if kind in _TEXTS:
            return node.value
        raise ValueError(f"{place} has the tag {node.tag!r}, which is not known")


def _is_old(kind: str, text: str) -> bool:
    """Tell whether only YAML 1.1 takes *text* for a number or a boolean."""
    return ":" in text or (kind == "bool" and text.lower() not in {"true", "false"})
