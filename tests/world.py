"""A fake node with two units, and everything that may happen to it.

What cannot happen now (a VM that is refused, a card that is there already) does nothing.
"""

import errno
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.errors import HostError
from kata_gpu.model.kubernetes import BindWhen, Door
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import Binding
from kata_gpu.model.plan import Plan, Step
from kata_gpu.model.report import Outcome, Report
from tests import invariants, memory
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kill_points import Killed, ToldJournal
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, journal_of

OTHER: Final = "0000:02:00.0"
GPUS: Final = (nodes.GPU, OTHER)
ON_CLAIM: Final = replace(
    EVERY_GPU,
    pools=tuple(replace(pool, door=Door.DRA, bind=BindWhen.ON_CLAIM) for pool in EVERY_GPU.pools),
)
ADDRESSES: Final = (nodes.GPU, nodes.AUDIO, OTHER)
_LIKE: Final = {nodes.GPU: "/dev/full", OTHER: "/dev/tty"}
_PATIENCE_S: Final = 0.002


class World:
    """The node, its agent, and what both may be asked."""

    def __init__(self, *, on_claim: bool = False) -> None:
        self._is_on_claim = on_claim
        self._claimed: set[str] = set()
        self._ends = ExitStack()
        folder = self._ends.enter_context(
            TemporaryDirectory(prefix="kata-gpu-", dir=memory.folder())
        )
        self.kernel = _build(Path(folder))
        self._host = replace(self.kernel.host, run=self._run)
        self.kernel.patience_s = _PATIENCE_S
        self.kernel.on_write = self._before
        self.kernel.after_write = self._after
        self.kernel.fail_write(self._is_to_fail, errno.EIO)
        self.home: dict[str, Binding] = {}
        self._users: dict[str, ExitStack] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._opened: set[str] = set()
        self._dirty: set[str] = set()
        self._broken: list[str] = []
        self._is_agent = False
        self._is_turning = False
        self._is_disturbed = False
        self._failing: tuple[str, str] | None = None
        self._arrival: str | None = None
        self._life: int | None = None
        self._settle()

    def end(self) -> None:
        """Let everybody go."""
        for address in ADDRESSES:
            self.end_user(address)
            self.let_go(address)
        self._ends.close()

    def violations(self) -> list[str]:
        """Return what does not hold now, or was done and must not be."""
        return [*self._broken, *self._of_the_node()]

    # the agent

    def converge(self) -> Report:
        """Bring the node in order; when nothing failed nothing is left to do."""
        turn = self._turn()
        if turn.report.failures:
            self._broken += [
                f"converge failed: {f.step}: {f.detail}"
                for f in turn.report.failures
                if not self._may_fail(f)
            ]
            return turn.report
        self._is_disturbed = False
        self._opened.clear()
        again = self._turn().report.outcomes if turn.report.outcomes else ()
        self._broken += [f"the second converge did: {outcome.step}" for outcome in again]
        self._judge_offers(turn)
        return turn.report

    def claim(self, unit: str) -> None:
        """Let a claim for a unit come; the agent learns of it in its next turn."""
        self._claimed.add(unit)

    def unclaim(self, unit: str) -> None:
        """Let it go."""
        self._claimed.discard(unit)

    def release(self, unit: str | None) -> Report:
        """Give one unit back, or all."""
        plan, report = self._give_back(unit)
        if unit is None and not report.failures and not plan.refusals:
            if journal_of(self.kernel.host).ledger != Ledger():
                self._broken.append("everything is given back, and the ledger is not empty")
            if self.kernel.host.path(CDI).exists() and not self._is_disturbed:
                self._broken.append("everything is given back, and the CDI spec is there")
            again = self._give_back(unit)[0].steps if plan.steps else ()
            self._broken += [f"the second release would: {step.headline}" for step in again]
        return report

    def clear(self, unit: str) -> None:
        """Let an admin say that a unit is clean."""
        try:
            node.clear(journal_of(self.kernel.host), unit)
        except HostError:
            return
        self._dirty -= self._mates(unit)

    def kill(self, verb: str, at: int) -> None:
        """Let the agent end in the middle of it."""
        self._life = at
        with suppress(Killed):
            self._do(verb)
        self._life = None
        self._is_agent = self._is_turning = False

    def fail(self, verb: str, store: str, address: str) -> None:
        """Let stores of a kind on a function fail while the agent works."""
        self._failing = (store, address)
        self._do(verb)
        self._failing = None

    def hang(self, verb: str, address: str) -> None:
        """Let a user come in the moment before an unbind, when nobody can see it."""
        self._arrival = address
        self._do(verb)
        self._arrival = None

    # users

    def let_go(self, address: str) -> None:
        """Let the user leave that an unbind waits for."""
        function = self.kernel.bus.functions.get(address)
        if function is None or not function.stuck:
            return
        self.kernel.vm_leaves(address)
        while function.stuck or function.unbinder is not None:
            time.sleep(0.0005)
        self._settle()

    def start_vm(self, address: str) -> None:
        """Let a VM open a function, if the kernel lets it."""
        if address in self._users:
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self.kernel.vm_holds(address))
            except OSError:
                return
            self._users[address] = stack.pop_all()
        self._held[address] = self._group(address)
        self._dirty |= self._held[address]
        self._opened |= {gpu for gpu in GPUS if self._mates(gpu) & self._held[address]}

    def open_on_the_host(self, address: str) -> None:
        """Let a program open a GPU that a host driver has."""
        function = self.kernel.bus.functions.get(address)
        node_ = self.kernel.host.path(f"/dev/dri/{address}")
        if address in self._users or function is None or function.driver != "nvidia":
            return
        if function.stuck or not self.kernel.exists(f"bus/pci/devices/{address}/drm"):
            return
        stack = ExitStack()
        stack.enter_context(self.kernel.process("Xorg", node_))
        self._users[address] = stack
        self._held[address] = frozenset({address})

    def end_user(self, address: str) -> None:
        """Let a VM or a program end, however it does."""
        if address in self._users:
            self._users.pop(address).close()
            del self._held[address]

    # the world

    def unplug(self, address: str) -> None:
        if self._is_free(address):
            self.kernel.unplug(address)
            self._settle()

    def plug(self, address: str) -> None:
        if address not in self.kernel.bus.functions:
            self.kernel.plug(address)
            self._settle()

    def unload(self, module: str) -> None:
        """Unload a driver that nobody uses; vfio-pci only without devices."""
        holds = [a for a, f in self.kernel.bus.functions.items() if f.driver == module]
        is_used = module == "vfio-pci" and holds
        if module in self.kernel.bus.drivers and not is_used and all(map(self._is_free, holds)):
            self.kernel.run(("modprobe", "-r", "--", module), timeout_s=3)
            self._settle()

    def load(self, module: str) -> None:
        self.kernel.run(("modprobe", "--", module), timeout_s=3)
        self._settle()

    def override_by_hand(self, address: str, override: str) -> None:
        if address in self.kernel.bus.functions:
            self.kernel.write(f"bus/pci/devices/{address}/driver_override", override)
            self._settle()

    def bind_by_hand(self, address: str, driver: str) -> None:
        if not self._is_free(address):
            return
        held_by = self.kernel.bus.functions[address].driver
        try:
            if held_by is not None:
                self.kernel.write(f"bus/pci/drivers/{held_by}/unbind", address)
            self.kernel.write(f"bus/pci/drivers/{driver}/bind", address)
        except HostError:
            pass  # no such driver, or it is not for this function
        self._settle()

    def edit_the_spec(self, content: str | None) -> None:
        spec = self.kernel.host.path(CDI)
        spec.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            spec.unlink(missing_ok=True)
        else:
            spec.write_text(content)
        self._is_disturbed = True

    # the parts of the above

    def _do(self, verb: str) -> None:
        if verb == "converge":
            self._turn()
        else:
            self._give_back(None)

    def _turn(self) -> node.Turn:
        self._is_agent = self._is_turning = True
        turn = node.converge(
            self._host,
            SETTINGS,
            ON_CLAIM if self._is_on_claim else EVERY_GPU,
            self._journal(),
            opened=frozenset(self._opened),
            claimed=frozenset(self._claimed),
            progress=self._step,
        )
        self._is_agent = self._is_turning = False
        return turn

    def _give_back(self, unit: str | None) -> tuple[Plan, Report]:
        journal = self._journal()
        if unit is not None and journal.ledger.entry(unit) is None:
            return Plan(blueprint="nothing to release"), Report()
        self._is_agent = True
        chosen = None if unit is None else frozenset({unit})
        plan = node.make_release(self._host, SETTINGS, journal.ledger, chosen)
        report = executor.execute(self._host, plan, journal, progress=self._step)
        self._is_agent = False
        return plan, report

    def _journal(self) -> ToldJournal:
        return ToldJournal(self.kernel.host.path(SETTINGS.ledger), self._passes)

    def _step(self, _number: int, _step: Step, _outcome: Outcome | None) -> None:
        self._passes("a step")

    def _run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        """Run a program for the agent; a driver that it loads takes what it may by itself.

        Where such a function came from is a matter of words.
        """
        before = self._bindings()
        said = self.kernel.run(argv, timeout_s=timeout_s)
        for address, binding in self._bindings().items():
            if before[address] != binding:
                self.home.pop(address, None)
        return said

    def _bindings(self) -> dict[str, Binding]:
        functions = self.kernel.bus.functions
        return {a: invariants.binding(functions[a]) for a in ADDRESSES if a in functions}

    def _passes(self, _point: str) -> None:
        if self._life is not None:
            self._life -= 1
            if self._life < 0:
                raise Killed

    def _before(self, path: str, value: str) -> None:
        """Judge each write of the agent when the kernel has not seen it yet."""
        if not self._is_agent:
            return
        address = _target(path, value)
        hung = [a for a in self._group(address) if self.kernel.bus.functions[a].stuck]
        if hung:
            self._broken.append(f"{path} is written while a store hangs on {hung}")
        is_cut = path.endswith(("/unbind", "/reset"))
        if is_cut and any(address in held for held in self._held.values()):
            self._broken.append(f"{path} is written while somebody has {address}")
        is_given_back = self._is_turning and path.endswith("vfio-pci/unbind")
        if self._is_on_claim and is_given_back and address in self._dirty & set(GPUS):
            self._broken.append(f"{address} goes back with what its last user left")
        if path.endswith("/unbind") and address == self._arrival:
            self._arrival = None
            self.kernel.bus.functions[address].holders += 1
        self._passes(path)

    def _after(self, path: str, value: str) -> None:
        if path.endswith("/reset"):
            self._dirty.discard(_target(path, value))
        self._forget_dirt()
        if self._is_agent:
            self._passes(path)

    def _is_to_fail(self, path: str, value: str) -> bool:
        if not self._is_agent or self._failing is None:
            return False
        store, address = self._failing
        return path.endswith(f"/{store}") and _target(path, value) == address

    def _settle(self) -> None:
        """Note what the world did: to what is not ours, and to what is offered."""
        ledger = journal_of(self.kernel.host).ledger
        ours = {str(f.address) for entry in ledger.entries for f in entry.functions}
        self.home |= {a: now for a, now in self._bindings().items() if a not in ours}
        if any(invariants.of_the_offer(self.kernel, ledger)):
            self._is_disturbed = True
        self._forget_dirt()

    def _forget_dirt(self) -> None:
        """A host driver begins anew, and so does a card that was pulled or given back."""
        functions = self.kernel.bus.functions
        for address in list(self._dirty):
            found = functions.get(address)
            if found is None or found.vfio is None:
                self._dirty.discard(address)

    def _judge_offers(self, turn: node.Turn) -> None:
        offers = invariants.offered(self.kernel)
        for unit in offers:
            is_held = any(self._mates(unit) & held for held in self._held.values())
            if unit in self._dirty and not is_held:
                self._broken.append(f"{unit} is offered with what its last user left")
        wanted = self._claimed if self._is_on_claim else set(GPUS)
        self._broken += [f"{unit} is offered, and not claimed" for unit in offers.keys() - wanted]
        if not turn.plan.refusals:
            missing = wanted & self.kernel.bus.functions.keys() - offers.keys()
            self._broken += [f"{gpu} is not offered, and nobody says why" for gpu in missing]

    def _of_the_node(self) -> list[str]:
        return invariants.violations(self.kernel, self.home, is_spec_ours=not self._is_disturbed)

    def _may_fail(self, failure: Outcome) -> bool:
        return "no such driver is loaded" in str(failure.detail)

    def _group(self, address: str) -> frozenset[str]:
        functions = self.kernel.bus.functions
        if address not in functions:
            return frozenset()
        members = self.kernel.bus.group(functions[address])
        return frozenset(member.spec.address for member in members)

    def _mates(self, unit: str) -> frozenset[str]:
        return frozenset({nodes.GPU, nodes.AUDIO} if unit == nodes.GPU else {unit})

    def _is_free(self, address: str) -> bool:
        function = self.kernel.bus.functions.get(address)
        is_held = any(address in held for held in self._held.values())
        return function is not None and not (is_held or function.stuck or function.holders)


def _target(path: str, value: str) -> str:
    """Return the address that a write is about."""
    return value if path.startswith("bus/pci/drivers/") else path.split("/")[3]


def _build(root: Path) -> FakeKernel:
    kernel = nodes.gpu_with_audio(root, reset_methods=("flr",))
    kernel.add_device(
        OTHER,
        vendor=0x10DE,
        device=0x2330,
        class_code=0x030200,
        driver="nvidia",
        parent="0000:00:02.0",
    )
    for number, (address, like) in enumerate(_LIKE.items()):
        kernel.tree.show_device(address, f"drm/card{number}", f"dri/{address}", like)
    return kernel
