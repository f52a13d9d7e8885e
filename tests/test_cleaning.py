"""Between two tenants a unit is reset and looked at; what cannot be is kept from everybody."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.act.journal import Journal
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.model.ledger import LedgerEntry
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.report import Result, UnitStatus
from kata_gpu.model.unit import UnitState
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, journal_of

AS_BEFORE: Final = "ids, BARs and link are as before"
RESET: Final = f"bus/pci/devices/{nodes.GPU}/reset"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.single_gpu(tmp_path)


def converge(kernel: FakeKernel, *, opened: frozenset[str] = frozenset()) -> Turn:
    journal = journal_of(kernel.host)
    return node.converge(kernel.host, SETTINGS, EVERY_GPU, journal, opened=opened)


def status(kernel: FakeKernel, turn: Turn) -> UnitStatus:
    ledger = journal_of(kernel.host).ledger
    described = node.describe(turn, SETTINGS, EVERY_GPU, ledger, number=1, last_report=turn.report)
    return described.units[0]


def entry(kernel: FakeKernel) -> LedgerEntry:
    found = journal_of(kernel.host).ledger.entry(nodes.GPU)
    assert found is not None
    return found


def is_offered(kernel: FakeKernel) -> bool:
    spec = kernel.host.path(CDI)
    return spec.exists() and nodes.GPU in spec.read_text()


@contextmanager
def used(kernel: FakeKernel) -> Iterator[None]:
    """Bind the GPU and let a VM have it, as the agent sees, until the end of the block."""
    converge(kernel)
    with kernel.vm_holds(nodes.GPU):
        converge(kernel)
        yield


def test_a_unit_that_a_vm_has_is_in_use_and_stays_offered(kernel: FakeKernel) -> None:
    with used(kernel):
        turn = converge(kernel)
        found = status(kernel, turn)
        assert turn.report.outcomes == ()
    assert found.state is UnitState.IN_USE
    assert [holder.command for holder in found.holders] == ["qemu-system-x86"]
    assert found.nodes == ("/dev/vfio/1",)
    assert entry(kernel).is_used
    assert is_offered(kernel)


def test_its_use_is_noted_once(kernel: FakeKernel) -> None:
    converge(kernel)
    with kernel.vm_holds(nodes.GPU):
        first, second = converge(kernel), converge(kernel)
    assert [outcome.step for outcome in first.report.outcomes] == [
        "note that unit 0000:01:00.0 is in use"
    ]
    assert second.report.outcomes == ()


def test_when_its_vm_has_gone_it_is_withdrawn_reset_and_offered_again(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    offered: list[bool] = []
    kernel.on_write = lambda path, _: offered.append(is_offered(kernel)) if path == RESET else None
    turn = converge(kernel)
    assert offered == [False]
    assert not turn.report.failures
    found = status(kernel, turn)
    assert found.state is UnitState.AVAILABLE
    assert found.cleaned is not None
    assert found.cleaned.method == "0000:01:00.0 flr/bus"
    assert found.cleaned.result == f"{AS_BEFORE}; 0000:01:00.0 boot state 0x180000a1"
    assert not entry(kernel).is_used
    assert converge(kernel).report.outcomes == ()


def test_who_was_only_seen_to_open_it_was_a_user_too(kernel: FakeKernel) -> None:
    converge(kernel)
    turn = converge(kernel, opened=frozenset({nodes.GPU}))
    assert [outcome.step for outcome in turn.report.outcomes][:1] == [
        "note that unit 0000:01:00.0 is in use"
    ]
    converge(kernel)
    assert (RESET, "1") in kernel.writes


def test_a_use_that_ended_while_no_agent_ran_is_cleaned_after(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    assert entry(kernel).is_used
    converge(kernel)
    assert not entry(kernel).is_used


def test_who_opened_it_again_and_has_gone_is_no_reason_to_wait(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    converge(kernel, opened=frozenset({nodes.GPU}))
    assert (RESET, "1") in kernel.writes
    assert not entry(kernel).is_used


def test_a_use_is_noted_of_a_unit_that_is_to_be_bound_again(kernel: FakeKernel) -> None:
    converge(kernel)
    kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.GPU)
    converge(kernel, opened=frozenset({nodes.GPU}))
    assert (RESET, "1") in kernel.writes
    assert is_offered(kernel)


def test_a_use_is_noted_of_a_unit_that_waits_for_its_user(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path, reset_methods=("flr",))
    converge(kernel)
    kernel.write("bus/pci/drivers/vfio-pci/unbind", nodes.AUDIO)
    with kernel.vm_holds(nodes.GPU):
        assert converge(kernel).plan.refusals
    assert entry(kernel).is_used
    converge(kernel)
    assert (RESET, "1") in kernel.writes


def turn_to_ones(kernel: FakeKernel) -> None:
    """Let the device answer nothing but ones after its reset."""

    def break_it(path: str, _value: str) -> None:
        if path == RESET:
            kernel.tree.show_config(nodes.GPU, b"\xff" * 64)

    kernel.after_write = break_it


def refuse_the_reset(kernel: FakeKernel) -> None:
    kernel.fail_write(lambda path, _value: path == RESET, errno.ENOTTY)


def slow_the_link(kernel: FakeKernel) -> None:
    def slow(path: str, _value: str) -> None:
        if path == RESET:
            kernel.tree.show(nodes.GPU, "current_link_width", "4")

    kernel.after_write = slow


def come_back_with(kernel: FakeKernel, memory: bytes) -> None:
    """Let the device come back with its configuration space, and its memory begin with this."""

    def show(path: str, _value: str) -> None:
        if path == RESET:
            kernel.tree.show_memory(nodes.GPU, memory)

    kernel.after_write = show


def fall_off_the_bus(kernel: FakeKernel) -> None:
    come_back_with(kernel, b"\xff" * 4)


def fail_to_start(kernel: FakeKernel) -> None:
    come_back_with(kernel, bytes.fromhex("0011d0ba"))


FAULTS: Final[list[tuple[Callable[[FakeKernel], None], str]]] = [
    (turn_to_ones, "after its reset its vendor and device id reads ffffffff"),
    (refuse_the_reset, "Inappropriate ioctl"),
    (slow_the_link, "after its reset its link is 32.0 GT/s PCIe x4, and before"),
    (fall_off_the_bus, "after its reset its boot state reads 0xffffffff"),
    (fail_to_start, "after its reset its boot state reads 0xbad01100"),
]


@pytest.mark.parametrize(
    ("fault", "evidence"), FAULTS, ids=["ones", "refused", "link", "off-the-bus", "no-start"]
)
def test_what_is_not_as_before_is_quarantined_with_the_evidence(
    kernel: FakeKernel, fault: Callable[[FakeKernel], None], evidence: str
) -> None:
    with used(kernel):
        pass
    fault(kernel)
    turn = converge(kernel)
    found = status(kernel, turn)
    assert found.state is UnitState.QUARANTINED
    assert evidence in found.reason
    assert found.cleaned is not None
    assert evidence in found.cleaned.result
    assert found.nodes == ()
    assert not is_offered(kernel)
    writes = len(kernel.writes)
    assert status(kernel, converge(kernel)).state is UnitState.QUARANTINED
    assert len(kernel.writes) == writes


def test_a_gpu_that_starts_slowly_is_waited_for(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    kernel.looks_before_start = 2
    found = status(kernel, converge(kernel))
    assert found.state is UnitState.AVAILABLE
    assert found.cleaned is not None
    assert found.cleaned.result.endswith("boot state 0x180000a1")


def test_what_only_has_a_gpus_ids_is_no_failure(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    come_back_with(kernel, bytes(4))
    found = status(kernel, converge(kernel))
    assert found.state is UnitState.AVAILABLE
    assert found.cleaned is not None
    assert found.cleaned.result.endswith("boot state 0x00000000")


def stay_asleep(kernel: FakeKernel) -> None:
    control = f"bus/pci/devices/{nodes.GPU}/power/control"
    kernel.fail_write(lambda path, _value: path == control, errno.EIO)


def stop_decoding(kernel: FakeKernel) -> None:
    header = kernel.head(f"bus/pci/devices/{nodes.GPU}/config", 4)
    kernel.tree.show_config(nodes.GPU, header + b"\0\0")


def lock_down(kernel: FakeKernel) -> None:
    kernel.is_locked_down = True


@pytest.mark.parametrize(
    ("prevent", "why"),
    [
        (stay_asleep, "its power state is D3hot"),
        (stop_decoding, "it does not decode its memory"),
        (lock_down, "Operation not permitted"),
    ],
    ids=["asleep", "no-memory", "lockdown"],
)
def test_a_boot_state_that_cannot_be_read_is_no_failure_and_is_told(
    kernel: FakeKernel, prevent: Callable[[FakeKernel], None], why: str
) -> None:
    with used(kernel):
        pass
    prevent(kernel)
    found = status(kernel, converge(kernel))
    assert found.state is UnitState.AVAILABLE
    assert found.cleaned is not None
    assert found.cleaned.result.startswith(f"{AS_BEFORE}; 0000:01:00.0 boot state not read: ")
    assert found.cleaned.result.endswith(why)


def test_of_another_vendors_gpu_no_boot_state_is_asked(tmp_path: Path) -> None:
    kernel = nodes.three_vendors(tmp_path)
    converge(kernel)
    with kernel.vm_holds(nodes.AMD_GPU):
        converge(kernel)
    converge(kernel)
    found = journal_of(kernel.host).ledger.entry(nodes.AMD_GPU)
    assert found is not None
    assert found.cleaned is not None
    assert found.cleaned.result == AS_BEFORE


def test_without_a_way_to_reset_it_nobody_gets_it_after_its_first_tenant(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    kernel.add_device(
        nodes.GPU,
        vendor=0x10DE,
        device=0x2330,
        class_code=0x030200,
        driver="nvidia",
        reset_methods=(),
    )
    with used(kernel):
        pass
    turn = converge(kernel)
    found = status(kernel, turn)
    assert found.state is UnitState.QUARANTINED
    assert "the kernel has no way to reset 0000:01:00.0" in found.reason
    assert not is_offered(kernel)
    assert [path for path, _ in kernel.writes if path.endswith("/reset")] == []


def test_a_companion_without_a_reset_is_no_reason_to_quarantine(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path, reset_methods=("flr",))
    with used(kernel):
        pass
    found = status(kernel, converge(kernel))
    assert found.state is UnitState.AVAILABLE
    assert found.cleaned is not None
    assert "0000:01:00.1 none" in found.cleaned.method


def test_who_has_it_again_before_the_reset_keeps_it(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    journal = journal_of(kernel.host)
    _, plan = node.make_plan(kernel.host, SETTINGS, EVERY_GPU, journal.ledger)
    with kernel.vm_holds(nodes.GPU):
        report = executor.execute(kernel.host, plan, journal)
    assert [outcome.result for outcome in report.outcomes] == [
        Result.DONE,
        Result.HELD,
        Result.SKIPPED,
    ]
    assert (RESET, "1") not in kernel.writes
    assert entry(kernel).quarantine is None
    assert entry(kernel).is_used


def test_a_cleared_unit_is_offered_again(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    refuse_the_reset(kernel)
    converge(kernel)
    node.clear(journal_of(kernel.host), nodes.GPU)
    assert status(kernel, converge(kernel)).state is UnitState.AVAILABLE
    found = entry(kernel).cleaned
    assert found is not None
    assert found.method == "none"
    assert found.result.startswith("cleared by an admin; it was in quarantine: cannot write")


def test_a_unit_in_quarantine_can_be_given_back(kernel: FakeKernel) -> None:
    with used(kernel):
        pass
    refuse_the_reset(kernel)
    converge(kernel)
    journal = Journal(kernel.host.path(SETTINGS.ledger))
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    assert not executor.execute(kernel.host, plan, journal).failures
    assert journal.ledger.entries == ()


def test_an_adopted_unit_is_cleaned_before_it_is_offered(kernel: FakeKernel) -> None:
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    kernel.write(f"bus/pci/devices/{nodes.GPU}/driver_override", "vfio-pci")
    kernel.write("bus/pci/drivers/nvidia/unbind", nodes.GPU)
    kernel.write("bus/pci/drivers/vfio-pci/bind", nodes.GPU)
    selector = replace(EVERY_GPU.pools[0].selectors[0], address=PciAddress.parse(nodes.GPU))
    adopting = replace(EVERY_GPU, pools=(replace(EVERY_GPU.pools[0], selectors=(selector,)),))
    turn = node.converge(kernel.host, SETTINGS, adopting, journal_of(kernel.host))
    assert [outcome.step.split(" (")[0] for outcome in turn.report.outcomes] == [
        "verify unit 0000:01:00.0",
        "clean unit 0000:01:00.0",
        f"write {CDI}",
    ]
