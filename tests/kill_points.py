"""Kill the agent at every point of what it does, and see that the next one mends it.

A point lies before and after each store, each change of the ledger, each program and each
step, and so before and after each file that is replaced or removed. The death is an exception
that nothing handles; the kernel and the files are left as they are, and the next agent
starts with what is on disk. Points that no change lies between leave the same, so that one
run answers for them all.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from kata_gpu.act import executor
from kata_gpu.act.journal import Journal
from kata_gpu.agent import node
from kata_gpu.host import Host, files
from kata_gpu.host.commands import Run
from kata_gpu.model.blueprint import Blueprint, KataHandler, Runtime, Selector
from kata_gpu.model.inventory import quarantine_name, quarantined_path
from kata_gpu.model.kubernetes import BindWhen, Door
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.plan import MoveFile, Step, WriteFile
from kata_gpu.model.report import Outcome, Report
from tests import invariants, memory
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, journal_of

_BASE: Final = "/opt/kata/configuration-go.toml"
_LEFT: Final[Mapping[str, str]] = {
    "/etc/cdi/nvidia.com-gpu.yaml": '{"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu"}',
    "/opt/kata/config.d/90-oldvendor.toml": "[hypervisor.qemu]\nno_such_key = 1\n",
}
"""What others left behind: a CDI file, and a drop-in beside a handler's base file."""


class Killed(BaseException):
    """The end of the process, which no handler sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A node with one unit."""

    build: Callable[[Path], FakeKernel]
    functions: tuple[str, ...]
    """The primary first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Something the agent does, on a node that was brought to where it begins."""

    do: Callable[["Agent"], Report]
    prepare: Callable[["Agent"], None] = lambda _agent: None
    is_adopted: bool = False
    """Whether the unit was on VFIO before it was ours."""

    is_on_claim: bool = False
    """Whether the unit is bound when a claim comes, and given back when it goes."""

    is_fit: bool = True
    """Whether the unit may be offered in the end."""

    is_beside_others: bool = False
    """Whether others left files that the blueprint has in quarantine while the unit is ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one act on one shape."""

    points: int = 0
    survived: int = 0
    violations: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One process of the agent, which is told of each point that it passes."""

    kernel: FakeKernel
    shape: Shape
    blueprint: Blueprint
    is_on_claim: bool = False
    passes: Callable[[str], None] = lambda _point: None

    def converge(self) -> Report:
        return self._turn(frozenset(self.shape.functions[:1]))

    def release(self) -> Report:
        if self.is_on_claim:
            return self._turn(frozenset())
        journal = self._journal()
        plan = node.make_release(self._host, SETTINGS, journal.ledger, None)
        return executor.execute(self._host, plan, journal, progress=self._step)

    def _turn(self, claimed: frozenset[str]) -> Report:
        return node.converge(
            self._host,
            SETTINGS,
            self.blueprint,
            self._journal(),
            claimed=claimed,
            progress=self._step,
        ).report

    @property
    def _host(self) -> Host:
        self.kernel.on_write = lambda path, _value: self.passes(f"before {path}")
        self.kernel.after_write = lambda path, _value: self.passes(f"after {path}")
        return replace(self.kernel.host, run=self._run)

    def _run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        self.passes(f"before {argv[0]}")
        run: Run = self.kernel.run
        said = run(argv, timeout_s=timeout_s)
        self.passes(f"after {argv[0]}")
        return said

    def _journal(self) -> Journal:
        return ToldJournal(self.kernel.host.path(SETTINGS.ledger), self.passes)

    def _step(self, _number: int, step: Step, outcome: Outcome | None) -> None:
        is_change = outcome is not None and isinstance(step, WriteFile | MoveFile)
        moment = "after" if is_change else "the start of" if outcome is None else "the end of"
        self.passes(f"{moment} {step.headline}")


class ToldJournal(Journal):
    """A journal that tells of each change before it is on disk, and when it is."""

    def __init__(self, path: Path, passes: Callable[[str], None]) -> None:
        super().__init__(path)
        self._passes = passes

    def update(self, change: Callable[[Ledger], Ledger]) -> None:
        if change(self.ledger) != self.ledger:
            self._passes("before the ledger")
            super().update(change)
            self._passes("after the ledger")


class Node:
    """A fake node with one unit, at home or held by another's hand, and used again and again."""

    def __init__(self, root: Path, shape: Shape, act: Act) -> None:
        self.kernel = shape.build(root)
        if act.is_adopted:
            _take_by_hand(self.kernel, shape)
        for path, text in (
            {**_LEFT, _BASE: "[hypervisor.qemu]\n"} if act.is_beside_others else {}
        ).items():
            self.kernel.tree.text(path[1:], text)
        functions = {a: self.kernel.bus.functions[a] for a in shape.functions}
        self.home = {a: invariants.binding(function) for a, function in functions.items()}
        self.agent = Agent(
            kernel=self.kernel,
            shape=shape,
            blueprint=_blueprint(shape, act),
            is_on_claim=act.is_on_claim,
        )
        self._act = act

    def begin(self) -> None:
        """Bring a node that was given back to where the act begins."""
        if "vfio-pci" in self.kernel.bus.drivers and not self._act.is_adopted:
            self.kernel.run(("modprobe", "-r", "--", "vfio-pci"), timeout_s=3)
        self._act.prepare(self.agent)

    def act(self, passes: Callable[[str], None]) -> Report:
        """Let an agent act that tells of its points."""
        return self._act.do(replace(self.agent, passes=passes))

    def violations(self) -> list[str]:
        """Return what does not hold now."""
        return [*invariants.violations(self.kernel, self.home), *self._lost()]

    def set_aside(self) -> list[str]:
        """Return which files of others are in the quarantine."""
        names = files.names(self.kernel.host.path(SETTINGS.quarantine))
        return [quarantined_path(name) for name in names]

    def _lost(self) -> Iterator[str]:
        """Say which of the others' files is not as they left it, at one place."""
        if not self._act.is_beside_others:
            return
        for path, text in _LEFT.items():
            kept = f"{SETTINGS.quarantine}/{quarantine_name(path)}"
            found = [files.read(self.kernel.host.path(place)) for place in (path, kept)]
            if [one for one in found if one is not None] != [text]:
                yield f"{path} reads {found[0]!r}, and in quarantine {found[1]!r}"


def run(shape: Shape, act: Act) -> Row:
    """Kill *act* at each of its points, and return what the next agents made of it."""
    with _nodes(shape, act) as node_of:
        points, found = _without_a_kill(node_of(), act)
        survived = 0
        for at, alike in _alike(points):
            for mend in (_finish, _give_back):
                bad = _kill_and_mend(node_of(), act, at, mend)
                survived += 0 if bad else len(alike)
                found += [f"killed {alike[0]}, then {mend.__name__}: {text}" for text in bad]
    return Row(points=2 * len(points), survived=survived, violations=tuple(found))


def _alike(points: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the points that no change lies between together, with the number of the first."""
    changes = accumulate(point.startswith("after ") for point in points)
    for _, together in groupby(zip(changes, enumerate(points), strict=True), lambda p: p[0]):
        numbered = [point for _, point in together]
        yield numbered[0][0], [point for _, point in numbered]


def _without_a_kill(node: Node, act: Act) -> tuple[list[str], list[str]]:
    """Return every point, and what does not hold at it; give all back."""
    points: list[str] = []
    found: list[str] = []

    def look(point: str) -> None:
        points.append(point)
        found.extend(f"{point}: {violation}" for violation in node.violations())

    failures = node.act(look).failures
    found += [f"without a kill: {failure.detail}" for failure in failures if act.is_fit]
    return points, [*found, *_give_back(node, act)]


def _kill_and_mend(node: Node, act: Act, at: int, mend: "Mend") -> list[str]:
    points = iter(range(at))

    def passes(_point: str) -> None:
        if next(points, None) is None:
            raise Killed

    try:
        node.act(passes)
    except Killed:
        return [*node.violations(), *mend(node, act)]
    return ["it was not killed"]


Mend = Callable[[Node, Act], Iterator[str]]


def _finish(node: Node, act: Act) -> Iterator[str]:
    """Let the next agent reach the target, and find nothing to do then; and give it all back."""
    agent = node.agent
    failures = agent.converge().failures
    if act.is_fit:
        yield from (f"converge failed: {failure.detail}" for failure in failures)
    yield from node.violations()
    if any(node.kernel.bus.functions[address].vfio is None for address in node.home):
        yield "a function is not on VFIO"
    offers = list(invariants.offered(node.kernel))
    if offers != [agent.shape.functions[0]] * act.is_fit:
        yield f"{offers} is offered"
    if node.set_aside() != sorted(_LEFT) * act.is_beside_others:
        yield f"{node.set_aside()} is in quarantine"
    yield from _rests(node, agent.converge)
    yield from _give_back(node, act)


def _give_back(node: Node, _act: Act) -> Iterator[str]:
    """Let the next agent give all back, and find nothing to give back then."""
    yield from (f"release failed: {failure.detail}" for failure in node.agent.release().failures)
    yield from node.violations()
    if not _is_forgotten(node):
        yield "something is in the ledger or the quarantine, or the CDI spec is there"
    yield from _rests(node, node.agent.release)


def _is_forgotten(node: Node) -> bool:
    is_offered = node.kernel.host.path(CDI).exists()
    is_empty = journal_of(node.kernel.host).ledger == Ledger()
    return is_empty and not is_offered and not node.set_aside()


def _rests(node: Node, do: Callable[[], Report]) -> Iterator[str]:
    before = len(node.kernel.writes)
    yield from (f"the second run did: {outcome.step}" for outcome in do().outcomes)
    if len(node.kernel.writes) != before:
        yield "the second run wrote to the kernel"


@contextmanager
def _nodes(shape: Shape, act: Act) -> Iterator[Callable[[], Node]]:
    """Yield what returns a node that is where *act* begins: the last one, if it is at home."""
    with TemporaryDirectory(prefix="kata-gpu-", dir=memory.folder()) as folder:
        made: list[Node] = []

        def node() -> Node:
            is_at_home = made and not made[-1].violations() and _is_forgotten(made[-1])
            if not is_at_home:
                made.append(Node(Path(folder, str(len(made))), shape, act))
            made[-1].begin()
            return made[-1]

        yield node


def _named_gpu(root: Path) -> FakeKernel:
    """Return a node with a GPU that is known to have a confidential mode."""
    kernel = nodes.single_gpu(root)
    names = "#\n10de  NVIDIA Corporation\n\t2330  GH100 [H100 SXM5 80GB]\n"
    kernel.tree.text("usr/share/misc/pci.ids", names)
    return kernel


def _take_by_hand(kernel: FakeKernel, shape: Shape) -> None:
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    for address in shape.functions:
        kernel.write(f"bus/pci/devices/{address}/driver_override", "vfio-pci")
        kernel.write(f"bus/pci/devices/{address}/driver/unbind", address)
        kernel.write("bus/pci/drivers/vfio-pci/bind", address)


def _leave_files(kernel: FakeKernel) -> None:
    for path, text in {**_LEFT, _BASE: "[hypervisor.qemu]\n"}.items():
        kernel.tree.text(path[1:], text)


def _blueprint(shape: Shape, act: Act) -> Blueprint:
    """Return one that selects every GPU, and names what is to be adopted or moved away."""
    (pool,) = EVERY_GPU.pools
    if act.is_on_claim:
        offered = replace(pool, door=Door.DRA, bind=BindWhen.ON_CLAIM)
        return replace(EVERY_GPU, pools=(offered,))
    if act.is_beside_others:
        handler = KataHandler(name="kata", runtime=Runtime.GO, config=_BASE)
        patterns = tuple(path.rpartition("/")[2] for path in _LEFT)
        return replace(
            EVERY_GPU, handlers=(handler,), cdi_quarantine=patterns, kata_quarantine=patterns
        )
    if not act.is_adopted:
        return EVERY_GPU
    named = tuple(Selector(address=PciAddress.parse(address)) for address in shape.functions)
    return replace(EVERY_GPU, pools=(replace(pool, selectors=named),))


def _bind(agent: Agent) -> None:
    assert not agent.converge().failures


def _use(agent: Agent) -> None:
    """Let a VM have the unit, as the agent sees, and end."""
    _bind(agent)
    with agent.kernel.vm_holds(agent.shape.functions[0]):
        _bind(agent)


def _use_and_break(agent: Agent) -> None:
    """Let a VM have the unit, and no reset of it succeed afterwards."""
    _use(agent)
    agent.kernel.fail_write(lambda path, _value: path.endswith("/reset"), errno.ENOTTY)


SHAPES: Final[Mapping[str, Shape]] = {
    "one function": Shape(build=_named_gpu, functions=(nodes.GPU,)),
    "two functions of a slot": Shape(
        build=partial(nodes.gpu_with_audio, reset_methods=("flr",)),
        functions=(nodes.GPU, nodes.AUDIO),
    ),
    "two devices of a group": Shape(
        build=partial(nodes.bridge_pair, reset_methods=("flr",)), functions=nodes.BRIDGED
    ),
    "a card of two groups": Shape(
        build=partial(nodes.gpu_with_audio, reset_methods=("flr",), audio_group=2),
        functions=(nodes.GPU, nodes.AUDIO),
    ),
}
ACTS: Final[Mapping[str, Act]] = {
    "bind": Act(do=Agent.converge),
    "release": Act(do=Agent.release, prepare=_bind),
    "clean after a tenant": Act(do=Agent.converge, prepare=_use),
    "quarantine": Act(do=Agent.converge, prepare=_use_and_break, is_fit=False),
    "adopt": Act(do=Agent.converge, is_adopted=True),
    "bind on claim": Act(do=Agent.converge, is_on_claim=True),
    "give back after a claim": Act(do=Agent.release, prepare=_bind, is_on_claim=True),
    "give back after a claim and its VM": Act(do=Agent.release, prepare=_use, is_on_claim=True),
    "move away": Act(do=Agent.converge, is_beside_others=True),
    "bring back": Act(do=Agent.release, prepare=_bind, is_beside_others=True),
}
