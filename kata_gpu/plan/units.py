"""Form units: which groups the blueprint's pools get, and whether each may be given away.

Where a pool asks for virtual functions they are its units, and of no other pool; the physical
one that they belong to is no unit then.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from kata_gpu.model.blueprint import Blueprint, Mode, Pool
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.iommu import IommuGroup, forbidden_reason, judge, judge_without_group
from kata_gpu.model.isolation import all_bonded, bonds
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import PciAddress, PciFunction
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.platform import Platform
from kata_gpu.model.unit import Unit, UnitState

Choices = Mapping[PciAddress, tuple[Pool, ...]]
"""The pools that may have each function, the first choice first; without what none may have."""

_EXCLUDE: Final = (
    'narrow the pool\'s selectors, or put a pool with mode = "ignore" that selects it before'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Formed:
    """What the pools come to on this node."""

    units: tuple[Unit, ...]
    """By address, those of refused pools included."""

    refused_pools: frozenset[str]
    """Pools that select what must stay: no unit of theirs may be moved."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """An inventory that is asked once for each unit."""

    functions: Mapping[PciAddress, PciFunction]
    groups: Mapping[int, IommuGroup]
    platform: Platform

    @classmethod
    def of(cls, inventory: Inventory) -> Self:
        return cls(
            functions=inventory.by_address(),
            groups=inventory.by_group(),
            platform=inventory.platform,
        )


def form(blueprint: Blueprint, inventory: Inventory, ledger: Ledger) -> Formed:
    """Return the units, and what the pools ask for that no unit can be."""
    choices = _choices(blueprint, inventory)
    forbidden = dict(_forbidden(blueprint, inventory, choices))
    findings = list(forbidden.values())
    bonded = bonds(inventory.functions)
    known = _Known.of(inventory)
    taken: dict[str, int] = {}
    units: list[Unit] = []
    for chosen in _clusters(choices, inventory, ledger, bonded):
        pool = _pool_with_room(choices[chosen[0].address], taken)
        if pool is None:
            continue
        rival = _rival(choices, chosen, pool, taken)
        taken[pool.name] = taken.get(pool.name, 0) + 1
        if rival is not None:
            findings.append(rival)
            continue
        units.append(_unit(choices, known, chosen, pool, bonded))
    findings.extend(_too_few(blueprint, taken))
    return Formed(
        units=tuple(sorted(units, key=lambda unit: unit.primary)),
        refused_pools=frozenset(forbidden),
        findings=tuple(findings),
    )


def _choices(blueprint: Blueprint, inventory: Inventory) -> Choices:
    functions = inventory.by_address()
    unread = {problem.subject for problem in inventory.problems}

    def pools(function: PciFunction) -> tuple[Pool, ...]:
        is_virtual = function.parent is not None
        if str(function.parent) in unread:
            return ()  # nobody knows what its parent's pool is
        physical = functions.get(function.parent or function.address)
        asking = None if physical is None else blueprint.pool_of_virtuals(physical)
        if asking is not None:
            return (asking,) if is_virtual else ()
        chosen = (pool for pool in blueprint.pools if pool.selects(function))
        return tuple(pool for pool in chosen if is_virtual or pool.virtual_functions is None)

    found = {function.address: pools(function) for function in inventory.functions}
    return {address: chosen for address, chosen in found.items() if chosen}


def _clusters(
    choices: Choices,
    inventory: Inventory,
    ledger: Ledger,
    bonded: Mapping[int, tuple[int, ...]],
) -> list[list[PciFunction]]:
    """Return the selected functions of each set of groups, the primary first.

    Clusters that are ours come first, so that a pool's limit keeps what it has.
    """
    by_groups: dict[tuple[int, ...] | PciAddress, list[PciFunction]] = {}
    for function in inventory.functions:
        if function.address in choices:
            groups = _groups(function, bonded)
            by_groups.setdefault(groups or function.address, []).append(function)
    clusters = [
        sorted(chosen, key=lambda f: (not f.is_gpu, f.address)) for chosen in by_groups.values()
    ]
    ours = {function.address for entry in ledger.entries for function in entry.functions}
    return sorted(clusters, key=lambda c: (c[0].address not in ours, c[0].address))


def _pool_with_room(pools: Iterable[Pool], taken: Mapping[str, int]) -> Pool | None:
    for pool in pools:
        if pool.max_units is None or taken.get(pool.name, 0) < pool.max_units:
            return pool
    return None


def _forbidden(
    blueprint: Blueprint, inventory: Inventory, choices: Choices
) -> Iterable[tuple[str, Finding]]:
    """Refuse a whole pool that selects what must stay: its selectors say something else.

    A boot display stays where its virtual functions go.
    """
    seen = set()
    for function in inventory.functions:
        asking = blueprint.pool_of_virtuals(function) if function.parent is None else None
        pool = asking or next(iter(choices.get(function.address, ())), None)
        reason = forbidden_reason(function)
        if asking is not None and function.is_boot_display:
            continue
        if pool and reason and pool.mode is Mode.PASSTHROUGH and pool.name not in seen:
            seen.add(pool.name)
            yield (
                pool.name,
                Finding(
                    severity=Severity.REFUSED,
                    subject=f"pool {pool.name}",
                    reason=f"it selects {function.address} ({function.label}), and {reason}",
                    remedy=_EXCLUDE,
                    state=UnitState.REFUSED,
                ),
            )


def _rival(
    choices: Choices, chosen: list[PciFunction], pool: Pool, taken: Mapping[str, int]
) -> Finding | None:
    """Refuse a group whose functions two pools want for different ends."""
    for other in chosen[1:]:
        wanted = _pool_with_room(choices[other.address], taken)
        if wanted is not None and wanted.mode is not pool.mode:
            return Finding(
                severity=Severity.REFUSED,
                subject=str(chosen[0].address),
                reason=f"pool {pool.name} wants mode {pool.mode}, but its IOMMU group also "
                f"holds {other.address}, for which pool {wanted.name} wants {wanted.mode}",
                remedy="a group moves as one: let one pool select both",
                state=UnitState.REFUSED,
            )
    return None


def _unit(
    choices: Choices,
    known: _Known,
    chosen: list[PciFunction],
    pool: Pool,
    bonded: Mapping[int, tuple[int, ...]],
) -> Unit:
    primary = chosen[0]
    numbers = _groups(primary, bonded)
    groups = [known.groups[number] for number in numbers if number in known.groups]
    verdict = (
        judge(
            groups,
            known.functions,
            known.platform,
            named=frozenset(f.address for f in chosen if _is_to_pass(choices[f.address])),
        )
        if groups
        else judge_without_group(primary, known.platform)
    )
    return Unit(
        primary=primary.address,
        groups=numbers,
        functions=verdict.passengers,
        pool=pool.name,
        verdict=verdict,
    )


def _groups(function: PciFunction, bonded: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    number = function.iommu_group
    return () if number is None else all_bonded(number, bonded)


def _is_to_pass(pools: tuple[Pool, ...]) -> bool:
    """Whether a pool names it for a guest; to be named by an ignore pool is the opposite."""
    return pools[0].mode is Mode.PASSTHROUGH


def _too_few(blueprint: Blueprint, taken: Mapping[str, int]) -> Iterable[Finding]:
    for pool in blueprint.pools:
        count = taken.get(pool.name, 0)
        if count < pool.min_units:
            yield Finding(
                severity=Severity.WARNING,
                subject=f"pool {pool.name}",
                reason=f"it selects {count} of at least {pool.min_units} units",
                remedy="see kata-gpu inventory for what this node has",
            )
