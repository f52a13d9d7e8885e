"""What the values of a CDI document must be, where their form is right.

Source: pkg/parser, pkg/cdi/container-edits.go and device.go of the Go library; the same files
of the Rust crate.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from kata_gpu.model.cdi import members
from kata_gpu.plan.cdi.rules import Breach

_PART: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", re.ASCII)
_TYPES: Final = frozenset({"", "b", "c", "u", "p"})
_HOOKS: Final = (
    *("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"),
)
_LETTERS_SINCE: Final = ("0.3.0", "0.4.0")
"""Versions in which a device's name begins with a letter."""


def breaches(tree: Mapping[str, Any], version: str) -> Iterator[Breach]:
    """Yield what no library takes of a spec of that *version*, as rule, place and finding."""
    yield from _kind(tree.get("kind"), version)
    yield from _edits(tree.get("containerEdits"), "containerEdits")
    seen: set[str] = set()
    devices = tree.get("devices")
    if isinstance(devices, tuple) and not devices:
        yield "no-devices", "devices", "it is empty, and runtime-rs wants one device at least"
    for number, device in members(devices):
        at = f"devices[{number}]"
        yield from _name(device.get("name"), f"{at}.name", version, seen)
        edits = device.get("containerEdits")
        if isinstance(edits, Mapping) and not any(_is_filled(value) for value in edits.values()):
            yield "empty-edits", f"{at}.containerEdits", "they are empty"
        yield from _edits(edits, f"{at}.containerEdits")


def _is_filled(value: Any) -> bool:
    return isinstance(value, Mapping) or bool(value)


def _kind(kind: Any, version: str) -> Iterator[Breach]:
    if not isinstance(kind, str):
        return
    parts = kind.split("/")
    if len(parts) != 2 or not all(map(_PART.fullmatch, parts)):  # noqa: PLR2004 - vendor, class
        yield (
            "kind",
            "kind",
            f"{kind[:80]!r} is not vendor/class, each a letter and then letters, digits or _-. up "
            f"to a letter or digit",
        )
    elif "." in parts[1] and version in {*_LETTERS_SINCE, "0.5.0"}:
        yield "field-version", "kind", "a dot in the class needs cdiVersion 0.6.0"


def _name(name: Any, at: str, version: str, seen: set[str]) -> Iterator[Breach]:
    if not isinstance(name, str):
        return
    if not _NAME.fullmatch(name):
        yield (
            "device-name",
            at,
            f"{name[:80]!r} is not made of letters, digits and _-.: with a letter or digit at "
            f"both ends",
        )
    elif not name[0].isalpha() and version in _LETTERS_SINCE:
        yield "field-version", at, f"a name that begins with {name[0]} needs cdiVersion 0.5.0"
    if name in seen:
        yield "twice-in-file", at, f"{name[:80]} is in this file twice"
    seen.add(name)


def _edits(edits: Any, place: str) -> Iterator[Breach]:
    if not isinstance(edits, Mapping):
        return
    yield from _env(edits.get("env"), f"{place}.env")
    for key, check in _CHECKS.items():
        for number, table in members(edits.get(key)):
            yield from check(table, f"{place}.{key}[{number}]")


def _env(env: Any, place: str) -> Iterator[Breach]:
    for number, text in enumerate(env if isinstance(env, tuple) else ()):
        if isinstance(text, str) and text.find("=") < 1:
            yield "value", f"{place}[{number}]", f"{text[:80]!r} is not NAME=VALUE"


def _node(node: Mapping[str, Any], place: str) -> Iterator[Breach]:
    yield from _not_empty(node, ("path",), place)
    kind = node.get("type")
    if isinstance(kind, str) and kind not in _TYPES:
        yield "value", f"{place}.type", f"{kind[:80]!r} is none of b, c, u, p"
    allowed = node.get("permissions")
    if allowed == "none":
        yield "no-permissions", f"{place}.permissions", "Kata's Go runtime takes none but r, w, m"
    elif isinstance(allowed, str) and not set(allowed) <= set("rwm"):
        yield "value", f"{place}.permissions", f"{allowed[:80]!r} is not made of r, w and m"


def _hook(hook: Mapping[str, Any], place: str) -> Iterator[Breach]:
    yield from _not_empty(hook, ("path",), place)
    name = hook.get("hookName")
    if isinstance(name, str) and name not in _HOOKS:
        yield "value", f"{place}.hookName", f"{name[:80]!r} is none of {', '.join(_HOOKS)}"
    yield from _env(hook.get("env"), f"{place}.env")


def _mount(mount: Mapping[str, Any], place: str) -> Iterator[Breach]:
    return _not_empty(mount, ("hostPath", "containerPath"), place)


def _net(net: Mapping[str, Any], place: str) -> Iterator[Breach]:
    return _not_empty(net, ("hostInterfaceName", "name"), place)


def _not_empty(table: Mapping[str, Any], keys: Iterable[str], place: str) -> Iterator[Breach]:
    for key in keys:
        if table.get(key) == "":
            yield "value", f"{place}.{key}", "it is empty"


_CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Iterator[Breach]]]] = {
    "deviceNodes": _node,
    "hooks": _hook,
    "mounts": _mount,
    "netDevices": _net,
}
