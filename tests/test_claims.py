"""Units that are bound when a claim comes, and go back to their host drivers after it."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.agent import node
from kata_gpu.agent.drift import Watchman
from kata_gpu.agent.node import Turn
from kata_gpu.model.blueprint import Blueprint, Drift
from kata_gpu.model.ledger import Ledger, LedgerEntry
from kata_gpu.model.plan import Severity
from kata_gpu.model.report import NodeState, UnitStatus
from kata_gpu.model.unit import UnitState
from kata_gpu.settings import blueprint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kernel.systemd import Systemd
from tests.passthrough import CDI, SETTINGS, TEXT, journal_of, put

ON_CLAIM: Final = TEXT.replace(
    "[[pool.select]]", 'offer = "dra"\nbind = "on-claim"\n\n[[pool.select]]'
)
WANTED: Final = blueprint.parse(ON_CLAIM)
NONE: Final[frozenset[str]] = frozenset()
ONE: Final = frozenset({nodes.GPU})
DAEMON: Final = "nvidia-persistenced.service"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.single_gpu(tmp_path)


def turn(
    kernel: FakeKernel,
    claimed: frozenset[str] | None,
    wanted: Blueprint = WANTED,
    **known: Any,
) -> Turn:
    journal = journal_of(kernel.host)
    return node.converge(kernel.host, SETTINGS, wanted, journal, claimed=claimed, **known)


def described(kernel: FakeKernel, found: Turn, wanted: Blueprint = WANTED) -> NodeState:
    ledger = journal_of(kernel.host).ledger
    return node.describe(found, SETTINGS, wanted, ledger, number=1, last_report=found.report)


def status(kernel: FakeKernel, found: Turn, unit: str = nodes.GPU) -> UnitStatus:
    return next(u for u in described(kernel, found).units if u.id == unit)


def entry(kernel: FakeKernel) -> LedgerEntry | None:
    return journal_of(kernel.host).ledger.entry(nodes.GPU)


def driver(kernel: FakeKernel, address: str = nodes.GPU) -> str | None:
    return kernel.link(f"bus/pci/devices/{address}/driver")


def used(kernel: FakeKernel) -> None:
    """Let a claim come, and a VM have the unit and end."""
    turn(kernel, ONE)
    with kernel.vm_holds(nodes.GPU):
        turn(kernel, ONE)


# A claim comes and goes


def test_without_a_claim_nothing_is_touched(kernel: FakeKernel) -> None:
    found = turn(kernel, NONE)
    assert found.report.outcomes == ()
    assert kernel.writes == []
    assert status(kernel, found).state is UnitState.UNCLAIMED
    assert found.plan.findings == ()


def test_a_claim_binds_and_publishes_its_unit_and_no_other(tmp_path: Path) -> None:
    kernel = nodes.hgx(tmp_path)
    first, second, *_ = nodes.HGX_GPUS
    found = turn(kernel, frozenset({second}))
    assert (driver(kernel, first), driver(kernel, second)) == ("nvidia", "vfio-pci")
    spec = kernel.host.path(CDI).read_text()
    assert second in spec
    assert first not in spec
    assert status(kernel, found, second).state is UnitState.AVAILABLE
    assert status(kernel, found, first).state is UnitState.UNCLAIMED


def test_when_the_claim_goes_nothing_of_it_is_left(kernel: FakeKernel) -> None:
    turn(kernel, ONE)
    found = turn(kernel, NONE)
    assert not found.report.failures
    assert driver(kernel) == "nvidia"
    assert not kernel.host.path(CDI).exists()
    assert journal_of(kernel.host).ledger == Ledger()
    assert status(kernel, found).state is UnitState.UNCLAIMED


def test_what_nobody_had_is_given_back_without_a_reset(kernel: FakeKernel) -> None:
    turn(kernel, ONE)
    turn(kernel, NONE)
    assert not any(path.endswith("/reset") for path, _ in kernel.writes)


def test_after_its_vm_a_unit_is_reset_before_the_host_gets_it(kernel: FakeKernel) -> None:
    used(kernel)
    before = len(kernel.writes)
    assert not turn(kernel, NONE).report.failures
    stores = [path.rpartition("/")[2] for path, _ in kernel.writes[before:]]
    assert stores.index("reset") < stores.index("unbind")
    assert driver(kernel) == "nvidia"
    assert entry(kernel) is None


def test_what_cannot_be_cleaned_is_not_given_back(kernel: FakeKernel) -> None:
    used(kernel)
    kernel.fail_write(lambda path, _value: path.endswith("/reset"), errno.ENOTTY)
    found = turn(kernel, NONE)
    assert driver(kernel) == "vfio-pci"
    assert status(kernel, found).state is UnitState.QUARANTINED
    assert turn(kernel, ONE).report.outcomes == ()
    assert not kernel.host.path(CDI).exists()


def test_what_an_admin_clears_goes_back(kernel: FakeKernel) -> None:
    used(kernel)
    kernel.fail_write(lambda path, _value: path.endswith("/reset"), errno.ENOTTY)
    turn(kernel, NONE)
    node.clear(journal_of(kernel.host), nodes.GPU)
    assert status(kernel, turn(kernel, NONE)).state is UnitState.UNCLAIMED
    assert driver(kernel) == "nvidia"


def test_a_vm_that_outlives_its_claim_is_waited_for(kernel: FakeKernel) -> None:
    turn(kernel, ONE)
    with kernel.vm_holds(nodes.GPU):
        found = turn(kernel, NONE)
        assert driver(kernel) == "vfio-pci"
        assert status(kernel, found).state is UnitState.WAITING
        assert not kernel.host.path(CDI).exists()
    found = turn(kernel, NONE)
    assert status(kernel, found).state is UnitState.UNCLAIMED
    assert any(path.endswith("/reset") for path, _ in kernel.writes)


def test_a_unit_that_the_host_took_back_meanwhile_is_not_reset_under_it(
    kernel: FakeKernel,
) -> None:
    used(kernel)
    kernel.write(f"bus/pci/devices/{nodes.GPU}/driver_override", "\n")
    kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.GPU)
    kernel.write("bus/pci/drivers/nvidia/bind", nodes.GPU)
    before = len(kernel.writes)
    assert not turn(kernel, NONE).report.failures
    assert kernel.writes[before:] == []
    assert journal_of(kernel.host).ledger == Ledger()


# Agents that know more, or less


def test_an_agent_that_starts_with_a_claim_has_nothing_to_do(kernel: FakeKernel) -> None:
    turn(kernel, ONE)
    assert turn(kernel, ONE).report.outcomes == ()


@pytest.mark.parametrize("before", [NONE, ONE], ids=["at home", "bound"])
def test_who_knows_of_no_claims_moves_nothing(kernel: FakeKernel, before: frozenset[str]) -> None:
    turn(kernel, before)
    home = driver(kernel)
    found = turn(kernel, None)
    assert found.report.outcomes == ()
    assert driver(kernel) == home


def test_who_knows_of_no_claims_repairs_what_one_has(kernel: FakeKernel) -> None:
    turn(kernel, ONE)
    kernel.host.path(CDI).write_text("{}")
    assert not turn(kernel, None).report.failures
    assert nodes.GPU in kernel.host.path(CDI).read_text()


def test_a_claim_that_comes_again_is_no_drift(kernel: FakeKernel) -> None:
    watchman = Watchman()
    for claimed in (ONE, NONE) * 4:
        found = turn(kernel, claimed, failed=watchman.contested(), kept=watchman.kept(Drift.REPORT))
        state = described(kernel, found)
        watchman.learn(found, state)
        expected = UnitState.AVAILABLE if claimed else UnitState.UNCLAIMED
        assert state.units[0].state is expected


# What is in the way


def test_a_claim_waits_for_whom_the_host_lets_compute(kernel: FakeKernel) -> None:
    card = kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    with kernel.process("python3", card):
        unclaimed = status(kernel, turn(kernel, NONE))
        assert status(kernel, turn(kernel, ONE)).state is UnitState.WAITING
    assert unclaimed.state is UnitState.UNCLAIMED
    assert "python3" in unclaimed.reason
    assert status(kernel, turn(kernel, ONE)).state is UnitState.AVAILABLE


def test_a_failed_bind_is_told_and_the_unit_is_at_home(kernel: FakeKernel) -> None:
    kernel.fail_write(lambda path, _value: path.endswith("vfio-pci/bind"), errno.EIO)
    found = turn(kernel, ONE)
    assert found.report.failures
    assert driver(kernel) == "nvidia"
    assert status(kernel, found).state is UnitState.FAILED
    assert entry(kernel) is None


def test_two_writers_of_one_kind_are_told_before_a_claim_comes(kernel: FakeKernel) -> None:
    rival = '{"cdiVersion": "0.5.0", "kind": "example.com/pgpu", "devices": []}'
    put(kernel.host.root, f"{SETTINGS.cdi_directory}/other.json", rival)
    found = turn(kernel, NONE)
    assert status(kernel, found).state is UnitState.REFUSED
    assert "two writers" in status(kernel, found).reason


def test_a_node_without_an_iommu_says_so_before_a_claim_comes(tmp_path: Path) -> None:
    kernel = nodes.no_iommu(tmp_path)
    (finding,) = turn(kernel, NONE).plan.findings
    assert (finding.severity, finding.subject) == (Severity.REFUSED, nodes.GPU)


# Services


@pytest.fixture
def systemd(kernel: FakeKernel) -> Systemd:
    """A service that has the GPU open."""
    card = kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    systemd = Systemd(kernel)
    systemd.install(DAEMON, [card])
    kernel.on_run = systemd.run
    return systemd


FREED: Final = blueprint.parse(
    ON_CLAIM.replace("[[pool.select]]", f'stop_services = ["{DAEMON}"]\n\n[[pool.select]]')
)


def _use(kernel: FakeKernel) -> None:
    with kernel.vm_holds(nodes.GPU):
        turn(kernel, ONE, FREED)


@pytest.mark.parametrize(
    "end",
    [lambda _kernel: None, _use],
    ids=["unused", "after a VM"],
)
def test_a_service_runs_between_claims_and_at_no_other_time(
    kernel: FakeKernel, systemd: Systemd, end: Callable[[FakeKernel], None]
) -> None:
    turn(kernel, NONE, FREED)
    assert systemd.running == {DAEMON}
    turn(kernel, ONE, FREED)
    assert systemd.running == set()
    end(kernel)
    assert not turn(kernel, NONE, FREED).report.failures
    assert systemd.running == {DAEMON}
    assert journal_of(kernel.host).ledger == Ledger()


def test_a_service_that_is_stopped_for_a_claim_is_not_in_its_way(
    kernel: FakeKernel, systemd: Systemd
) -> None:
    found = turn(kernel, NONE, FREED)
    ledger = journal_of(kernel.host).ledger
    state = node.describe(found, SETTINGS, FREED, ledger, number=1, last_report=found.report)
    assert systemd.running == {DAEMON}
    assert state.units[0].reason == "it is on nvidia until a claim asks for it"
