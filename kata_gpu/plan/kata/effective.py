"""What a runtime makes of a base file and its drop-ins: the merge, and what it refuses.

Both runtimes read every entry of ``config.d`` in byte order of the names, whatever its suffix,
and replace values key by key, text and arrays whole. What they take, refuse, change or ignore
is in ``dialect``; nothing here asks which runtime it is.

A key that the table does not know and the base file has is taken as known: a newer Kata ships
it there.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final

from kata_gpu.model.kata import (
    Configuration,
    Effective,
    Entry,
    EntryKind,
    Fault,
    Key,
    Setting,
    name_bytes,
)
from kata_gpu.plan.kata import rules
from kata_gpu.plan.kata.dialect import Dialect, Kind, Unknown
from kata_gpu.plan.kata.parsing import Parsed, parse
from kata_gpu.plan.kata.values import is_of

_IN_MAPS: Final = ("hypervisor", "agent")
"""Tables of named tables: ``[hypervisor.qemu]``."""

_SUFFIX: Final = ".toml"
_KINDS: Final = {
    EntryKind.LINK: ("symlink", "it is a symbolic link"),
    EntryKind.DIRECTORY: ("sub-directory", "it is a directory"),
    EntryKind.OTHER: ("not-regular", "it is no regular file"),
}


def merge(configuration: Configuration, dialect: Dialect) -> Effective:
    """Return the values that count, and all that is wrong with the files."""
    draft = _Draft(dialect)
    draft.read_base(configuration)
    directory = configuration.directory
    if configuration.unlisted is not None:
        draft.refuse(directory, "unreadable", configuration.unlisted)
    for entry in sorted(configuration.entries, key=lambda e: name_bytes(e.name)):
        draft.read_entry(f"{directory}/{entry.name}", entry)
    found = Effective(
        runtime=dialect.runtime,
        settings=draft.settings,
        hypervisors=tuple(draft.hypervisors),
        faults=(),
    )
    faults = (*draft.faults, *rules.judge(found, dialect, draft.hypervisors, configuration))
    return replace(found, faults=faults)


@dataclass(slots=True)
class _Draft:
    dialect: Dialect
    settings: dict[Key, Setting] = field(default_factory=dict)
    hypervisors: dict[str, str] = field(default_factory=dict)
    """The file in which each hypervisor table is first."""

    faults: list[Fault] = field(default_factory=list)
    _base_keys: frozenset[Key] = frozenset()
    _tables: set[Key] = field(default_factory=set)

    def read_base(self, configuration: Configuration) -> None:
        if configuration.text is None:
            self.refuse(configuration.path, "unreadable", configuration.reason or "it is not there")
            return
        parsed = parse(configuration.text)
        self._base_keys = frozenset(_known_by(key) for key, _ in parsed.values)
        self._take(configuration.path, parsed, is_base=True)

    def read_entry(self, path: str, entry: Entry) -> None:
        if entry.kind in self.dialect.refused_entries:
            rule, reason = _KINDS[entry.kind]
            self.refuse(path, rule, reason)
            return
        if entry.text is None:
            self.refuse(path, "unreadable", entry.reason or "it cannot be read")
            return
        if entry.name.startswith(".") or not entry.name.endswith(_SUFFIX):
            self.note(path, None, "stray", "it is read as configuration like any other entry")
        self._take(path, parse(entry.text), is_base=False)

    def refuse(self, path: str, rule: str, reason: str, key: Key | None = None) -> None:
        dotted = None if key is None else ".".join(key)
        self.faults.append(Fault(file=path, key=dotted, rule=rule, is_fatal=True, reason=reason))

    def note(self, path: str, key: Key | None, rule: str, reason: str) -> None:
        dotted = None if key is None else ".".join(key)
        self.faults.append(Fault(file=path, key=dotted, rule=rule, is_fatal=False, reason=reason))

    def _take(self, path: str, parsed: Parsed, *, is_base: bool) -> None:
        if parsed.error is not None:
            self.refuse(path, "not-toml", parsed.error)
            return
        for table in parsed.tables:
            if len(table) == len(_IN_MAPS) and table[0] == "hypervisor":
                self._see_hypervisor(path, table[1])
        for key, value in parsed.values:
            if self._is_taken(path, key, value, is_base=is_base):
                self._put(key, Setting(value=value, file=path))

    def _see_hypervisor(self, path: str, name: str) -> None:
        self.hypervisors.setdefault(name, path)
        if name not in self.dialect.hypervisors:
            reason = f"the {self.dialect.runtime} runtime has no such hypervisor"
            self.note(path, ("hypervisor", name), "ignored-table", reason)

    def _is_taken(self, path: str, key: Key, value: Any, *, is_base: bool) -> bool:
        """Tell whether a value counts; note or refuse what does not."""
        table = self.dialect.tables.get(key[0])
        place = 2 if key[0] in _IN_MAPS else 1
        if table is None:
            if not is_base:
                self.note(path, key, "ignored-key", "the runtime has no such table")
            return False
        if len(key) <= place:
            self.refuse(path, "wrong-type", "expected a table", key)
            return False
        kind = table.keys.get(key[place])
        if kind is None:
            is_new = is_base or _known_by(key) in self._base_keys
            return self._is_let_pass(path, key, table.in_base if is_new else table.in_drop_in)
        if (len(key) > place + 1) != (kind is Kind.TABLE) or not is_of(kind, value):
            self.refuse(path, "wrong-type", f"expected {kind}", key)
            return False
        return True

    def _is_let_pass(self, path: str, key: Key, what: Unknown) -> bool:
        match what:
            case Unknown.FATAL:
                reason = f'the {self.dialect.runtime} runtime knows no key "{key[-1]}" here'
                self.refuse(path, "unknown-key", reason, key)
            case Unknown.IGNORED:
                self.note(path, key, "ignored-key", "the runtime knows no such key, and ignores it")
            case Unknown.SILENT:
                return True
        return False

    def _put(self, key: Key, setting: Setting) -> None:
        """Set a value; a table that it replaces goes, and so does a value above it."""
        for above in (key[:length] for length in range(1, len(key))):
            self.settings.pop(above, None)
            self._tables.add(above)
        if key in self._tables:
            self._tables.discard(key)
            for other in [other for other in self.settings if other[: len(key)] == key]:
                del self.settings[other]
        self.settings[key] = setting


def _known_by(key: Key) -> Key:
    """Return the part of a key by which the tables know it."""
    return key[:3] if key[0] in _IN_MAPS else key[:2]
