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
from kata_gpu.model.kubernetes import BindWhen
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import PciAddress, PciFunction
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.platform import Platform
from kata_gpu.model.unit import Unit, UnitState

Choices = Mapping[PciAddress, tuple[Pool, ...]]
"""The pools that may have each function, the first choice first; without what none may have."""

_Rank = tuple[bool, PciAddress]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """Which clusters each pool gets: up to its limit, and those that it has first."""

    ours: frozenset[PciAddress]
    ranks: dict[str, list[_Rank]]
    """By the pool's name, of what it gets, the first choice first."""

    def pool_for(self, pools: tuple[Pool, ...], chosen: list[PciFunction]) -> Pool | None:
        """Return the first of *pools* that has room for a cluster; None without one."""
        for pool in pools:
            got = self.ranks[pool.name]
            if pool.max_units is None or len(got) < pool.max_units:
                return pool
            if got and self.rank(pool, pools, chosen) <= got[-1]:
                return pool
        return None

    def rank(self, pool: Pool, pools: tuple[Pool, ...], chosen: list[PciFunction]) -> _Rank:
        """Return which of the clusters that may be a pool's are before others.

        Otherwise a unit that a pool gives back, or leaves to the next, would be another than
        the one of before in each turn.
        """
        address = chosen[0].address
        is_ours = address in self.ours
        if pool.mode is not Mode.PASSTHROUGH:
            return (is_ours, address)
        later = pools[pools.index(pool) + 1 :]
        if pool.bind is BindWhen.ON_CLAIM and any(p.mode is Mode.PASSTHROUGH for p in later):
            return (False, address)  # that it is ours does not say whose it is
        return (not is_ours, address)


def form(blueprint: Blueprint, inventory: Inventory, ledger: Ledger) -> Formed:
    """Return the units, and what the pools ask for that no unit can be."""
    choices = _choices(blueprint, inventory)
    forbidden = dict(_forbidden(blueprint, inventory, choices))
    findings = list(forbidden.values())
    bonded = bonds(inventory.functions)
    known = _Known.of(inventory)
    units: list[Unit] = []
    clusters = _clusters(choices, inventory, bonded)
    shares = _shares(blueprint, choices, clusters, ledger)
    for chosen in clusters:
        pool = shares.pool_for(choices[chosen[0].address], chosen)
        if pool is None:
            continue
        rival = _rival(choices, chosen, pool, shares)
        if rival is not None:
            findings.append(rival)
            continue
        units.append(_unit(choices, known, chosen, pool, bonded))
    findings.extend(_too_few(blueprint, shares))
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
    choices: Choices, inventory: Inventory, bonded: Mapping[int, tuple[int, ...]]
) -> list[list[PciFunction]]:
    """Return the selected functions of each set of groups, by address, the primary first."""
    by_groups: dict[tuple[int, ...] | PciAddress, list[PciFunction]] = {}
    for function in inventory.functions:
        if function.address in choices:
            groups = _groups(function, bonded)
            by_groups.setdefault(groups or function.address, []).append(function)
    clusters = [
        sorted(chosen, key=lambda f: (not f.is_gpu, f.address)) for chosen in by_groups.values()
    ]
    return sorted(clusters, key=lambda c: c[0].address)


def _shares(
    blueprint: Blueprint,
    choices: Choices,
    clusters: Iterable[list[PciFunction]],
    ledger: Ledger,
) -> _Shares:
    """Return what each pool gets of *clusters*; what is past its limit falls to the next."""
    ours = frozenset(f.address for entry in ledger.entries for f in entry.functions)
    shares = _Shares(ours=ours, ranks={})
    left = [(choices[chosen[0].address], chosen) for chosen in clusters]
    for pool in blueprint.pools:
        asking = [(pools, chosen) for pools, chosen in left if pool in pools]
        ranks = sorted(shares.rank(pool, pools, chosen) for pools, chosen in asking)
        shares.ranks[pool.name] = ranks[: pool.max_units]
        got = {address for _, address in shares.ranks[pool.name]}
        left = [(pools, chosen) for pools, chosen in left if chosen[0].address not in got]
    return shares


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
    choices: Choices, chosen: list[PciFunction], pool: Pool, shares: _Shares
) -> Finding | None:
    """Refuse a group whose functions two pools want for different ends."""
    for other in chosen[1:]:
        wanted = shares.pool_for(choices[other.address], chosen)
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


def _too_few(blueprint: Blueprint, shares: _Shares) -> Iterable[Finding]:
    for pool in blueprint.pools:
        count = len(shares.ranks[pool.name])
        if count < pool.min_units:
            yield Finding(
                severity=Severity.WARNING,
                subject=f"pool {pool.name}",
                reason=f"it selects {count} of at least {pool.min_units} units",
                remedy="see kata-gpu inventory for what this node has",
            )
