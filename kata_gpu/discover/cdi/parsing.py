"""A CDI file's bytes as an immutable document; nothing of it is judged here.

Both of Kata's libraries read every file as YAML, which JSON is a part of. Bytes that are made
to grow or to nest without end cost no more than their length.

Source: pkg/cdi/spec.go of the Go library (sigs.k8s.io/yaml, strict), src/spec.rs of the crate
(serde_yaml).
"""

from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from kata_gpu.model.cdi import CdiBroken, CdiDocument, CdiUnjudged

_MAX_DEPTH: Final = 64
_ASIDE: Final = "it uses aliases, which may stand for more than is written"
_DEEP: Final = f"it is nested more than {_MAX_DEPTH} deep"
_TAGS: Final = "tag:yaml.org,2002:"
_REASON_MAX: Final = 200
_FILES_KEPT: Final = 128
_KEPT_MAX_BYTES: Final = 1 << 17
_TEXTS: Final = frozenset(
    {"str", "timestamp", "value", "merge", "int", "float", "bool"}
)  # the last three where YAML 1.2 has a text: 0000:41:00.0 is a number to the base 60 in 1.1


Content = CdiDocument | CdiBroken | CdiUnjudged


class _TooMuchError(Exception):
    """A document that nobody has to read to its end."""


def parse(name: str, content: bytes) -> Content:
    """Return what *content* of the file *name* says.

    It is parsed once however often it is asked for: a daemon looks at the same files turn after
    turn.
    """
    is_json = name.endswith(".json")
    return (_kept if len(content) <= _KEPT_MAX_BYTES else _parse)(content, is_json=is_json)


def _parse(content: bytes, *, is_json: bool) -> Content:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return CdiBroken(reason=f"it is not UTF-8 at byte {error.start}")
    try:
        found = _json(text) if is_json else None
        return found or _yaml(text, is_other_form=is_json)
    except _TooMuchError as error:
        return CdiUnjudged(reason=str(error))
    except RecursionError:
        return CdiUnjudged(reason=_DEEP)
    except ValueError as error:
        return CdiBroken(reason=" ".join(str(error).split())[:_REASON_MAX])


_kept = lru_cache(maxsize=_FILES_KEPT)(_parse)


def _json(text: str) -> CdiDocument | None:
    """Return the document; None when it is no JSON, which readers take for YAML then."""
    import json  # noqa: PLC0415 - for who has a spec

    try:
        tree = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_no_constant)
    except ValueError:
        return None
    repeated: list[str] = []
    return CdiDocument(tree=_frozen(tree, "", repeated, 0), repeated=tuple(repeated))


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, those that are written twice among them."""


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _frozen(value: Any, place: str, repeated: list[str], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise _TooMuchError(_DEEP)
    match value:
        case _Pairs():
            made: dict[str, Any] = {}
            for key, inner in value:
                here = _below(place, key)
                if key in made:
                    repeated.append(here)
                made[key] = _frozen(inner, here, repeated, depth + 1)
            return MappingProxyType(made)
        case list():
            return tuple(
                _frozen(inner, f"{place}[{number}]", repeated, depth + 1)
                for number, inner in enumerate(value)
            )
        case _:
            return value


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _yaml(text: str, *, is_other_form: bool) -> CdiDocument:
    import yaml  # noqa: PLC0415 - most nodes have no spec in YAML

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    repeated: list[str] = []
    try:
        root = loader.get_node() if loader.check_node() else None
        has_more = root is not None and _has_more(loader)
        tree = None if root is None else _Walk(loader, repeated).value(root, "", 0)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()
    return CdiDocument(
        tree=tree, repeated=tuple(repeated), is_other_form=is_other_form, has_more=has_more
    )


def _has_more(loader: Any) -> bool:
    """Tell whether a document follows; one that is broken does."""
    import yaml  # noqa: PLC0415 - as in `_yaml`

    try:
        return bool(loader.check_node())
    except yaml.YAMLError:
        return True


class _Walk:
    """Turns YAML's nodes into values, each once: a node met twice is an alias."""

    def __init__(self, loader: Any, repeated: list[str]) -> None:
        self._loader = loader
        self._repeated = repeated
        self._met: set[int] = set()

    def value(self, node: Any, place: str, depth: int) -> Any:
        if id(node) in self._met:
            raise _TooMuchError(_ASIDE)
        if depth > _MAX_DEPTH:
            raise _TooMuchError(_DEEP)
        self._met.add(id(node))
        match node.id:
            case "mapping":
                return MappingProxyType(self._members(node, place, depth))
            case "sequence":
                return tuple(
                    self.value(inner, f"{place}[{number}]", depth + 1)
                    for number, inner in enumerate(node.value)
                )
            case _:
                return self._scalar(node)

    def _members(self, node: Any, place: str, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, inner in node.value:
            if key.id != "scalar":
                raise ValueError(f"{place or 'the document'} has a key that is no text")
            here = _below(place, key.value)
            if key.value in made:
                self._repeated.append(here)
            made[key.value] = self.value(inner, here, depth + 1)
        return made

    def _scalar(self, node: Any) -> Any:
        """Return JSON's own types; what only YAML 1.1 takes for something else is the text."""
        if not node.tag.startswith(_TAGS):
            raise ValueError(f"could not determine a constructor for the tag {node.tag!r}")
        kind = node.tag.removeprefix(_TAGS)
        if kind in {"int", "float", "bool", "null"} and not _is_old(kind, node.value):
            return self._loader.construct_object(node)
        if kind in _TEXTS:
            return node.value
        raise ValueError(f"could not determine a constructor for the tag {node.tag!r}")


def _is_old(kind: str, text: str) -> bool:
    """Tell whether only YAML 1.1 takes *text* for a number or a boolean."""
    return ":" in text or (kind == "bool" and text.lower() not in {"true", "false"})
