"""What a runtime refuses or changes once all files are merged; each rule is data of `dialect`."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from kata_gpu.model.kata import ABSENT_FILE, Configuration, Effective, Fault, Key, name_bytes
from kata_gpu.plan.kata.dialect import Bound, Clamp, Clash, Dialect

_AGENT: Final = "kata"
_MACHINE: Final = "q35"
"""Of the Go runtime, where no file says which."""

_UNSET: Final = ("", "no-port")
_NO_PORT: Final = "this hypervisor has no port for VFIO"


def judge(
    found: Effective,
    dialect: Dialect,
    hypervisors: Mapping[str, str],
    configuration: Configuration,
) -> Iterable[Fault]:
    """Yield what is wrong with the merged values.

    *hypervisors* says in which file each hypervisor table is first; the base file is blamed for
    what is nowhere.
    """
    base = configuration.path
    if dialect.takes_one_hypervisor and len(hypervisors) > 1:
        names, files = ", ".join(hypervisors), list(hypervisors.values())
        reason = f"hypervisors {names} are all configured, and which one counts is left to chance"
        key = ("hypervisor", list(hypervisors)[-1])
        yield _fault(files[-1], key, "several-hypervisors", reason)
    yield from _choices(found, dialect)
    yield from _required(found, dialect, base)
    yield from _empty(found, dialect)
    for name in hypervisors:
        yield from _ports(found, dialect, name)
        yield from _absent(found, dialect, name, configuration.absent)
        for clash in dialect.clashes:
            yield from _clashing(found, clash, name, base)
        for clamp in dialect.clamps:
            yield from _clamped(found, clamp, name)
    for bound in dialect.bounds:
        yield from _bounded(found, bound)


def _choices(found: Effective, dialect: Dialect) -> Iterable[Fault]:
    for choice in dialect.choices:
        value = found.value(choice.table, choice.key)
        if value not in {None, "", *choice.words}:
            reason = f'"{value}" is none of {", ".join(choice.words)}'
            yield _at(found, (choice.table, choice.key), "choice", reason)


def _required(found: Effective, dialect: Dialect, base: str) -> Iterable[Fault]:
    missing = [key for key in dialect.required if not found.value(*key)]
    if missing:
        names = ", ".join(".".join(key) for key in missing)
        reason = f"{names}: set nowhere, and no pod starts without"
        yield Fault(file=base, key=None, rule="required", is_fatal=True, reason=reason)


def _empty(found: Effective, dialect: Dialect) -> Iterable[Fault]:
    for key in dialect.empty:
        value = found.value(*key)
        if value:
            yield _at(found, key, "choice", f'the runtime has no feature "{value[0]}"')


def _ports(found: Effective, dialect: Dialect, hypervisor: str) -> Iterable[Fault]:
    """Judge the kinds of ports; those of machines that have none of these are not looked at."""
    words = dialect.ports.get(hypervisor)
    machine = found.value("hypervisor", hypervisor, "machine_type") or _MACHINE
    for name in dialect.port_keys:
        key = ("hypervisor", hypervisor, name)
        value = found.value(*key)
        if value is None or value in _UNSET:
            continue
        if words is None:
            yield _at(found, key, "ignored-key", _NO_PORT, is_fatal=False)
        elif value not in words and (
            dialect.port_machines is None or machine in dialect.port_machines
        ):
            yield _at(found, key, "choice", f'"{value}" is none of {", ".join(words)}')


def _absent(
    found: Effective, dialect: Dialect, hypervisor: str, absent: frozenset[str]
) -> Iterable[Fault]:
    for name in dialect.paths:
        key = ("hypervisor", hypervisor, name)
        value = found.value(*key)
        if value in absent:
            reason = f"there is no {value}, and no pod starts without"
            yield _at(found, key, ABSENT_FILE, reason)


def _clashing(found: Effective, clash: Clash, hypervisor: str, base: str) -> Iterable[Fault]:
    keys = [("hypervisor", hypervisor, name) for name in (clash.one, clash.other)]
    if all(found.value(*key) not in {None, *clash.idle} for key in keys):
        reason = f"{clash.one} and {clash.other} are both set, and only one may be"
        yield _at(found, max(keys, key=lambda key: _turn(found, key, base)), "clash", reason)


def _turn(found: Effective, key: Key, base: str) -> tuple[bool, bytes]:
    """Return when the file that sets a value is read: the last one made the two clash."""
    file = found.settings[key].file
    return (file != base, name_bytes(file))


def _clamped(found: Effective, clamp: Clamp, hypervisor: str) -> Iterable[Fault]:
    key = ("hypervisor", hypervisor, clamp.key)
    value = found.value(*key)
    if value is None or (clamp.least <= value and (clamp.most is None or value <= clamp.most)):
        return
    reason = f"it is {value}, and the runtime goes by {clamp.instead} without a word"
    yield _at(found, key, "clamped", reason, is_fatal=False)


def _bounded(found: Effective, bound: Bound) -> Iterable[Fault]:
    key = ("agent", _AGENT, bound.key)
    value = found.value(*key)
    least: Any = bound.least
    if bound.not_below is not None:
        least = found.value("agent", _AGENT, bound.not_below) or 0
    effective = bound.default if value is None else value
    if effective >= least:
        return
    blamed = key if value is not None else ("agent", _AGENT, bound.not_below or bound.key)
    reason = f"{bound.key} is {effective}, and must be at least {least}"
    yield _at(found, blamed, "out-of-range", reason)


def _at(found: Effective, key: Key, rule: str, reason: str, *, is_fatal: bool = True) -> Fault:
    return _fault(found.settings[key].file, key, rule, reason, is_fatal=is_fatal)


def _fault(file: str, key: Key, rule: str, reason: str, *, is_fatal: bool = True) -> Fault:
    return Fault(file=file, key=".".join(key), rule=rule, is_fatal=is_fatal, reason=reason)
