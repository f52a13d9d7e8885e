"""A fake node together with its ledger: what a scenario is built from.

What has happened before the plan is made happened on a fake kernel, step by step as plans
say; a kill is an exception that nothing catches. The ledger is kept in memory, and files are
written without waiting for a disk: hundreds of nodes are built in seconds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.act import binding, foreign_files
from kata_gpu.discover import inventory as discover
from kata_gpu.discover import quarantine, runtimes, vfio
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.holder import Holder, How
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Ledger, MadeVirtuals, Stage
from kata_gpu.model.operation import Operation
from kata_gpu.model.pci import Identity, PciAddress
from kata_gpu.model.plan import (
    CleanUnit,
    LoadModule,
    MakeVirtuals,
    MoveFile,
    MoveGroup,
    NoteUse,
    Plan,
    Quarantine,
    RemoveFile,
    RemoveVirtuals,
    RestartService,
    StartService,
    Step,
    StopService,
    WriteFile,
)
from kata_gpu.model.restraint import Order, Setback
from kata_gpu.plan import cdi, planner
from kata_gpu.plan.runtime import wiring
from kata_gpu.settings import blueprint as settings
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kernel.systemd import SYSTEMCTL, Systemd

CDI: Final = "/var/run/cdi"
QUARANTINE: Final = "/var/lib/kata-gpu/quarantined"
PGPU_SPEC: Final = cdi.path(CDI, "nvidia.com/pgpu")
_NOTHING: Final = Blueprint(version="none")


class Killed(BaseException):
    """The agent ends here, and nothing of it runs any more."""


class Node:
    """One node: kernel, files, ledger, and the agent's verbs on them."""

    def __init__(self, kernel: FakeKernel, *, iommufd: bool = False) -> None:
        self.kernel = kernel
        self.root = kernel.tree.root
        self.ledger = Ledger()
        self._iommufd = iommufd
        self.kept = Order()
        """What is only reported when it drifts."""
        self.claimed: frozenset[str] | None = None
        """Units that claims are prepared for."""
        self.hung: tuple[Operation, ...] = ()
        self.systemd: Systemd | None = None
        self._held: dict[PciAddress, tuple[Holder, ...]] = {}
        self.again: Callable[[], Plan] = self.release
        """Makes the last plan anew, of the node as it is by then."""

    def plan(self, text: str, *, failed: Mapping[str, str] | None = None) -> Plan:
        """Return what the agent would do for a blueprint."""
        self.again = lambda: self.plan(text, failed=failed)
        blueprint = settings.parse(text)
        setbacks = {u: Setback(reason=why) for u, why in (failed or {}).items()}
        return planner.plan(
            blueprint,
            self.look(blueprint),
            self.ledger,
            cdi_directory=CDI,
            failed=setbacks,
            kept=self.kept,
            claimed=self.claimed,
        )

    def hold(self, address: str, command: str, device: str) -> None:
        """Let somebody have a function from now on."""
        holder = Holder(pid=4242, command=command, device=device, how=How.OPEN, user="root")
        self._held[PciAddress.parse(address)] = (holder,)

    def let_go(self) -> None:
        """Let everybody go."""
        self._held.clear()

    def know(self, unit: str = nodes.GPU, **changes: Any) -> None:
        """Change what the ledger says of a unit."""
        entry = self.ledger.entry(unit)
        assert entry is not None
        self.ledger = self.ledger.with_entry(replace(entry, **changes))

    def release(self, *units: str) -> Plan:
        """Return how units are given back; all of them without a name."""
        self.again = lambda: self.release(*units)
        return planner.release(
            self.look(_NOTHING),
            self.ledger,
            cdi_directory=CDI,
            chosen=frozenset(units) or None,
        )

    def apply(self, text: str) -> None:
        """Bring the node in order, in as many passes as it takes."""
        while (plan := self.plan(text)).steps:
            self.carry_out(plan)

    def carry_out(self, plan: Plan) -> None:
        """Take every step of a plan, each of which succeeds."""
        for step in plan.steps:
            match step:
                case LoadModule():
                    self.kernel.run(("modprobe", "--", step.module), timeout_s=3)
                case MakeVirtuals():
                    self._make(step)
                case RemoveVirtuals():
                    self._remove(step)
                case MoveGroup():
                    self._move(step)
                case _:
                    self._note(step)

    def _note(self, step: Step) -> None:
        match step:
            case WriteFile():
                self.put(step.path, step.content)
                self.ledger = self.ledger.with_file(step.path)
            case RemoveFile():
                self.kernel.host.path(step.path).unlink()
                self.ledger = self.ledger.without_file(step.path)
            case MoveFile():
                foreign_files.move(self.kernel.host, step)
            case CleanUnit():
                self.know(step.unit, is_used=False)
            case NoteUse():
                self.know(step.unit, is_used=True)
            case Quarantine():
                self.know(step.unit, quarantine=step.reason)
            case StopService() | StartService() | RestartService():
                self._switch(step)
            case _:
                raise AssertionError(step)

    def _switch(self, step: StopService | StartService | RestartService) -> None:
        match step:
            case StopService(name=name):
                self.ledger = self.ledger.with_service(name)
            case StartService(name=name):
                self.ledger = self.ledger.without_service(name)
            case RestartService(name=name):
                assert self.systemd is not None
                self.systemd.run((*SYSTEMCTL, "--no-ask-password", "restart", "--", name))

    def _move(self, step: MoveGroup) -> None:
        self.ledger = self.ledger.with_entry(step.entry)
        binding.rebind(self.kernel, {move.address: move.target for move in step.moves})
        self.ledger = (
            self.ledger.without_entry(step.entry.unit)
            if step.is_release
            else self.ledger.with_entry(replace(step.entry, stage=Stage.BOUND))
        )

    def _make(self, step: MakeVirtuals) -> None:
        made = MadeVirtuals(parent=step.parent, count=step.count, had_autoprobe=step.had_autoprobe)
        self.ledger = self.ledger.with_virtuals(made)
        self.store(str(step.parent), "sriov_drivers_autoprobe", "0")
        self.store(str(step.parent), "sriov_numvfs", str(step.count))

    def _remove(self, step: RemoveVirtuals) -> None:
        made = self.ledger.made(step.parent)
        assert made is not None
        if self.kernel.exists(f"bus/pci/devices/{step.parent}"):
            self.store(str(step.parent), "sriov_numvfs", "0")
            self.store(str(step.parent), "sriov_drivers_autoprobe", str(int(made.had_autoprobe)))
        self.ledger = self.ledger.without_virtuals(step.parent)

    @contextmanager
    def killed_at(self, attribute: str) -> Iterator[None]:
        """Let the agent be killed before its first write to *attribute*."""

        def kill(path: str, _value: str) -> None:
            if path.endswith(f"/{attribute}"):
                raise Killed

        self.kernel.on_write = kill
        with pytest.raises(Killed):
            yield
        self.kernel.on_write = None

    def look(self, blueprint: Blueprint) -> Inventory:
        """Return the inventory that the agent would make for a blueprint."""

        def interest(identity: Identity) -> bool:
            ledger, address = self.ledger, identity.address
            is_ours = (ledger.owner(address) or ledger.made(address)) is not None
            return is_ours or blueprint.could_select(identity)

        kinds = dict.fromkeys(pool.resource for pool in blueprint.pools if pool.resource)
        wired = runtimes.find(self.kernel.host) if blueprint.wiring.handlers else ()
        found = discover.collect(
            self.kernel.host,
            interest=interest,
            handlers={handler.name: handler.config for handler in blueprint.handlers},
            paths=(
                *(cdi.path(CDI, kind) for kind in kinds),
                *self.ledger.files,
                *wiring.paths(wired),
            ),
        )
        found = replace(
            found,
            platform=replace(found.platform, iommufd=self._iommufd),
            holders=dict(self._held),
            operations=self.hung,
            runtimes=wired,
            quarantine=QUARANTINE,
            set_aside=quarantine.read(self.kernel.host, QUARANTINE),
        )
        return vfio.suited(self.kernel.host, found)

    def put(self, path: str, text: str) -> None:
        """Write a file by somebody else's hand."""
        file = self.kernel.host.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def store(self, address: str, attribute: str, value: str) -> None:
        """Write to a function's attribute by somebody else's hand."""
        self.kernel.write(f"bus/pci/devices/{address}/{attribute}", value)

    def drive(self, address: str, driver: str | None) -> None:
        """Move a function to another driver by somebody else's hand."""
        self.store(address, "driver/unbind", address)
        if driver is not None:
            self.kernel.write(f"bus/pci/drivers/{driver}/bind", address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A node in some state, and what is asked of it."""

    name: str
    description: str
    build: Callable[[Path], tuple[Node, Plan]]


SCENARIOS: dict[str, Scenario] = {}
"""Every scenario by its name, which is the name of its golden file."""


def scenario(build: Callable[[Path], tuple[Node, Plan]]) -> Callable[[Path], tuple[Node, Plan]]:
    """Register a scenario under its function's name."""
    name = build.__name__.replace("_", "-")
    assert name not in SCENARIOS
    SCENARIOS[name] = Scenario(name=name, description=build.__doc__ or "", build=build)
    return build
