"""Kill an agent at every store and every save on a real kernel, and let a fresh one mend it.

Runs in the lab's guest, by itself: ``python -m tests.kills``. Python starts slowly there, so
this process loads the product once, and agents and commands are forks of it.

Each operation is met before it and after it, and a store in its midst too, when its child
goes on without the agent. What stands in the node is judged at once, and again
after ``kata-gpu apply`` or ``kata-gpu release``, which take turns.
"""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from kata_gpu import cli
from kata_gpu.act import executor
from kata_gpu.act.journal import Journal
from kata_gpu.agent import node
from kata_gpu.cli import change as _change  # noqa: F401 - loaded before there are forks
from kata_gpu.host import Host, leftovers
from kata_gpu.host.children import Children
from kata_gpu.host.commands import run
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.ledger import Ledger, Stage
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.plan import MakeVirtuals, Plan
from tests.in_guest import DEVICES, Agent, at, driver, override, pool, wait_for, write_files
from tests.lab.inside import Machine

_MIDST_S: Final = 0.015
"""Long enough for a child to have started, too short for it to have ended."""

_TIMEOUT_S: Final = 30.0
_ROLES: Final = {
    "single": ("gpu",),
    "card": ("card",),
    "bridge": ("bridged-gpu", "bridged-mate"),
}
_BRIDGE: Final = "0x0604"


class Moment(Enum):
    """When the process ends, against an operation."""

    BEFORE = "before"
    MIDST = "in the midst of"
    AFTER = "after"


class Kind(Enum):
    """What is done at a moment."""

    STORE = "store"
    SAVE = "save"


@dataclass(frozen=True, slots=True)
class Fuse:
    """Notes stores and saves, and ends this process at the one that is chosen."""

    number: int | None = None
    moment: Moment = Moment.BEFORE
    done: list[Kind] = field(default_factory=list)

    def around(self, kind: Kind, do: Callable[[], None]) -> None:
        """Do it, unless the process ends before."""
        is_chosen = len(self.done) == self.number
        self.done.append(kind)
        if is_chosen and self.moment is Moment.BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        if is_chosen and self.moment is Moment.MIDST:
            signal.setitimer(signal.ITIMER_REAL, _MIDST_S)  # SIGALRM ends whoever ignores it not
        do()
        if is_chosen and self.moment is not Moment.BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)


class FusedSysfs(Sysfs):
    """The kernel's tree, whose stores are counted."""

    def __init__(self, fuse: Fuse) -> None:
        root = Path("/sys")
        super().__init__(root, Children(root=root, timeout_s=_TIMEOUT_S))
        self._fuse = fuse

    def write(self, path: str, value: str) -> None:
        self._fuse.around(Kind.STORE, lambda: super(FusedSysfs, self).write(path, value))


class FusedJournal(Journal):
    """The ledger, whose saves are counted."""

    def __init__(self, path: Path, fuse: Fuse) -> None:
        super().__init__(path)
        self._fuse = fuse

    def update(self, change: Callable[[Ledger], Ledger]) -> None:
        self._fuse.around(Kind.SAVE, lambda: super(FusedJournal, self).update(change))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many moments were met with one work on one unit, and what was wrong after which."""

    what: str
    points: int
    wrong: tuple[str, ...]

    @property
    def row(self) -> str:
        """One line of the table."""
        return f"| real kernel | {self.what} | {self.points} | {self.points - len(self.wrong)} |"


@dataclass(frozen=True, slots=True)
class Node:
    """A unit, its agent's files, and where it comes from."""

    unit: str
    agent: Agent
    folder: Path
    home: dict[str, tuple[str | None, str]]
    output: list[str] = field(default_factory=list)

    # What is done

    def bind(self, fuse: Fuse) -> None:
        """Take the unit from its host drivers, or clean it; publish it."""
        agent = self.agent
        journal = FusedJournal(Path(agent.settings.ledger), fuse)
        node.converge(_host(fuse), agent.settings, agent.blueprint, journal)

    def release(self, fuse: Fuse) -> None:
        """Give the unit back."""
        host, settings = _host(fuse), self.agent.settings
        journal = FusedJournal(Path(settings.ledger), fuse)
        plan = node.make_release(host, settings, journal.ledger, None)
        executor.execute(host, plan, journal)

    def command(self, *words: str) -> int:
        """Run ``kata-gpu`` in a process of its own and return its exit status."""
        verb, *rest = words
        argv = (verb, "--settings", f"{self.folder}/agent.toml", *rest)
        said = self.folder / "said"

        def call() -> NoReturn:
            with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
                cli.main(argv)

        status = os.waitstatus_to_exitcode(_forked(call))
        self.output.append(f"{' '.join(words)}: status {status}: {said.read_text()}")
        return status

    def to_bound(self, *, is_used: bool = False) -> None:
        """Bind the unit, and have it used."""
        if any(self.faults_when_bound()):
            assert self.command("apply", "--yes") == 0, self.output[-1]
        if is_used:
            Journal(Path(self.agent.settings.ledger)).amend(self.unit, is_used=True)

    def to_home(self) -> None:
        """Give everything back."""
        if any(self.faults_at_home()):
            assert self.command("release", "--all", "--yes") == 0, self.output[-1]

    # What must hold

    def state(self) -> dict[str, tuple[str | None, str]]:
        """Return driver and override of every function."""
        return {address: (driver(address), override(address)) for address in self.home}

    def faults_at_death(self) -> Iterator[str]:
        """Say what may never be, whoever dies when."""
        state, ledger = self.state(), Journal(Path(self.agent.settings.ledger)).ledger
        entry = ledger.entry(self.unit)
        if state != self.home and entry is None:
            yield f"the ledger knows nothing of {state}"
        if entry is not None:
            kept = {
                str(f.address): (f.original.driver, f.original.override or "(null)")
                for f in entry.functions
            }
            if kept != self.home:
                yield f"the ledger has {kept} as originals"
        if self.agent.offered() and not self._is_on_vfio(state):
            yield f"it is offered with {state}"

    def faults_when_bound(self) -> Iterator[str]:
        """Say what is not as the blueprint wants it."""
        entry = Journal(Path(self.agent.settings.ledger)).ledger.entry(self.unit)
        if entry is None or entry.stage is not Stage.BOUND or entry.is_used or entry.quarantine:
            yield f"the ledger has {entry}"
        if not self._is_on_vfio(self.state()):
            yield f"it is not bound: {self.state()}"
        if list(self.agent.offered()) != [self.unit]:
            yield f"it is not offered: {self.agent.offered()}"

    def faults_at_home(self) -> Iterator[str]:
        """Say what is not as it was before."""
        ledger = Journal(Path(self.agent.settings.ledger)).ledger
        if self.state() != self.home:
            yield f"it is not at home: {self.state()}"
        if ledger != Ledger() or self.agent.offered():
            yield f"something is left: {ledger}, {self.agent.offered()}"

    def writes_again(self, work: Callable[[Fuse], None]) -> Iterator[str]:
        """Say what a second run does, which is nothing."""
        if os.waitstatus_to_exitcode(_forked(lambda: work(Fuse(0)))) != 0:
            yield "a second run writes again"

    def goal_is_home(self, count: int) -> bool:
        """Say where what was killed is brought: every other time back to where it came from."""
        return count % 2 == 1

    @staticmethod
    def _is_on_vfio(state: dict[str, tuple[str | None, str]]) -> bool:
        return set(state.values()) == {("vfio-pci", "vfio-pci")}


@dataclass(frozen=True, slots=True)
class Virtuals(Node):
    """The virtual functions of a storage controller, of which no plan would make any."""

    def make(self, fuse: Fuse) -> None:
        """Make two."""
        parent = PciAddress.parse(self.unit)
        step = MakeVirtuals(parent=parent, count=2, had_autoprobe=True, reason="kills")
        journal = FusedJournal(Path(self.agent.settings.ledger), fuse)
        executor.execute(_host(fuse), Plan(blueprint="kills", steps=(step,)), journal)

    def to_made(self) -> None:
        """Have two, which the ledger knows."""
        if not self._links():
            self.make(Fuse())
            assert len(self._links()) == 2

    def faults_at_death(self) -> Iterator[str]:
        """Say what may never be, whoever dies when."""
        ledger = Journal(Path(self.agent.settings.ledger)).ledger
        if (self._links() or self._autoprobe() == "0") and not ledger.virtuals:
            yield f"the ledger knows nothing of {self._links()}, probed: {self._autoprobe()}"

    def faults_at_home(self) -> Iterator[str]:
        """Say what is not as it was before."""
        yield from Node.faults_at_home(self)
        if self._links() or self._autoprobe() != "1":
            yield f"there still are {self._links()}, probed: {self._autoprobe()}"

    def goal_is_home(self, count: int) -> bool:
        """Say where what was killed is brought."""
        return True

    def _links(self) -> list[str]:
        return sorted(path.name for path in (DEVICES / self.unit).glob("virtfn*"))

    def _autoprobe(self) -> str:
        return (DEVICES / self.unit / "sriov_drivers_autoprobe").read_text().strip()


def meet(
    node_: Node, what: str, prepare: Callable[[], None], work: Callable[[Fuse], None]
) -> Tally:
    """Kill *work* at every moment, from where *prepare* brings the node, and mend it."""
    prepare()
    whole = Fuse()
    work(whole)
    wrong = []
    points = [
        Fuse(number, moment)
        for number, kind in enumerate(whole.done)
        for moment in Moment
        if kind is Kind.STORE or moment is not Moment.MIDST
    ]
    for count, fuse in enumerate(points):
        prepare()
        status = os.waitstatus_to_exitcode(_forked(partial(work, fuse)))
        faults = [] if status < 0 else [f"it was not killed: status {status}"]
        faults += [*node_.faults_at_death(), *_mend(node_, release=node_.goal_is_home(count))]
        wrong += [f"{what}, {fuse.moment.value} operation {fuse.number}: {f}" for f in faults]
    return Tally(what=what, points=len(points), wrong=tuple(wrong))


def _mend(node_: Node, *, release: bool) -> Iterator[str]:
    words = ("release", "--all", "--yes") if release else ("apply", "--yes")
    status = node_.command(*words)
    if status != 0:  # what the dead agent's child still does is nobody's to disturb
        wait_for(lambda: leftovers.find(Path("/proc")) == (), timeout_s=_TIMEOUT_S)
        status = node_.command(*words)
    if status != 0:
        yield f"it is not mended: {node_.output[-1]}"
    if release:
        yield from node_.faults_at_home()
        yield from node_.writes_again(node_.release)
    else:
        yield from node_.faults_when_bound()
        yield from node_.writes_again(node_.bind)


def _forked(do: Callable[[], None]) -> int:
    """Do it in a fork of this process and return how that ended, as waitpid(2) says."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            do()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def _host(fuse: Fuse) -> Host:
    return Host(root=Path("/"), sysfs=FusedSysfs(fuse), run=run)


def here(folder: Path) -> tuple[str, Node]:
    """Return this guest's topology and its unit."""
    machine = Machine.here()
    name = machine.topology.name
    if name == "sriov":
        return name, _virtuals(folder, machine.address("nvme-pf"))
    chosen = [machine.address(role) for role in _ROLES[name]]
    pools = pool(*map(at, chosen))
    write_files(folder, pools)
    members = (DEVICES / chosen[0] / "iommu_group/devices").iterdir()
    endpoints = sorted(m.name for m in members if not (m / "class").read_text().startswith(_BRIDGE))
    gc.freeze()  # what a fork does not touch need not be copied
    home = {address: (driver(address), override(address)) for address in endpoints}
    return name, Node(chosen[0], Agent(folder, pools), folder, home)


def _virtuals(folder: Path, parent: str) -> Virtuals:
    write_files(folder, "")
    gc.freeze()
    home = {parent: (driver(parent), override(parent))}
    return Virtuals(parent, Agent(folder, ""), folder, home)


def works(name: str, found: Node) -> dict[str, Callable[[], Tally]]:
    """Return what may be killed on a unit, by name."""

    def used() -> None:
        found.to_bound(is_used=True)

    if isinstance(found, Virtuals):
        return {
            "make": lambda: meet(found, "make two VFs", found.to_home, found.make),
            "remove": lambda: meet(found, "remove two VFs", found.to_made, found.release),
        }
    works = {
        "bind": lambda: meet(found, f"bind {name}", found.to_home, found.bind),
        "release": lambda: meet(found, f"release {name}", found.to_bound, found.release),
    }
    if name == "single":  # the others' second functions cannot be reset by themselves
        works["clean"] = lambda: meet(found, f"clean {name}", used, found.bind)
    return works


def main() -> None:
    """Print what came of each work as a row, and what was wrong."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        name, found = here(Path(folder))
        for work in works(name, found).values():
            tally = work()
            sys.stdout.write("\n".join((tally.row, *tally.wrong)) + "\n")
            sys.stdout.flush()
        found.to_home()


if __name__ == "__main__":
    main()
