"""Virtual functions are announced, made and verified, or undone; and only ours are removed."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.errors import HostError, StuckError
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.ledger import Ledger, LedgerEntry, MadeVirtuals, OriginalFunction, Stage
from kata_gpu.model.pci import Binding, PciAddress, PhysicalFunction
from kata_gpu.model.plan import Plan, RemoveVirtuals, Severity
from kata_gpu.model.report import Report, Result
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import planner
from kata_gpu.settings import blueprint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, SETTINGS, TEXT, journal_of
from tests.running import Agent, Events, run, write_blueprint
from tests.values import function, inventory_of

PARENT: Final = PciAddress.parse(nodes.GPU)
FIRST, SECOND, THIRD = (f"0000:01:00.{n}" for n in (1, 2, 3))
HOME: Final = f"bus/pci/devices/{PARENT}"
NUMVFS: Final = f"{HOME}/sriov_numvfs"
AUTOPROBE: Final = f"{HOME}/sriov_drivers_autoprobe"


def asking_for(count: int) -> Blueprint:
    return blueprint.parse(TEXT.replace("mode =", f"virtual_functions = {count}\nmode ="))


TWO: Final = asking_for(2)
MADE: Final = MadeVirtuals(parent=PARENT, count=2, had_autoprobe=True)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.sriov(tmp_path)


def converge(kernel: FakeKernel, wanted: Blueprint = TWO) -> Turn:
    return node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))


def make(kernel: FakeKernel) -> Report:
    """Take the first step and no more."""
    journal = journal_of(kernel.host)
    _, plan = node.make_plan(kernel.host, SETTINGS, TWO, journal.ledger)
    return executor.execute(kernel.host, plan, journal)


def release_plan(kernel: FakeKernel, *chosen: str) -> Plan:
    ledger = journal_of(kernel.host).ledger
    return node.make_release(kernel.host, SETTINGS, ledger, frozenset(chosen) or None)


def release(kernel: FakeKernel, *chosen: str) -> Report:
    plan = release_plan(kernel, *chosen)
    return executor.execute(kernel.host, plan, journal_of(kernel.host))


def remove(kernel: FakeKernel) -> Report:
    step = RemoveVirtuals(parent=PARENT, reason="test")
    plan = Plan(blueprint="test", steps=(step,))
    return executor.execute(kernel.host, plan, journal_of(kernel.host))


def ledger(kernel: FakeKernel) -> Ledger:
    return journal_of(kernel.host).ledger


def virtuals(kernel: FakeKernel) -> list[str | None]:
    names = [name for name in kernel.names(HOME) if name.startswith("virtfn")]
    return [kernel.link(f"{HOME}/{name}") for name in names]


def drivers(kernel: FakeKernel) -> list[str | None]:
    return [kernel.link(f"bus/pci/devices/{virtual}/driver") for virtual in virtuals(kernel)]


def is_home(kernel: FakeKernel) -> bool:
    parent = kernel.link(f"{HOME}/driver")
    return (virtuals(kernel), kernel.read(AUTOPROBE), parent) == ([], "1", "xe")


def by_hand(kernel: FakeKernel, count: int) -> None:
    """Let somebody else have another number of virtual functions."""
    kernel.write(NUMVFS, "0")
    kernel.write(NUMVFS, str(count))


# Made


def test_a_turn_makes_binds_and_offers_them(kernel: FakeKernel) -> None:
    turn = converge(kernel)
    assert not turn.report.failures
    assert virtuals(kernel) == [FIRST, SECOND]
    assert drivers(kernel) == ["vfio-pci", "vfio-pci"]
    assert kernel.link(f"{HOME}/driver") == "xe"
    assert FIRST in kernel.host.path(CDI).read_text()
    assert ledger(kernel).virtuals == (MADE,)
    assert turn.plan.steps == ()
    assert converge(kernel).report.outcomes == ()


def test_the_ledger_comes_before_the_first_store_and_autoprobe_before_the_number(
    kernel: FakeKernel,
) -> None:
    seen: list[Ledger] = []
    kernel.on_write = lambda _path, _value: seen.append(ledger(kernel))
    make(kernel)
    assert kernel.writes == [(AUTOPROBE, "0"), (NUMVFS, "2")]
    assert seen == 2 * [Ledger(virtuals=(MADE,))]


def test_a_look_does_not_read_the_number(kernel: FakeKernel) -> None:
    kernel.unreadable(nodes.GPU, "sriov_numvfs")
    inventory, plan = node.make_plan(kernel.host, SETTINGS, TWO, Ledger())
    assert inventory.problems == ()
    assert len(plan.steps) == 1


def test_the_links_count_and_not_what_the_number_reads(kernel: FakeKernel) -> None:
    kernel.after_write = lambda _path, _value: kernel.tree.show(nodes.GPU, "sriov_numvfs", "7")
    assert not converge(kernel).report.failures
    assert not release(kernel).failures
    assert is_home(kernel)


def test_no_host_driver_takes_one_in_between(kernel: FakeKernel) -> None:
    kernel.add_driver("host", ids=[(0x8086, 0x56C0)])
    make(kernel)
    assert drivers(kernel) == [None, None]


def test_autoprobe_that_was_off_stays_off_in_the_end(kernel: FakeKernel) -> None:
    kernel.write(AUTOPROBE, "0")
    converge(kernel)
    assert not release(kernel).failures
    assert kernel.read(AUTOPROBE) == "0"
    assert ledger(kernel) == Ledger()


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        (AUTOPROBE, errno.EIO, "Input/output error"),
        (NUMVFS, errno.ENOMEM, "Cannot allocate memory"),
        (NUMVFS, errno.ENOENT, "it has no driver, or one that makes none; bind one that does"),
    ],
)
def test_a_failed_store_is_undone_and_not_tried_again_in_the_turn(
    kernel: FakeKernel, path: str, code: int, reason: str
) -> None:
    kernel.fail_write(lambda where, value: where == path and value != "1", code)
    turn = converge(kernel)
    (failure,) = turn.report.failures
    assert reason in str(failure.detail)
    assert is_home(kernel)
    assert ledger(kernel) == Ledger()
    (finding,) = turn.plan.refusals
    assert (finding.subject, finding.state) == (nodes.GPU, UnitState.FAILED)


def test_fewer_than_asked_for_are_removed_again(kernel: FakeKernel) -> None:
    kernel.stingy.add("xe")
    (failure,) = make(kernel).failures
    assert "cannot bring 0000:01:00.0 to 2 virtual functions: the write was accepted" in str(
        failure.detail
    )
    assert is_home(kernel)
    assert ledger(kernel) == Ledger()


def test_a_driver_that_ignores_the_number_is_found_out(kernel: FakeKernel) -> None:
    kernel.deaf.add("xe")
    (failure,) = make(kernel).failures
    assert "but it has 0" in str(failure.detail)
    assert kernel.writes == [(AUTOPROBE, "0"), (NUMVFS, "2"), (AUTOPROBE, "1")]
    assert ledger(kernel) == Ledger()


def test_what_cannot_be_undone_stays_in_the_ledger(kernel: FakeKernel) -> None:
    kernel.stingy.add("xe")
    kernel.fail_write(lambda path, value: (path, value) == (NUMVFS, "0"), errno.EIO)
    (failure,) = make(kernel).failures
    assert "cannot take back 2 virtual functions of 0000:01:00.0" in str(failure.detail)
    assert "after a failure: cannot bring" in str(failure.detail)
    assert ledger(kernel).virtuals == (MADE,)


def test_a_store_that_hangs_is_left_alone_with_what_it_is_about(kernel: FakeKernel) -> None:
    pid = 4_194_500

    def hang(path: str, value: str) -> None:
        if path == NUMVFS:
            kernel.tree.add_child(pid, path, value)
            raise StuckError(f"cannot wait longer for {path}", pid)

    kernel.on_write = hang
    turn = converge(kernel)
    assert [outcome.result for outcome in turn.report.outcomes] == [Result.FAILED]
    assert kernel.writes == [(AUTOPROBE, "0"), (NUMVFS, "2")]
    assert ledger(kernel).virtuals == (MADE,)
    (finding,) = turn.plan.refusals
    assert finding.state is UnitState.STUCK
    assert not release(kernel).outcomes
    kernel.tree.remove_process(pid)
    kernel.on_write = None
    kernel.write(NUMVFS, "2")  # it ends at last
    assert not converge(kernel).report.failures
    assert drivers(kernel) == ["vfio-pci", "vfio-pci"]
    assert not release(kernel).failures
    assert is_home(kernel)


def test_what_somebody_makes_between_look_and_step_is_theirs(kernel: FakeKernel) -> None:
    journal = journal_of(kernel.host)
    _, plan = node.make_plan(kernel.host, SETTINGS, TWO, journal.ledger)
    by_hand(kernel, 2)
    (failure,) = executor.execute(kernel.host, plan, journal).failures
    assert "meanwhile somebody else made 2" in str(failure.detail)
    assert virtuals(kernel) == [FIRST, SECOND]
    assert ledger(kernel) == Ledger()


def test_what_somebody_makes_the_moment_before_the_store_stays_too(kernel: FakeKernel) -> None:
    def come(path: str, _value: str) -> None:
        if path == NUMVFS:
            kernel.on_write = None
            by_hand(kernel, 1)

    kernel.on_write = come
    (failure,) = make(kernel).failures
    assert "Device or resource busy" in str(failure.detail)
    assert virtuals(kernel) == [FIRST]
    assert kernel.read(AUTOPROBE) == "1"
    assert ledger(kernel) == Ledger()


def test_a_parent_that_vanishes_meanwhile_leaves_nothing_in_the_ledger(kernel: FakeKernel) -> None:
    kernel.vanish_after_write(0, nodes.GPU)
    (failure,) = make(kernel).failures
    assert "sriov_drivers_autoprobe: No such file or directory" in str(failure.detail)
    assert ledger(kernel) == Ledger()


def test_one_parent_that_fails_does_not_stop_the_other(kernel: FakeKernel) -> None:
    kernel.add_device(
        "0000:02:00.0",
        vendor=0x8086,
        device=0x56C0,
        class_code=0x038000,
        driver="xe",
        parent="0000:00:02.0",
        total_vfs=4,
    )
    kernel.fail_write(lambda path, value: (path, value) == (NUMVFS, "2"), errno.EIO)
    turn = converge(kernel)
    assert [failure.unit for failure in turn.report.failures] == [nodes.GPU]
    assert "0000:02:00.2" in kernel.host.path(CDI).read_text()


# Another number


def test_another_number_comes_by_way_of_none(kernel: FakeKernel) -> None:
    make(kernel)
    turn = converge(kernel, asking_for(3))
    assert not turn.report.failures
    assert [value for path, value in kernel.writes if path == NUMVFS] == ["2", "0", "3"]
    assert drivers(kernel) == 3 * ["vfio-pci"]
    assert ledger(kernel).made(PARENT) == replace(MADE, count=3)
    assert not release(kernel).failures
    assert is_home(kernel)


def test_another_number_changes_nothing_for_those_that_are_offered(kernel: FakeKernel) -> None:
    converge(kernel)
    writes, spec = len(kernel.writes), kernel.host.path(CDI).read_text()
    with kernel.vm_holds(FIRST):
        turn = converge(kernel, asking_for(3))
    assert len(kernel.writes) == writes
    assert kernel.host.path(CDI).read_text() == spec
    (finding,) = turn.plan.refusals
    assert finding.severity is Severity.WAITING
    assert f"for {FIRST} is in use: qemu-system-x86" in finding.reason


def test_virtual_functions_of_a_refused_parent_say_why_they_are_not_bound(
    kernel: FakeKernel,
) -> None:
    by_hand(kernel, 1)
    turn = converge(kernel)
    described = node.describe(turn, SETTINGS, TWO, Ledger(), number=1, last_report=turn.report)
    (unit,) = described.units
    assert (unit.id, unit.state) == (FIRST, UnitState.REFUSED)
    assert "it has 1, which somebody else made" in unit.reason


# Removed


def test_a_release_removes_them_after_they_were_given_back(kernel: FakeKernel) -> None:
    converge(kernel)
    made = len(kernel.writes)
    assert not release(kernel).failures
    assert kernel.writes[made:][-2:] == [(NUMVFS, "0"), (AUTOPROBE, "1")]
    assert is_home(kernel)
    assert ledger(kernel) == Ledger()


def test_a_release_of_the_parent_is_one_of_all_that_it_has(kernel: FakeKernel) -> None:
    converge(kernel)
    assert not release(kernel, nodes.GPU).failures
    assert is_home(kernel)
    assert ledger(kernel).entries == ()
    assert ledger(kernel).virtuals == ()


def test_a_release_of_one_leaves_it_there(kernel: FakeKernel) -> None:
    converge(kernel)
    assert not release(kernel, FIRST).failures
    assert virtuals(kernel) == [FIRST, SECOND]
    assert drivers(kernel) == [None, "vfio-pci"]
    assert ledger(kernel).virtuals == (MADE,)


def test_what_others_made_is_given_back_and_stays(kernel: FakeKernel) -> None:
    by_hand(kernel, 2)
    assert not converge(kernel).report.failures
    assert not release(kernel, nodes.GPU).failures
    assert virtuals(kernel) == [FIRST, SECOND]
    assert drivers(kernel) == ["xe", "xe"]
    assert ledger(kernel).entries == ()


def test_a_parent_without_anything_of_ours_cannot_be_released(kernel: FakeKernel) -> None:
    by_hand(kernel, 2)
    with pytest.raises(HostError, match="not ours"):
        release_plan(kernel, nodes.GPU)


def test_while_a_vm_has_one_they_all_stay(kernel: FakeKernel) -> None:
    converge(kernel)
    with kernel.vm_holds(FIRST):
        plan = release_plan(kernel)
        assert not release(kernel).failures
    assert [finding.subject for finding in plan.refusals] == [FIRST, nodes.GPU]
    assert {finding.severity for finding in plan.refusals} == {Severity.WAITING}
    assert virtuals(kernel) == [FIRST, SECOND]
    assert drivers(kernel) == ["vfio-pci", None]
    assert not release(kernel).failures
    assert is_home(kernel)


def test_where_one_cannot_be_given_back_none_is_removed(kernel: FakeKernel) -> None:
    converge(kernel)
    kernel.fail_write(lambda path, value: path.endswith("unbind") and value == FIRST, errno.EIO)
    results = {outcome.step: outcome.result for outcome in release(kernel).outcomes}
    assert results["remove the virtual functions of 0000:01:00.0"] is Result.SKIPPED
    assert virtuals(kernel) == [FIRST, SECOND]


def test_who_takes_one_before_the_removal_keeps_it(kernel: FakeKernel) -> None:
    make(kernel)
    card = kernel.tree.show_device(FIRST, "drm/card0", "dri/card0", "/dev/full")
    writes = len(kernel.writes)
    with kernel.process("Xorg", card):
        (failure,) = remove(kernel).failures
    assert failure.result is Result.HELD
    assert "Xorg (pid" in str(failure.detail)
    assert len(kernel.writes) == writes
    assert ledger(kernel).virtuals == (MADE,)


def test_one_that_got_a_driver_before_the_removal_keeps_it(kernel: FakeKernel) -> None:
    converge(kernel)
    (failure,) = remove(kernel).failures
    assert failure.result is Result.HELD
    assert f"{FIRST} is on vfio-pci" in str(failure.detail)
    assert drivers(kernel) == ["vfio-pci", "vfio-pci"]


def test_another_number_than_we_made_is_not_removed(kernel: FakeKernel) -> None:
    make(kernel)
    by_hand(kernel, 1)
    (failure,) = remove(kernel).failures
    assert "there are 1, and we made 2; somebody else changed that" in str(failure.detail)
    assert virtuals(kernel) == [FIRST]


def test_what_is_not_ours_is_not_removed(kernel: FakeKernel) -> None:
    by_hand(kernel, 2)
    (failure,) = remove(kernel).failures
    assert "they are not ours" in str(failure.detail)
    assert virtuals(kernel) == [FIRST, SECOND]


@pytest.mark.parametrize("path", [NUMVFS, AUTOPROBE])
def test_a_removal_that_failed_is_still_to_be_done(kernel: FakeKernel, path: str) -> None:
    make(kernel)
    broken = [True]
    kernel.fail_write(lambda where, _value: where == path and broken[0], errno.EIO)
    assert len(release(kernel).failures) == 1
    assert ledger(kernel).virtuals == (MADE,)
    broken[0] = False
    assert not release(kernel).failures
    assert is_home(kernel)
    assert ledger(kernel) == Ledger()


def test_a_removal_that_only_claims_success_is_found_out(kernel: FakeKernel) -> None:
    make(kernel)
    kernel.deaf.add("xe")
    (failure,) = release(kernel).failures
    assert "cannot bring 0000:01:00.0 to 0 virtual functions" in str(failure.detail)
    assert ledger(kernel).virtuals == (MADE,)


# The parent


def test_the_parent_of_virtual_functions_is_not_given_back(kernel: FakeKernel) -> None:
    vfio = Binding(driver="vfio-pci", override="vfio-pci")
    parent = replace(
        function(nodes.GPU, binding=vfio), sriov=PhysicalFunction(total_vfs=4, active_vfs=2)
    )
    original = OriginalFunction(
        address=PARENT, vendor=0x10DE, device=0x2330, original=Binding("nvidia", None)
    )
    entry = LedgerEntry(unit=nodes.GPU, stage=Stage.BOUND, functions=(original,))
    plan = planner.release(
        inventory_of(parent), Ledger(entries=(entry,)), cdi_directory=SETTINGS.cdi_directory
    )
    assert plan.steps == ()
    assert "has 2 virtual functions, which would be lost with its driver" in str(plan.refusals[0])


# Somebody else's hand, while the agent runs


async def after_a_removal(kernel: FakeKernel, agent: Agent) -> dict[str, Any]:
    """Remove the virtual functions by another's hand and return what the next turn says."""
    number = (await agent.status())["pass_number"]
    kernel.write(NUMVFS, "0")
    agent.events.tell()
    return await agent.turn(number + 1)


def with_blueprint(kernel: FakeKernel, text: str) -> FakeKernel:
    kernel.host.path(SETTINGS.blueprint).parent.mkdir(parents=True)
    write_blueprint(kernel, text.replace("mode =", "virtual_functions = 2\nmode ="))
    return kernel


def test_what_somebody_removes_is_made_again_until_that_is_a_fight(
    kernel: FakeKernel, events: Events
) -> None:
    async def script(agent: Agent) -> None:
        for _ in range(3):
            status = await after_a_removal(kernel, agent)
            assert [unit["state"] for unit in status["units"]] == 2 * ["available"]
        status = await after_a_removal(kernel, agent)
        reasons = {found["subject"]: found["reason"] for found in status["findings"]}
        assert reasons[nodes.GPU].startswith("foreign writer: another program undid it 3 times")
        assert virtuals(kernel) == []
        assert not kernel.host.path(CDI).exists()

    run(with_blueprint(kernel, TEXT), events, script)


def test_what_somebody_removes_is_only_reported_where_the_blueprint_says_so(
    kernel: FakeKernel, events: Events
) -> None:
    async def script(agent: Agent) -> None:
        await after_a_removal(kernel, agent)
        status = await after_a_removal(kernel, agent)
        reasons = {found["subject"]: found["reason"] for found in status["findings"]}
        assert reasons[nodes.GPU] == (
            "it had 2 virtual functions when it was put in order, and has 0"
        )
        assert virtuals(kernel) == []

    report = TEXT.replace("schema = 1", 'schema = 1\ndrift = "report"')
    run(with_blueprint(kernel, report), events, script)


# A sudden end


class Killed(BaseException):
    """The end of the process, which no handler sees."""


ONE: Final = asking_for(1)


def make_one(kernel: FakeKernel) -> Report:
    return converge(kernel, ONE).report


def kill(kernel: FakeKernel, stores: int, act: Callable[[FakeKernel], Report]) -> None:
    """Let the process end after that many stores of *act*; before the first with none."""
    last = len(kernel.writes) + stores

    def end(_path: str, _value: str) -> None:
        if len(kernel.writes) == last + (not stores):  # it is noted before it is stored
            raise Killed

    kernel.on_write, kernel.after_write = (None, end) if stores else (end, None)
    with pytest.raises(Killed):
        act(kernel)
    kernel.on_write = kernel.after_write = None


def expect(kernel: FakeKernel, then: Callable[[FakeKernel], Report]) -> None:
    assert not then(kernel).failures
    if then is release:
        assert is_home(kernel)
        assert ledger(kernel) == Ledger()
    else:
        assert drivers(kernel) == ["vfio-pci"]
        assert ledger(kernel).made(PARENT) == replace(MADE, count=1)
        assert FIRST in kernel.host.path(CDI).read_text()
        expect(kernel, release)


@pytest.mark.parametrize("then", [make_one, release])
@pytest.mark.parametrize("stores", range(5))
def test_a_making_that_was_cut_off_is_finished_or_undone(
    kernel: FakeKernel, stores: int, then: Callable[[FakeKernel], Report]
) -> None:
    kill(kernel, stores, make_one)
    assert ledger(kernel).made(PARENT) == replace(MADE, count=1)
    expect(kernel, then)


@pytest.mark.parametrize("then", [make_one, release])
@pytest.mark.parametrize("stores", range(5))
def test_a_removal_that_was_cut_off_is_finished_or_made_again(
    kernel: FakeKernel, stores: int, then: Callable[[FakeKernel], Report]
) -> None:
    make_one(kernel)
    kill(kernel, stores, release)
    assert ledger(kernel).made(PARENT) == replace(MADE, count=1)
    expect(kernel, then)


@pytest.mark.parametrize("stores", range(6))
def test_a_change_of_number_that_was_cut_off_is_finished(kernel: FakeKernel, stores: int) -> None:
    make(kernel)
    kill(kernel, stores, make_one)
    expect(kernel, make_one)
