"""What ``kubectl kustomize`` makes of our kustomizations, as far as they use it.

Anything else in one of them is refused here, so that what the tests see is what an admin gets.
A generated ConfigMap keeps its plain name, without the hash of its content.
"""

import copy
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

Document = dict[str, Any]

_KINDS: Final = {"Kustomization", "Component"}
_KEYS: Final = {
    *("apiVersion", "kind", "resources", "components", "configMapGenerator", "patches", "images"),
}
_MERGED_BY: Final = {
    **{"containers": "name", "initContainers": "name", "volumes": "name", "env": "name"},
    "volumeMounts": "mountPath",
}


class _Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, of which the first would be lost."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    if len(keys) != len(set(keys)):
        raise ValueError(f"a key twice in {keys}, {node.start_mark}")
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def documents(path: Path) -> list[Document]:
    """Return the documents of a YAML file."""
    return list(yaml.load_all(path.read_text(), _Strict))


def build(folder: Path) -> list[Document]:
    """Return the objects that the kustomization in *folder* makes."""
    return _applied(folder, [])


def _applied(folder: Path, found: list[Document]) -> list[Document]:
    (wish,) = documents(folder / "kustomization.yaml")
    if wish["kind"] not in _KINDS or wish.keys() - _KEYS:
        raise ValueError(f"{folder}: not a kustomization that this knows: {wish}")
    found = found + [d for name in wish.get("resources", ()) for d in _resource(folder / name)]
    for name in wish.get("components", ()):
        found = _applied(folder / name, found)
    for generator in wish.get("configMapGenerator", ()):
        found = _with_config_map(folder, generator, found)
    for patch in wish.get("patches", ()):
        (path,) = patch.values()
        (change,) = documents(folder / path)  # kubectl 1.32 fails where two are removed by one file
        found = list(_patched(found, change))
    for image in wish.get("images", ()):
        found = [_with_image(document, image) for document in found]
    return found


def _with_image(tree: Any, image: Document) -> Any:
    """Return an object whose containers have another image, where they have that one."""
    match tree:
        case {"image": str(old)} if old.partition(":")[0] == image["name"]:
            return {**tree, "image": f"{image['newName']}:{image['newTag']}"}
        case dict():
            return {key: _with_image(value, image) for key, value in tree.items()}
        case list():
            return [_with_image(value, image) for value in tree]
        case _:
            return tree


def _resource(path: Path) -> list[Document]:
    return build(path) if path.is_dir() else documents(path)


def _with_config_map(folder: Path, wish: Document, found: list[Document]) -> list[Document]:
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": wish["name"], "namespace": wish["namespace"]},
        "data": {name: (folder / name).read_text() for name in wish["files"]},
    }
    if wish.get("behavior", "create") == "create":
        return [*found, made]
    return list(_patched(found, made))


def identity(document: Document) -> tuple[str, str, str | None, str]:
    """Return what no two objects of a cluster have in common."""
    of = document["metadata"]
    return document["apiVersion"], document["kind"], of.get("namespace"), of["name"]


def _patched(found: list[Document], change: Document) -> Iterator[Document]:
    change = copy.deepcopy(change)
    is_removal = change.pop("$patch", None) == "delete"
    if identity(change) not in map(identity, found):
        raise ValueError(f"there is nothing to change: {identity(change)}")
    for document in found:
        if identity(document) != identity(change):
            yield document
        elif not is_removal:
            yield _merged(document, change)


def _merged(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {
            **old,
            **{k: _merged(old[k], v, k) if k in old else v for k, v in new.items()},
        }
    if key not in _MERGED_BY or not isinstance(old, list):
        return new
    name = _MERGED_BY[key]
    changes = {item[name]: item for item in new}
    merged = [_merged(item, changes.pop(item[name], {})) for item in old]
    return [*changes.values(), *merged]
