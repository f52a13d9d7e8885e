"""Judge each CDI file by itself, and all of them together."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.cdi import (
    CdiBroken,
    CdiDocument,
    CdiFault,
    CdiFile,
    CdiSpecs,
    CdiUnjudged,
    NodeKind,
)
from kata_gpu.plan.cdi import passing, resolving, values
from kata_gpu.plan.cdi.libraries import EARLIEST, LIBRARIES, RELEASED
from kata_gpu.plan.cdi.rules import Breach, fault
from kata_gpu.plan.cdi.schema import ROOT, TABLES, Field, Form

_FAULTS_MAX: Final = 20
"""Of one rule in one file: whoever has that many mends the program that wrote it."""

_SHOWN: Final = 60
_BY_CASE: Final = {name: {key.lower(): key for key in fields} for name, fields in TABLES.items()}


def judge(specs: CdiSpecs, runtimes: Iterable[Runtime] = tuple(Runtime)) -> tuple[CdiFault, ...]:
    """Return every fault of all files, those of one file together, for any of *runtimes*."""
    found = [
        one for file in specs.files for one in judge_file(file, specs.nodes)
    ] + resolving.conflicts(specs)
    order = {file.path: number for number, file in enumerate(specs.files)}
    kept = [one for one in found if _is_about(one, frozenset(runtimes))]
    return tuple(sorted(kept, key=lambda one: order[one.file]))


def _is_about(one: CdiFault, runtimes: frozenset[Runtime]) -> bool:
    """Tell whether it matters to any of *runtimes*, or to the specification itself."""
    breaks = {Runtime.GO: one.go, Runtime.RUST: one.rust}
    return not one.scopes or any(breaks[runtime] is not None for runtime in runtimes)


def judge_file(file: CdiFile, nodes: Mapping[str, NodeKind]) -> tuple[CdiFault, ...]:
    """Return the faults that *file* has whatever the others hold."""
    found = [fault(rule, file, where, what) for rule, where, what in _breaches(file, nodes)]
    return tuple(one for one in found if one.scopes or one.rule == "json-form")


def _breaches(file: CdiFile, nodes: Mapping[str, NodeKind]) -> Iterator[Breach]:
    if Runtime.GO not in file.readers:
        yield "below-directory", "", "it is below a CDI directory, where only runtime-rs looks"
    match file.content:
        case CdiBroken(reason=reason, is_file=is_file):
            yield "syntax" if is_file else "no-file", "", reason
        case CdiUnjudged(reason=reason):
            yield "unjudged", "", reason
        case CdiDocument() as document:
            yield from _first(_document(document, nodes))


def _first(breaches: Iterable[Breach]) -> Iterator[Breach]:
    """Yield the first breaches of each rule, and how many more there are."""
    by_rule: dict[str, list[Breach]] = {}
    for breach in breaches:
        by_rule.setdefault(breach[0], []).append(breach)
    for found in by_rule.values():
        yield from found[: _FAULTS_MAX - 1]
        for rule, where, what in found[_FAULTS_MAX - 1 : _FAULTS_MAX]:
            more = len(found) - _FAULTS_MAX
            yield rule, where, f"{what} (and {more} more of the kind)" if more else what


def _document(document: CdiDocument, nodes: Mapping[str, NodeKind]) -> Iterator[Breach]:
    tree = document.tree
    if not isinstance(tree, Mapping):
        yield "form", "", f"it is {_told(tree)}, not a mapping"
        return
    if document.is_other_form:
        yield "json-form", "", "its name says JSON, and it is YAML"
    if document.has_more:
        yield "second-document", "", "another document follows, which runtime-rs does not take"
    for place in document.repeated:
        yield "repeated-key", place, "it is there twice"
    version = tree.get("cdiVersion")
    yield from _version(version)
    yield from _Shape(version).table(tree, ROOT, "")
    yield from values.breaches(tree, _number(version))
    yield from passing.breaches(tree, nodes)


def _version(version: Any) -> Iterator[Breach]:
    if not isinstance(version, str):
        return  # which its form says
    number = _number(version)
    if number not in RELEASED or RELEASED.index(number) < RELEASED.index(EARLIEST):
        yield (
            "version",
            "cdiVersion",
            f"cdiVersion {version} is none that a runtime takes ({EARLIEST} to {RELEASED[-1]})",
        )
    elif not LIBRARIES[Runtime.GO].knows(number):
        newest = LIBRARIES[Runtime.GO].newest
        yield (
            "newer-version",
            "cdiVersion",
            f"cdiVersion {version}, and Kata's Go runtime knows none after {newest}",
        )


def _number(version: Any) -> str:
    """Return a version without the ``v`` that both libraries take away; empty for no text."""
    return version.removeprefix("v") if isinstance(version, str) else ""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Compares tables with the schema, for a spec that says it has *version*."""

    version: Any

    def table(self, tree: Mapping[str, Any], name: str, place: str) -> Iterator[Breach]:
        """Yield what is wrong with the keys of one table, and with all below it."""
        fields = TABLES[name]
        by_case = _BY_CASE[name]
        for key, value in tree.items():
            at = _below(place, key)
            known = key if key in fields else by_case.get(key.lower())
            if known is None:
                yield "unknown-field", at, f"there is no such key (there are: {', '.join(fields)})"
                continue
            if known != key:
                yield "field-case", at, f"the key is {known}, and runtime-rs minds the case"
            yield from self._age(fields[known], value, at)
            yield from self._value(fields[known], value, at)
        for key in _missing(fields, tree):
            rule = "missing-devices" if (name, key) == (ROOT, "devices") else "missing-field"
            yield rule, place, f"key {key} is missing"

    def _age(self, field: Field, value: Any, at: str) -> Iterator[Breach]:
        """Compare a field's own version with that of the spec, and of each library."""
        if (field.since == EARLIEST and field.until is None) or not value:
            return
        number = _number(self.version)
        if number not in RELEASED:
            return
        declared = RELEASED.index(number)
        if RELEASED.index(field.since) > max(declared, RELEASED.index(EARLIEST)):
            yield "field-version", at, f"it needs cdiVersion {field.since}, and this is {number}"
        elif field.until is not None and declared >= RELEASED.index(field.until):
            yield "field-version", at, f"it is gone since {field.until}, and this is {number}"
        if not LIBRARIES[Runtime.GO].knows(field.since):
            yield (
                "newer-field",
                at,
                f"it came with {field.since}, which Kata's Go runtime is before",
            )

    def _value(self, field: Field, value: Any, at: str) -> Iterator[Breach]:
        if value is None:
            if field.is_required or field.form is Form.LABELS:
                yield "number-for-text", at, "it is null"
            return
        match field.form, value:
            case Form.TABLE, _:
                yield from self._inner(value, str(field.of), at)
            case Form.LIST, tuple():
                for number, item in enumerate(value):
                    yield from self._member(field.of, item, f"{at}[{number}]")
            case Form.LABELS, Mapping():
                for key, item in value.items():
                    yield from _scalar(Form.TEXT, item, _below(at, key))
            case _:
                yield from _scalar(field.form, value, at)

    def _member(self, kind: Form | str | None, item: Any, at: str) -> Iterator[Breach]:
        if isinstance(kind, str):
            yield from self._inner(item, kind, at)
        elif kind is not None:
            yield from _scalar(kind, item, at)

    def _inner(self, value: Any, name: str, at: str) -> Iterator[Breach]:
        if isinstance(value, Mapping):
            yield from self.table(value, name, at)
        else:
            yield "form", at, f"it is {_told(value)}, not a mapping"


def _missing(fields: Mapping[str, Field], tree: Mapping[str, Any]) -> Iterable[str]:
    absent = [key for key, field in fields.items() if field.is_required and key not in tree]
    there = {key.lower() for key in tree} if absent else set()
    return (key for key in absent if key.lower() not in there)


def _scalar(form: Form, value: Any, at: str) -> Iterator[Breach]:
    match form, value:
        case (Form.TEXT, str()) | (Form.BOOLEAN, bool()):
            return
        case Form.INTEGER, int() if not isinstance(value, bool):
            return
        case Form.TEXT, int() | float():
            yield "number-for-text", at, f"it is {_told(value)}, not a text; put it in quotes"
        case _:
            yield "form", at, f"it is {_told(value)}, not {_WANTED[form]}"


_WANTED: Final = {
    Form.TEXT: "a text",
    Form.INTEGER: "a whole number",
    Form.BOOLEAN: "true or false",
    Form.LIST: "a list",
    Form.LABELS: "a mapping",
}


def _told(value: Any) -> str:
    match value:
        case Mapping():
            return "a mapping"
        case tuple():
            return "a list"
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value[:_SHOWN]!r}"
        case _:
            return f"{value!r:.60}"


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
