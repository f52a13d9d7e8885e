"""The confidential mode of a GPU is read from the chip, which is woken for it, and remembered."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.errors import StuckError
from kata_gpu.model import confidential
from kata_gpu.model.confidential import CcMode, ModeRegister
from kata_gpu.model.ledger import Ledger, LedgerEntry
from kata_gpu.model.pci import VirtualFunction
from kata_gpu.model.plan import Plan, ReadMode
from kata_gpu.model.report import Result
from kata_gpu.observe.document import document
from kata_gpu.plan import kubernetes
from kata_gpu.plan.kubernetes import labels
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import EVERY_GPU, SETTINGS, journal_of
from tests.values import GPU_CLASS, address, function
from tests.world import ON_CLAIM

HOPPER: Final = 0x1182CC
BLACKWELL: Final = 0x590
START: Final = 0x200BC
CONTROL: Final = f"bus/pci/devices/{nodes.GPU}/power/control"
POWER_STATE: Final = f"bus/pci/devices/{nodes.GPU}/power_state"
RESET: Final = f"bus/pci/devices/{nodes.GPU}/reset"
WOKEN: Final = [(CONTROL, "on"), (CONTROL, "auto")]
IDS: Final = """\
#
10de  NVIDIA Corporation
\t2330  GH100 [H100 SXM5 80GB]
\t2901  GB100 [B200]
\t2b85  GB202 [GeForce RTX 5090]
"""


class Killed(BaseException):
    """The end of the process, which no handler sees."""


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path)
    kernel.tree.text("usr/share/misc/pci.ids", IDS)
    return kernel


def converge(kernel: FakeKernel) -> Turn:
    return node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))


def begin(kernel: FakeKernel) -> Turn:
    """Take an agent's first turn."""
    return node.read_modes(
        kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host), converge(kernel)
    )


def entry(kernel: FakeKernel) -> LedgerEntry:
    found = journal_of(kernel.host).ledger.entry(nodes.GPU)
    assert found is not None
    return found


def know(kernel: FakeKernel, **changes: object) -> None:
    journal_of(kernel.host).amend(nodes.GPU, **changes)


def power(kernel: FakeKernel) -> list[tuple[str, str]]:
    return [write for write in kernel.writes if write[0] == CONTROL]


def show(kernel: FakeKernel, value: int, offset: int = HOPPER) -> None:
    kernel.tree.show_register(nodes.GPU, offset, value)


# What the register says


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (0x0, CcMode.OFF),
        (0x1, CcMode.ON),
        (0x3, CcMode.DEVTOOLS),
        (0x20, CcMode.PPCIE),
        (0x2, None),
        (0x21, None),
        (0xFFFFFFDC, CcMode.OFF),
    ],
)
def test_a_register_says_a_mode_or_what_is_none(value: int, mode: CcMode | None) -> None:
    register = ModeRegister(offset=HOPPER, ppcie=0x20, start_s=1)
    assert confidential.mode(register, value) is mode


def test_blackwell_has_no_ppcie() -> None:
    (look,) = confidential.looks([function("01:00.0", product_name="GB100 [B200]")])
    assert look.register.offset == BLACKWELL
    assert confidential.mode(look.register, 0x20) is CcMode.OFF


@pytest.mark.parametrize("name", ["AD102GL [L40S]", "GB202 [GeForce RTX 5090]", None])
def test_of_what_is_not_known_to_have_modes_none_is_read(name: str | None) -> None:
    assert confidential.looks([function("01:00.0", product_name=name)]) == ()


def test_of_a_virtual_function_none_is_read() -> None:
    gpu = function("01:00.1", product_name="GH100 [H100 SXM5 80GB]")
    virtual = replace(gpu, sriov=VirtualFunction(parent=address("01:00.0")))
    assert confidential.looks([virtual]) == ()


@pytest.mark.parametrize(("device", "start_s"), [(0x2330, 1.0), (0x2901, 15.0)])
def test_a_blackwell_may_take_longer_to_answer_after_its_reset(device: int, start_s: float) -> None:
    assert confidential.start_s(function("01:00.0", GPU_CLASS, device=device)) == start_s


# When it is read


@pytest.mark.parametrize(
    ("value", "mode"), [(0, CcMode.OFF), (1, CcMode.ON), (3, CcMode.DEVTOOLS), (32, CcMode.PPCIE)]
)
def test_it_is_read_when_the_gpu_is_bound_and_the_gpu_sleeps_again(
    kernel: FakeKernel, value: int, mode: CcMode
) -> None:
    show(kernel, value)
    assert not converge(kernel).report.failures
    assert (entry(kernel).cc_mode, entry(kernel).cc_unread) == (mode, None)
    assert power(kernel) == WOKEN
    assert (kernel.read(CONTROL), kernel.read(POWER_STATE)) == ("auto", "D3hot")
    assert entry(kernel).woken == ()


def test_a_blackwells_is_read_where_blackwells_have_it(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    kernel.tree.text("usr/share/misc/pci.ids", IDS)
    kernel.add_device(nodes.GPU, vendor=0x10DE, device=0x2901, class_code=0x030200, driver="nvidia")
    show(kernel, 1, BLACKWELL)
    converge(kernel)
    assert entry(kernel).cc_mode is CcMode.ON


def test_it_is_read_again_after_each_cleaning(kernel: FakeKernel) -> None:
    converge(kernel)
    with kernel.vm_holds(nodes.GPU):
        converge(kernel)
        show(kernel, 1)
    kernel.writes.clear()
    converge(kernel)
    assert entry(kernel).cc_mode is CcMode.ON
    assert [path for path, _ in kernel.writes] == [CONTROL, RESET, CONTROL]
    assert kernel.read(POWER_STATE) == "D3hot"


def test_an_agent_reads_at_its_start_what_nobody_knows_and_nothing_twice(
    kernel: FakeKernel,
) -> None:
    converge(kernel)
    know(kernel, cc_mode=None)
    show(kernel, 1)
    assert [outcome.step for outcome in begin(kernel).report.outcomes] == [
        f"read the confidential mode of unit {nodes.GPU}"
    ]
    assert entry(kernel).cc_mode is CcMode.ON
    assert begin(kernel).report.outcomes == ()


def test_what_somebody_has_is_not_read_at_the_start(kernel: FakeKernel) -> None:
    converge(kernel)
    know(kernel, cc_mode=None)
    kernel.writes.clear()
    with kernel.vm_holds(nodes.GPU):
        begin(kernel)
    assert power(kernel) == []


def test_whoever_came_since_the_look_is_left_alone(kernel: FakeKernel) -> None:
    converge(kernel)
    know(kernel, cc_mode=None)
    kernel.writes.clear()
    looks = confidential.looks([function("01:00.0", product_name="GH100 [H100]")])
    step = ReadMode(unit=nodes.GPU, addresses=(address("01:00.0"),), looks=looks, reason="so")
    plan = Plan(blueprint="test", steps=(step,))
    with kernel.vm_holds(nodes.GPU):
        report = executor.execute(kernel.host, plan, journal_of(kernel.host))
    assert [outcome.result for outcome in report.outcomes] == [Result.DONE]
    assert power(kernel) == []


def adopt(kernel: FakeKernel) -> None:
    """Let an agent adopt a GPU that somebody else's hand brought to VFIO."""
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=1)
    kernel.write(f"bus/pci/devices/{nodes.GPU}/driver_override", "vfio-pci")
    kernel.write("bus/pci/drivers/nvidia/unbind", nodes.GPU)
    kernel.write("bus/pci/drivers/vfio-pci/bind", nodes.GPU)
    pools = tuple(
        replace(p, selectors=tuple(replace(s, address=address("01:00.0")) for s in p.selectors))
        for p in EVERY_GPU.pools
    )
    kernel.writes.clear()
    adopting = replace(EVERY_GPU, pools=pools)
    node.converge(kernel.host, SETTINGS, adopting, journal_of(kernel.host))


def test_what_was_on_vfio_before_is_read_once_it_is_clean(kernel: FakeKernel) -> None:
    adopt(kernel)
    assert [path for path, _ in kernel.writes] == [CONTROL, RESET, CONTROL]
    assert entry(kernel).cc_mode is CcMode.OFF


# Waking


def test_who_is_kept_awake_for_good_stays_awake(kernel: FakeKernel) -> None:
    converge(kernel)
    kernel.write(CONTROL, "on")
    know(kernel, cc_mode=None)
    kernel.writes.clear()
    begin(kernel)
    assert entry(kernel).cc_mode is CcMode.OFF
    assert (power(kernel), kernel.read(CONTROL)) == ([], "on")


@pytest.mark.parametrize("store", ["on", "auto"])
def test_a_gpu_that_a_killed_agent_left_awake_sleeps_after_the_next_look(
    kernel: FakeKernel, store: str
) -> None:
    def end(path: str, value: str) -> None:
        if (path, value) == (CONTROL, store):
            raise Killed

    if store == "on":
        kernel.after_write = end
    else:
        kernel.on_write = end
    with pytest.raises(Killed):
        converge(kernel)
    kernel.on_write = kernel.after_write = None
    assert (kernel.read(POWER_STATE), entry(kernel).woken) == ("D0", (address("01:00.0"),))
    begin(kernel)
    assert (kernel.read(POWER_STATE), entry(kernel).woken) == ("D3hot", ())
    assert entry(kernel).cc_mode is CcMode.OFF


def test_a_gpu_without_a_register_that_was_left_awake_sleeps_too(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    converge(kernel)
    kernel.write(CONTROL, "on")
    know(kernel, woken=(address("01:00.0"),))
    assert len(begin(kernel).taken) == 1
    assert (kernel.read(POWER_STATE), entry(kernel).woken) == ("D3hot", ())
    assert (entry(kernel).cc_mode, entry(kernel).cc_unread) == (None, None)


def test_a_look_that_fails_lets_it_sleep_too(kernel: FakeKernel) -> None:
    converge(kernel)
    with kernel.vm_holds(nodes.GPU):
        converge(kernel)
    kernel.fail_write(lambda path, _value: path == RESET, errno.ENOTTY)
    assert converge(kernel).report.failures
    assert entry(kernel).quarantine is not None
    assert kernel.read(POWER_STATE) == "D3hot"


def test_a_store_that_hangs_is_no_reason_for_another(kernel: FakeKernel) -> None:
    def hang(path: str, value: str) -> None:
        if (path, value) == (CONTROL, "on"):
            raise StuckError("cannot wait longer", 1)

    kernel.on_write = hang
    turn = converge(kernel)
    assert "cannot wait longer" in str(turn.report.failures[0].detail)
    assert power(kernel) == [(CONTROL, "on")]
    assert entry(kernel).woken == (address("01:00.0"),)


def test_an_adopted_gpu_that_is_given_back_awake_sleeps_again(kernel: FakeKernel) -> None:
    adopt(kernel)
    kernel.write(CONTROL, "on")
    know(kernel, woken=(address("01:00.0"),))
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    assert not executor.execute(kernel.host, plan, journal).failures
    assert journal.ledger == Ledger()
    assert (kernel.read(CONTROL), kernel.read(POWER_STATE)) == ("auto", "D3hot")


# What cannot be read


def lock_down(kernel: FakeKernel) -> None:
    kernel.is_locked_down = True


def refuse_to_wake(kernel: FakeKernel) -> None:
    kernel.fail_write(lambda path, value: (path, value) == (CONTROL, "on"), errno.EIO)


def stop_decoding(kernel: FakeKernel) -> None:
    header = kernel.head(f"bus/pci/devices/{nodes.GPU}/config", 4)
    kernel.tree.show_config(nodes.GPU, header + b"\0\0")


def say_no_mode(kernel: FakeKernel) -> None:
    show(kernel, 2)


def be_no_chip(kernel: FakeKernel) -> None:
    show(kernel, 0, 0)


@pytest.mark.parametrize(
    ("prevent", "why"),
    [
        (lock_down, "Operation not permitted"),
        (refuse_to_wake, "its power state is D3hot"),
        (stop_decoding, "it does not decode its memory"),
        (say_no_mode, "its register reads 0x00000002, which is no mode"),
        (be_no_chip, "its first register names no chip"),
    ],
)
def test_what_cannot_be_read_is_no_failure_and_the_reason_is_known(
    kernel: FakeKernel, prevent: Callable[[FakeKernel], None], why: str
) -> None:
    prevent(kernel)
    turn = converge(kernel)
    assert not turn.report.failures
    found = entry(kernel)
    assert found.cc_mode is None
    assert found.cc_unread is not None
    assert found.cc_unread.endswith(why)
    state = node.describe(
        turn,
        SETTINGS,
        EVERY_GPU,
        journal_of(kernel.host).ledger,
        number=1,
        last_report=turn.report,
    )
    told = document(state)["units"][0]
    assert (told["cc_mode"], told["cc_unread"]) == (None, found.cc_unread)


def test_a_chip_that_starts_slowly_is_waited_for(kernel: FakeKernel) -> None:
    show(kernel, 0, START)
    show(kernel, 1)
    looked: list[str] = []

    def start(path: str, _value: str) -> None:
        if path == CONTROL and not looked:
            looked.append(path)
            kernel.looks_before_start = 3
            show(kernel, 0xFF, START)

    kernel.after_write = start
    converge(kernel)
    assert entry(kernel).cc_mode is CcMode.ON


# What comes of it


def test_it_is_an_attribute_of_the_device_and_a_label_of_the_node(kernel: FakeKernel) -> None:
    show(kernel, 1)
    turn = converge(kernel)
    ledger = journal_of(kernel.host).ledger
    state = node.describe(turn, SETTINGS, EVERY_GPU, ledger, number=1, last_report=turn.report)
    (device,) = kubernetes.devices(
        EVERY_GPU, turn.inventory, ledger, state.units, cdi_directory=SETTINGS.cdi_directory
    )
    assert device.attributes["ccMode"] == "on"
    assert state.units[0].cc_mode is CcMode.ON
    assert labels.cc_mode(turn.inventory.functions, ledger) is CcMode.ON


def test_a_claim_does_not_change_what_a_unit_that_is_bound_on_claim_is(
    kernel: FakeKernel,
) -> None:
    found = []
    for claimed in (frozenset({nodes.GPU}), frozenset[str]()):
        journal = journal_of(kernel.host)
        turn = node.converge(kernel.host, SETTINGS, ON_CLAIM, journal, claimed=claimed)
        state = node.describe(
            turn, SETTINGS, ON_CLAIM, journal.ledger, number=1, last_report=turn.report
        )
        (device,) = kubernetes.devices(
            ON_CLAIM,
            turn.inventory,
            journal.ledger,
            state.units,
            cdi_directory=SETTINGS.cdi_directory,
        )
        found.append((device.attributes, device.capacity_bytes))
    assert found[0] == found[1]
    assert "ccMode" not in found[0][0]


def test_nodes_whose_gpus_differ_or_are_not_all_known_have_no_mode(tmp_path: Path) -> None:
    kernel = nodes.eight_gpus(tmp_path)
    kernel.tree.text("usr/share/misc/pci.ids", IDS)
    turn = converge(kernel)
    ledger = journal_of(kernel.host).ledger
    functions = turn.inventory.functions
    assert labels.cc_mode(functions, ledger) is CcMode.OFF
    last = ledger.entries[-1]
    other = ledger.with_entry(replace(last, cc_mode=CcMode.ON))
    assert labels.cc_mode(functions, other) is None
    unread = ledger.with_entry(replace(last, cc_mode=None))
    assert labels.cc_mode(functions, unread) is None
    assert labels.cc_mode(functions, ledger.without_entry(last.unit)) is None
    assert labels.cc_mode(functions, Ledger()) is None
    assert labels.cc_mode((), ledger) is None


def test_gpus_of_one_unit_that_differ_have_no_mode_together(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    kernel.tree.text("usr/share/misc/pci.ids", IDS)
    kernel.add_device(
        "0000:01:00.1",
        vendor=0x10DE,
        device=0x2330,
        class_code=0x030200,
        driver="nvidia",
        group=1,
    )
    kernel.tree.show_register("0000:01:00.1", HOPPER, 1)
    assert not converge(kernel).report.failures
    found = entry(kernel)
    assert found.cc_mode is None
    assert found.cc_unread == "its GPUs differ: 0000:01:00.0 is in off, 0000:01:00.1 is in on"
