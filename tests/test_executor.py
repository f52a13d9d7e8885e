"""Steps are taken in order and announced in the ledger; an end at any moment can be mended."""

import errno
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import binding, executor
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.errors import HostError
from kata_gpu.host import Host, leftovers
from kata_gpu.model.blueprint import Mode
from kata_gpu.model.ledger import Ledger, LedgerEntry, Stage
from kata_gpu.model.pci import Binding, PciAddress
from kata_gpu.model.plan import Plan, RemoveFile, Severity, Step, WriteFile
from kata_gpu.model.report import Outcome, Report, Result
from kata_gpu.model.unit import UnitState
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, journal_of

GPU: Final = PciAddress.parse(nodes.GPU)
AUDIO: Final = PciAddress.parse(nodes.AUDIO)
VFIO: Final = Binding(driver="vfio-pci", override="vfio-pci")
HOME: Final = {
    GPU: Binding(driver="nvidia", override=None),
    AUDIO: Binding(driver="snd_hda_intel", override=None),
}
NODES: Final[dict[str, Callable[[Path], FakeKernel]]] = {
    "single_gpu": nodes.single_gpu,
    "gpu_with_audio": nodes.gpu_with_audio,
}
MOMENTS: Final = [
    *(pytest.param("single_gpu", stores, id=f"single-{stores}") for stores in range(4)),
    *(pytest.param("gpu_with_audio", stores, id=f"audio-{stores}") for stores in range(7)),
]


class Killed(BaseException):
    """The end of the process, which no handler sees."""


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.single_gpu(tmp_path)


def bind(kernel: FakeKernel) -> Report:
    return converge(kernel).report


def converge(kernel: FakeKernel) -> Turn:
    return node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))


def release(kernel: FakeKernel) -> Report:
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    return executor.execute(kernel.host, plan, journal)


def entry(kernel: FakeKernel) -> LedgerEntry | None:
    """Return what the ledger on disk says of the GPU."""
    return journal_of(kernel.host).ledger.entry(nodes.GPU)


def state(kernel: FakeKernel) -> dict[PciAddress, Binding]:
    return {a: binding.read(kernel, a) for a in HOME if kernel.exists(f"bus/pci/devices/{a}")}


def is_home(kernel: FakeKernel) -> bool:
    return all(HOME[address] == now for address, now in state(kernel).items())


def originals(kernel: FakeKernel) -> dict[PciAddress, Binding]:
    found = entry(kernel)
    assert found is not None
    return {function.address: function.original for function in found.functions}


def kill(kernel: FakeKernel, stores: int, act: Callable[[FakeKernel], Report]) -> None:
    """Let the process end when *act* has made that many stores."""
    last = len(kernel.writes) + stores

    def end(_path: str, _value: str) -> None:
        if len(kernel.writes) == last:
            raise Killed

    def end_before(_path: str, _value: str) -> None:
        if len(kernel.writes) == last + 1:  # it is noted before it is stored
            raise Killed

    kernel.on_write, kernel.after_write = (None, end) if stores else (end_before, None)
    with pytest.raises(Killed):
        act(kernel)
    kernel.on_write = kernel.after_write = None


def take(kernel: FakeKernel, *steps: Step) -> Report:
    return executor.execute(
        kernel.host, Plan(blueprint="test", steps=steps), journal_of(kernel.host)
    )


def meanwhile(kernel: FakeKernel, change: Callable[[], None]) -> Report:
    """Converge, with a change to the host between the plan and the first move."""

    def run(argv: Sequence[str], *, timeout_s: float) -> str:
        change()
        return kernel.run(argv, timeout_s=timeout_s)

    host = replace(kernel.host, run=run)
    return node.converge(host, SETTINGS, EVERY_GPU, journal_of(kernel.host)).report


# The ledger


def test_the_ledger_says_what_will_be_done_before_the_first_write(kernel: FakeKernel) -> None:
    seen: list[LedgerEntry | None] = []
    kernel.on_write = lambda _path, _value: seen.append(entry(kernel))
    bind(kernel)
    assert seen[0] is not None
    assert seen[0].stage is Stage.BINDING
    assert [function.original for function in seen[0].functions] == [HOME[GPU]]


def test_after_success_the_unit_is_bound_and_published(kernel: FakeKernel) -> None:
    report = bind(kernel)
    assert [outcome.result for outcome in report.outcomes] == [Result.DONE] * 3
    assert state(kernel) == {GPU: VFIO}
    found = entry(kernel)
    assert found is not None
    assert found.stage is Stage.BOUND
    assert journal_of(kernel.host).ledger.files == (CDI,)
    assert f'"{nodes.GPU}"' in kernel.host.path(CDI).read_text()


def test_a_release_is_announced_too_and_leaves_nothing(kernel: FakeKernel) -> None:
    bind(kernel)
    seen: list[LedgerEntry | None] = []
    kernel.on_write = lambda _path, _value: seen.append(entry(kernel))
    release(kernel)
    assert {found.stage for found in seen if found} == {Stage.RELEASING}
    assert is_home(kernel)
    assert journal_of(kernel.host).ledger == Ledger()
    assert not kernel.host.path(CDI).exists()


def test_the_offer_is_withdrawn_before_the_driver_is_taken(kernel: FakeKernel) -> None:
    bind(kernel)
    offered: list[bool] = []
    kernel.on_write = lambda _path, _value: offered.append(kernel.host.path(CDI).exists())
    release(kernel)
    assert offered == [False] * 3


@pytest.mark.parametrize("index", range(3), ids=["override", "unbind", "bind"])
def test_after_a_failed_move_the_ledger_is_as_before(kernel: FakeKernel, index: int) -> None:
    kernel.fail_write(index, errno.EIO)
    (failure,) = bind(kernel).failures
    assert "Input/output error" in str(failure.detail)
    assert journal_of(kernel.host).ledger == Ledger()
    assert is_home(kernel)
    assert not kernel.host.path(CDI).exists()


def test_after_a_failed_release_the_unit_is_still_ours(kernel: FakeKernel) -> None:
    bind(kernel)
    before = entry(kernel)
    kernel.fail_write(lambda path, _value: path.endswith("nvidia/bind"), errno.EIO)
    assert [failure.unit for failure in release(kernel).failures] == [nodes.GPU]
    assert entry(kernel) == before
    assert state(kernel) == {GPU: VFIO}


def test_after_a_failed_rollback_the_ledger_says_binding_with_the_originals(
    kernel: FakeKernel,
) -> None:
    kernel.deaf.update({"vfio-pci", "nvidia"})
    (failure,) = bind(kernel).failures
    assert "cannot return 0000:01:00.0 to nvidia" in str(failure.detail)
    found = entry(kernel)
    assert found is not None
    assert found.stage is Stage.BINDING
    assert originals(kernel) == {GPU: HOME[GPU]}


def test_a_ledger_that_cannot_be_written_stops_the_move(kernel: FakeKernel) -> None:
    journal = journal_of(kernel.host)
    kernel.host.path(SETTINGS.state_directory).parent.mkdir(parents=True)
    kernel.host.path(SETTINGS.state_directory).touch()
    turn = node.converge(kernel.host, SETTINGS, EVERY_GPU, journal)
    assert "cannot write" in str(turn.report.failures[0].detail)
    assert kernel.writes == []


# Steps


def test_steps_that_need_a_failed_one_are_skipped_and_nothing_is_written(
    kernel: FakeKernel,
) -> None:
    def refuse(argv: Sequence[str], *, timeout_s: float) -> str:
        raise HostError(f"cannot run {argv[0]} in {timeout_s} s: Module vfio-pci not found")

    host = Host(root=kernel.host.root, sysfs=kernel, run=refuse)
    report = node.converge(host, SETTINGS, EVERY_GPU, journal_of(host)).report
    assert [outcome.result for outcome in report.outcomes[:3]] == [
        Result.FAILED,
        Result.SKIPPED,
        Result.SKIPPED,
    ]
    assert "Module vfio-pci not found" in str(report.outcomes[0].detail)
    assert report.outcomes[1].detail == "it needs step 1, which was not done"
    assert kernel.writes == []
    assert not kernel.host.path(SETTINGS.ledger).exists()


def test_a_module_without_its_driver_has_failed(kernel: FakeKernel) -> None:
    host = Host(root=kernel.host.root, sysfs=kernel, run=lambda _argv, timeout_s: "")
    turn = node.converge(host, SETTINGS, EVERY_GPU, journal_of(host))
    assert "it loaded, but it registered no PCI driver" in str(turn.report.failures[0].detail)
    assert kernel.writes == []


def test_one_unit_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    kernel = nodes.three_vendors(tmp_path)
    kernel.fail_write(lambda path, _value: path.endswith("amdgpu/unbind"), errno.EIO)
    report = bind(kernel)
    assert [failure.unit for failure in report.failures] == [nodes.AMD_GPU]
    spec = kernel.host.path(CDI).read_text()
    assert nodes.GPU in spec
    assert nodes.INTEL_GPU in spec
    assert nodes.AMD_GPU not in spec


def test_progress_is_told_of_each_step_at_its_start_and_its_end(kernel: FakeKernel) -> None:
    told: list[tuple[int, Result | None]] = []

    def tell(number: int, _step: Step, outcome: Outcome | None) -> None:
        told.append((number, outcome.result if outcome else None))

    journal = journal_of(kernel.host)
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal, progress=tell)
    assert told == [(n, end) for n in (1, 2, 3) for end in (None, Result.DONE)]


def test_units_move_side_by_side_each_in_its_own_order(tmp_path: Path) -> None:
    kernel = nodes.eight_gpus(tmp_path)
    kernel.delay = lambda path, _value: 0.1 if path.endswith("/unbind") else 0.0
    started = time.monotonic()
    assert not bind(kernel).failures
    assert time.monotonic() - started < 8 * 0.1
    stores = [(path.rpartition("/")[2], value) for path, value in kernel.writes]
    for gpu in nodes.EIGHT_GPUS:
        assert [name for name, value in stores if value == gpu] == ["unbind", "bind"]
    assert len(journal_of(kernel.host).ledger.entries) == 8


def test_a_lane_that_hangs_holds_no_other(tmp_path: Path) -> None:
    kernel = nodes.eight_gpus(tmp_path)
    hold_on(kernel, nodes.EIGHT_GPUS[0], "nvidia/unbind")
    (failure,) = bind(kernel).failures
    assert failure.unit == nodes.EIGHT_GPUS[0]
    spec = kernel.host.path(CDI).read_text()
    assert [gpu in spec for gpu in nodes.EIGHT_GPUS] == [False] + 7 * [True]
    let_go(kernel, nodes.EIGHT_GPUS[0])


def test_without_its_device_node_a_unit_is_not_offered(kernel: FakeKernel) -> None:
    def hide(path: str, _value: str) -> None:
        if path.endswith("vfio-pci/bind"):
            group = kernel.link(f"bus/pci/devices/{GPU}/iommu_group")
            kernel.host.path(f"/dev/vfio/{group}").unlink()

    kernel.after_write = hide
    (failure,) = bind(kernel).failures
    assert "mount the host's /dev/vfio into the agent" in str(failure.detail)
    assert not kernel.host.path(CDI).exists()
    found = entry(kernel)
    assert found is not None
    assert found.stage is Stage.BINDING


def test_a_file_is_ours_before_it_is_there(kernel: FakeKernel) -> None:
    kernel.host.path("/etc/ours").mkdir(parents=True)
    step = WriteFile(path="/etc/ours", staging="/etc", content="x", is_new=True, reason="test")
    (failure,) = take(kernel, step).failures
    assert "cannot write" in str(failure.detail)
    assert journal_of(kernel.host).ledger.files == ("/etc/ours",)


def test_a_file_that_is_removed_is_ours_no_more(kernel: FakeKernel) -> None:
    step = WriteFile(path="/etc/ours", staging="/etc", content="x", is_new=True, reason="test")
    take(kernel, step)
    assert kernel.host.path("/etc/ours").read_text() == "x"
    assert not take(kernel, RemoveFile(path="/etc/ours", reason="test")).failures
    assert not kernel.host.path("/etc/ours").exists()
    assert journal_of(kernel.host).ledger == Ledger()


@pytest.mark.parametrize("then", [bind, release])
def test_a_file_that_is_noted_and_not_there_is_written_or_forgotten(
    kernel: FakeKernel, then: Callable[[FakeKernel], Report]
) -> None:
    bind(kernel)
    kernel.host.path(CDI).unlink()
    assert not then(kernel).failures
    assert journal_of(kernel.host).ledger.files == ((CDI,) if then is bind else ())


# Holders


def test_a_unit_that_a_vm_has_is_not_touched_and_its_user_is_named(kernel: FakeKernel) -> None:
    bind(kernel)
    before, writes = entry(kernel), len(kernel.writes)
    with kernel.vm_holds(nodes.GPU):
        plan = node.make_release(kernel.host, SETTINGS, journal_of(kernel.host).ledger, None)
        assert not release(kernel).outcomes
    assert plan.steps == ()
    (finding,) = plan.refusals
    assert finding.severity is Severity.WAITING
    assert "it is in use: qemu-system-x86 (pid 41" in str(finding)
    assert "it is moved when they are gone" in str(finding)
    assert len(kernel.writes) == writes
    assert entry(kernel) == before


def test_a_unit_is_released_when_its_vm_has_ended(kernel: FakeKernel) -> None:
    bind(kernel)
    with kernel.vm_holds(nodes.GPU):
        release(kernel)
    assert not release(kernel).failures
    assert is_home(kernel)


def test_a_gpu_that_a_display_server_has_is_not_touched(kernel: FakeKernel) -> None:
    card = kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    with kernel.process("Xorg", card) as pid:
        (finding,) = converge(kernel).plan.refusals
    assert f"Xorg (pid {pid}, user 0) has /dev/dri/card0 open" in str(finding)
    assert kernel.writes == []
    assert journal_of(kernel.host).ledger == Ledger()


def test_a_gpu_that_a_cuda_program_has_is_not_touched(kernel: FakeKernel) -> None:
    kernel.tree.text("proc/devices", "Character devices:\n  1 nvidia\n")  # as /dev/full's
    kernel.tree.text(f"proc/driver/nvidia/gpus/{GPU}/information", "Device Minor: \t 7\n")
    with kernel.process("python3", Path("/dev/full")) as pid:
        (finding,) = converge(kernel).plan.refusals
    assert f"python3 (pid {pid}, user 0) has /dev/nvidia7 open" in str(finding)
    assert kernel.writes == []


def test_where_processes_cannot_be_listed_nothing_is_taken(kernel: FakeKernel) -> None:
    kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    elsewhere = kernel.host.path("/proc").rename(kernel.host.root / "elsewhere")
    with pytest.raises(HostError, match="cannot list"):
        bind(kernel)
    assert elsewhere.exists()
    assert kernel.writes == []


def test_who_comes_between_the_look_and_the_unbind_keeps_the_device(kernel: FakeKernel) -> None:
    card = kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    with ExitStack() as stack:

        def come(path: str, _value: str) -> None:
            if path.endswith("driver_override"):
                kernel.after_write = None
                stack.enter_context(kernel.process("Xorg", card))

        kernel.after_write = come
        turn = converge(kernel)
        (outcome,) = (o for o in turn.report.outcomes if o.result is Result.HELD)
    assert "cannot move it: Xorg (pid 41" in str(outcome.detail)
    assert is_home(kernel)
    assert journal_of(kernel.host).ledger == Ledger()
    assert turn.failed[nodes.GPU].state is UnitState.WAITING
    assert not bind(kernel).failures


# Stores that hang


def hold_on(kernel: FakeKernel, gpu: str = nodes.GPU, store: str = "vfio-pci/unbind") -> None:
    """Let a user come in the moment before the unbind, when nobody can see it."""
    kernel.patience_s = 0.02

    def take(path: str, value: str) -> None:
        if path.endswith(store) and value == gpu:
            kernel.bus.functions[gpu].holders = 1

    kernel.on_write = take


def let_go(kernel: FakeKernel, gpu: str = nodes.GPU) -> None:
    kernel.on_write = None
    kernel.vm_leaves(gpu)
    while leftovers.find(kernel.host.path("/proc")):
        time.sleep(0.001)


def test_a_store_that_hangs_leaves_the_unit_stuck_and_touches_nothing_more(
    kernel: FakeKernel,
) -> None:
    bind(kernel)
    hold_on(kernel)
    (failure,) = release(kernel).failures
    assert "cannot wait longer" in str(failure.detail)
    found = entry(kernel)
    assert found is not None
    assert found.stage is Stage.RELEASING
    assert originals(kernel) == {GPU: HOME[GPU]}
    writes = len(kernel.writes)
    for act in (bind, release):
        assert act(kernel).outcomes == ()
    assert len(kernel.writes) == writes
    let_go(kernel)


def test_a_stuck_unit_says_what_hangs_and_since_when(kernel: FakeKernel) -> None:
    bind(kernel)
    hold_on(kernel)
    release(kernel)
    turn = node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    (finding,) = turn.plan.refusals
    assert "a write of '0000:01:00.0' to bus/pci/drivers/vfio-pci/unbind" in str(finding)
    assert "in vfio_unregister_group_dev (pid 41" in str(finding)
    assert "a reboot will hang too" in str(finding)
    let_go(kernel)


def test_a_unit_that_hangs_on_its_way_home_is_stuck_and_has_not_failed(kernel: FakeKernel) -> None:
    bind(kernel)
    hold_on(kernel)
    pool = replace(EVERY_GPU.pools[0], mode=Mode.HOST, resource=None)
    to_host = replace(EVERY_GPU, pools=(pool,))
    turn = node.converge(kernel.host, SETTINGS, to_host, journal_of(kernel.host))
    assert turn.report.failures
    assert [finding.state for finding in turn.plan.findings] == [UnitState.STUCK]
    let_go(kernel)


@pytest.mark.parametrize("then", [bind, release])
def test_when_a_stuck_store_has_ended_the_unit_goes_on(
    kernel: FakeKernel, then: Callable[[FakeKernel], Report]
) -> None:
    bind(kernel)
    hold_on(kernel)
    release(kernel)
    let_go(kernel)
    assert not then(kernel).failures
    assert state(kernel) == {GPU: VFIO if then is bind else HOME[GPU]}


# A sudden end


@pytest.mark.parametrize("then", [bind, release])
@pytest.mark.parametrize(("name", "stores"), MOMENTS)
def test_a_bind_that_was_cut_off_is_finished_or_undone(
    tmp_path: Path, name: str, stores: int, then: Callable[[FakeKernel], Report]
) -> None:
    kernel = NODES[name](tmp_path)
    home = state(kernel)
    kill(kernel, stores, bind)
    assert originals(kernel) == home
    assert not then(kernel).failures
    assert state(kernel) == (home if then is release else dict.fromkeys(home, VFIO))
    assert not release(kernel).failures
    assert state(kernel) == home


@pytest.mark.parametrize("then", [bind, release])
@pytest.mark.parametrize(("name", "stores"), MOMENTS)
def test_a_release_that_was_cut_off_is_finished_or_bound_again(
    tmp_path: Path, name: str, stores: int, then: Callable[[FakeKernel], Report]
) -> None:
    kernel = NODES[name](tmp_path)
    home = state(kernel)
    bind(kernel)
    kill(kernel, stores, release)
    assert originals(kernel) == home
    assert not then(kernel).failures
    assert state(kernel) == (home if then is release else dict.fromkeys(home, VFIO))


def test_a_file_that_was_announced_and_never_written_is_forgotten(kernel: FakeKernel) -> None:
    journal_of(kernel.host).update(lambda ledger: ledger.with_file(CDI))
    assert not release(kernel).failures
    assert journal_of(kernel.host).ledger == Ledger()
    assert release(kernel).outcomes == ()


@pytest.mark.parametrize(
    ("turn", "call"), [*(("bind", n) for n in range(6)), *(("release", n) for n in range(4))]
)
def test_an_end_between_two_steps_is_mended_too(tmp_path: Path, turn: str, call: int) -> None:
    kernel = nodes.single_gpu(tmp_path)
    if turn == "release":
        bind(kernel)
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    if turn == "bind":
        _, plan = node.make_plan(kernel.host, SETTINGS, EVERY_GPU, journal.ledger)
    calls = iter(range(call))

    def tell(_number: int, _step: Step, _outcome: Outcome | None) -> None:
        if next(calls, None) is None:
            raise Killed

    with pytest.raises(Killed):
        executor.execute(kernel.host, plan, journal, progress=tell)
    assert not bind(kernel).failures
    assert nodes.GPU in kernel.host.path(CDI).read_text()
    assert not release(kernel).failures
    assert is_home(kernel)
    assert not kernel.host.path(CDI).exists()


# What changes between the plan and a move


def test_the_original_is_what_was_there_at_the_move(kernel: FakeKernel) -> None:
    override = f"bus/pci/devices/{GPU}/driver_override"
    assert not meanwhile(kernel, lambda: kernel.write(override, "nvidia")).failures
    assert originals(kernel) == {GPU: Binding("nvidia", "nvidia")}
    assert not release(kernel).failures
    assert state(kernel) == {GPU: Binding("nvidia", "nvidia")}


def test_what_the_host_gave_to_another_driver_is_not_taken_from_it(kernel: FakeKernel) -> None:
    kernel.write("bus/pci/drivers/nvidia/unbind", str(GPU))
    (failure,) = meanwhile(
        kernel, lambda: kernel.write("bus/pci/drivers/nvidia/bind", str(GPU))
    ).failures
    assert failure.detail == (
        f"cannot move {GPU}: it has nvidia, and had no driver when that was planned; it is tried "
        f"again later"
    )
    assert (entry(kernel), is_home(kernel)) == (None, True)
    assert not bind(kernel).failures
    assert originals(kernel) == {GPU: HOME[GPU]}


def test_what_the_load_of_the_module_gave_it_is_no_change(kernel: FakeKernel) -> None:
    kernel.write("bus/pci/drivers/nvidia/unbind", str(GPU))
    kernel.write(f"bus/pci/devices/{GPU}/driver_override", "vfio-pci")
    assert not bind(kernel).failures
    assert originals(kernel) == {GPU: Binding(None, "vfio-pci")}
