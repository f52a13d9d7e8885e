"""Whatever happens to a node and in whatever order, what always holds does hold.

Hypothesis plays the world: VMs, programs, admins with a shell, modules, hot-plug, errors of
the kernel, and the agent's death. The agent is the real one; the kernel is the fake.
"""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.world import ADDRESSES, GPUS, World

addresses = st.sampled_from(ADDRESSES)
gpus = st.sampled_from(GPUS)
drivers = st.sampled_from(("nvidia", "snd_hda_intel", "vfio-pci", "pci-stub"))
overrides = st.sampled_from(("\n", "vfio-pci", "nvidia", "pci-stub"))
verbs = st.sampled_from(("converge", "release"))
stores = st.sampled_from(("driver_override", "unbind", "bind", "reset"))
specs = st.sampled_from((None, "", "{", "[]", '{"devices": [{"name": "0000:09:00.0"}]}'))
moments = st.integers(0, 40)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Say nothing of thousands of failures that are meant."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Machine(RuleBasedStateMachine):
    """The rules; what they do is in the world."""

    on_claim = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(on_claim=self.on_claim)

    def teardown(self) -> None:
        self.world.end()

    @rule()
    def converge(self) -> None:
        self.world.converge()

    @rule(unit=st.none() | gpus)
    def release(self, unit: str | None) -> None:
        self.world.release(unit)

    @rule(unit=gpus)
    def clear(self, unit: str) -> None:
        self.world.clear(unit)

    @rule(verb=verbs, at=moments)
    def kill(self, verb: str, at: int) -> None:
        self.world.kill(verb, at)

    @rule(verb=verbs, store=stores, address=addresses)
    def fail(self, verb: str, store: str, address: str) -> None:
        self.world.fail(verb, store, address)

    @rule(verb=verbs, address=addresses)
    def hang(self, verb: str, address: str) -> None:
        self.world.hang(verb, address)

    @rule(address=addresses)
    def let_go(self, address: str) -> None:
        self.world.let_go(address)

    @rule(address=addresses)
    def start_vm(self, address: str) -> None:
        self.world.start_vm(address)

    @rule(address=gpus)
    def open_on_the_host(self, address: str) -> None:
        self.world.open_on_the_host(address)

    @rule(address=addresses)
    def end_user(self, address: str) -> None:
        self.world.end_user(address)

    @rule(address=addresses)
    def unplug(self, address: str) -> None:
        self.world.unplug(address)

    @rule(address=addresses)
    def plug(self, address: str) -> None:
        self.world.plug(address)

    @rule(module=st.sampled_from(("nvidia", "snd_hda_intel", "vfio-pci")))
    def unload(self, module: str) -> None:
        self.world.unload(module)

    @rule(module=st.sampled_from(("nvidia", "snd_hda_intel", "vfio-pci", "pci-stub")))
    def load(self, module: str) -> None:
        self.world.load(module)

    @rule(address=addresses, override=overrides)
    def override_by_hand(self, address: str, override: str) -> None:
        self.world.override_by_hand(address, override)

    @rule(address=addresses, driver=drivers)
    def bind_by_hand(self, address: str, driver: str) -> None:
        self.world.bind_by_hand(address, driver)

    @rule(content=specs)
    def edit_the_spec(self, content: str | None) -> None:
        self.world.edit_the_spec(content)

    @invariant()
    def always(self) -> None:
        assert self.world.violations() == []


class Claims(Machine):
    """The same where units are bound on claim."""

    on_claim = True

    @rule(unit=gpus)
    def claim(self, unit: str) -> None:
        self.world.claim(unit)

    @rule(unit=gpus)
    def serve(self, unit: str) -> None:
        """Let a tenant come and go, all but the last turn of the agent."""
        self.world.claim(unit)
        self.world.converge()
        self.world.start_vm(unit)
        self.world.end_user(unit)
        self.world.unclaim(unit)

    @rule(unit=gpus)
    def unclaim(self, unit: str) -> None:
        self.world.unclaim(unit)


class FirstQuarter(Machine):
    """A share of the examples, so that workers play side by side."""


class SecondQuarter(Machine):
    """Another."""


class ThirdQuarter(Machine):
    """Another."""


class LastQuarter(Machine):
    """The rest."""


_QUARTER = settings(
    max_examples=125,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestClaims = Claims.TestCase
TestClaims.settings = settings(_QUARTER, max_examples=60)
TestFirst, TestSecond = FirstQuarter.TestCase, SecondQuarter.TestCase
TestThird, TestLast = ThirdQuarter.TestCase, LastQuarter.TestCase
TestFirst.settings = TestSecond.settings = TestThird.settings = TestLast.settings = _QUARTER
