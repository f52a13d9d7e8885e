"""Move a unit between its host drivers and VFIO, and keep the ledger ahead of it."""

from dataclasses import replace
from pathlib import Path

from kata_gpu.act import binding, cc_mode, holders, nvidia, waking
from kata_gpu.act.holders import Looks
from kata_gpu.act.journal import Journal
from kata_gpu.act.nvidia import Gpus
from kata_gpu.errors import HeldError, HostError, VerificationError
from kata_gpu.host import Host
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.ledger import LedgerEntry, Stage
from kata_gpu.model.plan import MoveGroup


def move(host: Host, step: MoveGroup, journal: Journal, looks: Looks) -> None:
    """Announce, move, verify, record; then look which confidential mode its GPUs are in.

    Raises:
        HeldError: somebody uses a function; HostError or VerificationError: the kernel or
            NVML would not, or the plan is of before a change. Everything is where it was, in the
            ledger too; but a unit that is back and whose GPUs NVML does not let go stays in it.
        RollbackError: a function is in between. StuckError: a store does not return. The
            ledger still says what was begun.
    """
    unit = step.entry.unit
    changing = [found for found in step.moves if found.changes_driver]
    before = journal.ledger.entry(unit)
    looks.refuse_if_held([found.address for found in changing])
    leaving = [found.address for found in changing if found.before.driver == nvidia.DRIVER]
    gpus = nvidia.look(host, leaving, resumed=before is not None)
    holders.refuse_if_at_work(host, gpus)
    taken = step.entry if before is not None else _as_it_is(host.sysfs, step)
    had_persistence = taken.had_persistence or any(g.persistence for g in gpus.values())
    entry = replace(_with_memory(taken, gpus), had_persistence=had_persistence)
    journal.update(lambda ledger: ledger.with_entry(entry))

    def last_check() -> None:
        nvidia.forbid_users(host, gpus)
        looks.refuse_if_held([found.address for found in changing])

    targets = {found.address: found.target for found in step.moves}
    try:
        binding.rebind(host.sysfs, targets, last_check)
    except (HeldError, HostError, VerificationError) as failure:
        nvidia.undo(host, gpus, failure)
        journal.update(
            lambda ledger: ledger.with_entry(before) if before else ledger.without_entry(unit)
        )
        raise
    if step.is_release:
        nvidia.give_back(host, entry)
        waking.let_sleep(host.sysfs, entry.woken)
        journal.update(lambda ledger: ledger.without_entry(unit))
        return
    for group in step.groups:
        _require_node(host.path(f"/dev/vfio/{group}"), unit)
    journal.update(lambda ledger: ledger.with_entry(replace(entry, stage=Stage.BOUND)))
    if changing and not entry.is_used:  # else somebody may have it, and it is cleaned first
        cc_mode.look(host, unit, step.looks, journal)


def _as_it_is(sysfs: Sysfs, step: MoveGroup) -> LedgerEntry:
    """Return the entry of what was not ours with the originals of this moment.

    Modules are loaded and services stopped between the plan and this, and a node that boots
    loads drivers too. What the load of VFIO's driver gave it at once is as it was planned.

    Raises:
        HostError: the host gave a function to another driver, or took it from one; what users
            that driver has was not looked for.
    """
    planned = {found.address: found.before for found in step.moves}
    now = binding.read_all(sysfs, planned)
    for address, before in planned.items():
        if now[address].driver == before.driver:
            continue
        if not sysfs.names(f"bus/pci/devices/{address}/vfio-dev"):
            raise HostError(
                f"cannot move {address}: it has {now[address]}, and had {before} when that was "
                f"planned; it is tried again later"
            )
        del now[address]
    functions = tuple(
        replace(function, original=now.get(function.address, function.original))
        for function in step.entry.functions
    )
    return replace(step.entry, functions=functions)


def _with_memory(entry: LedgerEntry, gpus: Gpus) -> LedgerEntry:
    """Return the entry with what NVML says of the memory of its GPUs."""
    functions = tuple(
        replace(function, memory_bytes=gpus[function.address].memory_bytes)
        if function.address in gpus and gpus[function.address].memory_bytes
        else function
        for function in entry.functions
    )
    return replace(entry, functions=functions)


def _require_node(node: Path, unit: str) -> None:
    if not node.exists():
        raise VerificationError(
            f"cannot offer unit {unit}: it is bound, but {node} is not there; "
            f"mount the host's /dev/vfio into the agent"
        )
