"""NVIDIA's driver lets nobody come to a GPU that is being taken from it, and everybody after."""

import errno
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.agent.node import Turn
from kata_gpu.model.ledger import Ledger, LedgerEntry, Stage
from kata_gpu.model.report import Report, Result
from kata_gpu.model.unit import UnitState
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kernel.nvml import Nvml
from tests.passthrough import EVERY_GPU, SETTINGS, journal_of

TAKEN: Final = ["persistence off", "drain on"]
LET_GO: Final = ["drain off", "persistence on"]


class Killed(BaseException):
    """The end of the process, which no handler sees."""


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.single_gpu(tmp_path)


@pytest.fixture
def nvml(kernel: FakeKernel) -> Nvml:
    """A GPU in persistence mode."""
    nvml = Nvml(kernel, persistent={nodes.GPU})
    kernel.on_run = nvml.run
    return nvml


def bind(kernel: FakeKernel) -> Turn:
    return node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))


def release(kernel: FakeKernel) -> Report:
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    return executor.execute(kernel.host, plan, journal)


def entry(kernel: FakeKernel) -> LedgerEntry | None:
    return journal_of(kernel.host).ledger.entry(nodes.GPU)


def driver(kernel: FakeKernel) -> str | None:
    return kernel.link(f"bus/pci/devices/{nodes.GPU}/driver")


def is_as_found(kernel: FakeKernel, nvml: Nvml) -> bool:
    return (
        driver(kernel) == "nvidia"
        and nvml.persistent == {nodes.GPU}
        and nvml.drained == set()
        and journal_of(kernel.host).ledger == Ledger()
    )


# The order


def test_new_users_are_forbidden_after_the_override_and_before_the_unbind(
    kernel: FakeKernel, nvml: Nvml
) -> None:
    seen: list[tuple[str, list[str]]] = []
    kernel.on_write = lambda path, _value: seen.append((path.rpartition("/")[2], [*nvml.said]))
    assert not bind(kernel).report.failures
    assert seen == [("driver_override", []), ("unbind", TAKEN), ("bind", TAKEN)]
    assert driver(kernel) == "vfio-pci"


def test_the_mode_is_in_the_ledger_before_it_is_switched_off(
    kernel: FakeKernel, nvml: Nvml
) -> None:
    noted: list[LedgerEntry | None] = []
    nvml.on_word = lambda _word: noted.append(entry(kernel))
    bind(kernel)
    assert [(found.stage, found.had_persistence) for found in noted if found] == [
        (Stage.BINDING, True)
    ] * 4
    bound = entry(kernel)
    assert bound is not None
    assert bound.had_persistence


def test_what_nvml_says_of_its_memory_is_in_the_ledger(kernel: FakeKernel, nvml: Nvml) -> None:
    nvml.memory_bytes = 85_520_809_984
    bind(kernel)
    bound = entry(kernel)
    assert bound is not None
    assert [function.memory_bytes for function in bound.functions] == [85_520_809_984]


def test_a_released_gpu_is_in_the_mode_that_it_was_in(kernel: FakeKernel, nvml: Nvml) -> None:
    bind(kernel)
    nvml.said.clear()
    assert not release(kernel).failures
    assert nvml.said == LET_GO
    assert is_as_found(kernel, nvml)


def test_a_gpu_that_was_in_no_such_mode_gets_into_none(kernel: FakeKernel, nvml: Nvml) -> None:
    nvml.persistent.clear()
    bind(kernel)
    release(kernel)
    assert nvml.said == ["drain on", "drain off"]
    assert nvml.persistent == set()


def test_without_nvml_there_is_nothing_to_forbid(kernel: FakeKernel, nvml: Nvml) -> None:
    nvml.is_there = False
    assert not bind(kernel).report.failures
    assert not release(kernel).failures
    assert nvml.said == []


def test_a_mode_that_nobody_can_bring_back_does_not_keep_the_gpu(
    kernel: FakeKernel, nvml: Nvml
) -> None:
    bind(kernel)
    nvml.is_there = False
    assert not release(kernel).failures
    assert journal_of(kernel.host).ledger == Ledger()


# What is refused


def test_who_works_on_the_gpu_keeps_it(kernel: FakeKernel, nvml: Nvml) -> None:
    nvml.at_work = {nodes.GPU: [4242]}
    turn = bind(kernel)
    assert "(pid 4242) runs work on GPU 0000:01:00.0" in turn.failed[nodes.GPU].reason
    assert turn.failed[nodes.GPU].state is UnitState.WAITING
    assert nvml.said == []
    assert kernel.writes == []
    assert is_as_found(kernel, nvml)


def test_who_comes_before_the_drain_keeps_the_gpu(kernel: FakeKernel, nvml: Nvml) -> None:
    card = kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")
    with ExitStack() as stack:

        def come(_word: str) -> None:
            nvml.on_word = lambda _: None
            stack.enter_context(kernel.process("python3", card))

        nvml.on_word = come
        (outcome,) = (o for o in bind(kernel).report.outcomes if o.result is Result.HELD)
    assert "cannot move it: python3" in str(outcome.detail)
    assert nvml.said == TAKEN + LET_GO
    assert is_as_found(kernel, nvml)


def test_what_the_driver_says_is_in_use_is_held(kernel: FakeKernel, nvml: Nvml) -> None:
    def come_back(word: str) -> None:
        if word == "drain on":
            nvml.persistent.add(nodes.GPU)

    nvml.on_word = come_back
    turn = bind(kernel)
    assert "NVML says In use by another client" in turn.failed[nodes.GPU].reason
    assert turn.failed[nodes.GPU].state is UnitState.WAITING
    assert is_as_found(kernel, nvml)


@pytest.mark.parametrize("word", [("persistence", "off"), ("drain", "on")], ids=" ".join)
def test_what_nvml_refuses_is_not_moved(
    kernel: FakeKernel, nvml: Nvml, word: tuple[str, str]
) -> None:
    nvml.refused = {word}
    turn = bind(kernel)
    assert "NVML says Insufficient Permissions" in turn.failed[nodes.GPU].reason
    assert not any(path.endswith("/unbind") for path, _ in kernel.writes)
    assert is_as_found(kernel, nvml)


@pytest.mark.parametrize("index", range(3), ids=["override", "unbind", "bind"])
def test_after_a_failed_bind_everybody_may_come_again(
    kernel: FakeKernel, nvml: Nvml, index: int
) -> None:
    kernel.fail_write(index, errno.EIO)
    assert bind(kernel).report.failures
    assert is_as_found(kernel, nvml)


@pytest.mark.parametrize("word", [("drain", "off"), ("persistence", "on")], ids=" ".join)
def test_an_undo_that_nvml_refuses_stays_in_the_ledger(
    kernel: FakeKernel, nvml: Nvml, word: tuple[str, str]
) -> None:
    kernel.fail_write(1, errno.EIO)
    nvml.refused = {word}
    turn = bind(kernel)
    assert "cannot let its users come back (cannot switch" in turn.failed[nodes.GPU].reason
    assert "Input/output error" in turn.failed[nodes.GPU].reason
    found = entry(kernel)
    assert found is not None
    assert found.had_persistence
    nvml.refused = set()
    assert not release(kernel).failures
    assert is_as_found(kernel, nvml)


@pytest.mark.parametrize("word", [("drain", "off"), ("persistence", "on")], ids=" ".join)
def test_a_release_that_nvml_does_not_end_is_ended_later(
    kernel: FakeKernel, nvml: Nvml, word: tuple[str, str]
) -> None:
    bind(kernel)
    nvml.refused = {word}
    (failure,) = release(kernel).failures
    assert "NVML says Insufficient Permissions" in str(failure.detail)
    found = entry(kernel)
    assert found is not None
    assert found.stage is Stage.RELEASING
    nvml.refused = set()
    assert not release(kernel).failures
    assert is_as_found(kernel, nvml)


def test_a_gpu_that_vanishes_is_not_asked_about(kernel: FakeKernel, nvml: Nvml) -> None:
    kernel.vanish_after_write(1, nodes.GPU)
    turn = bind(kernel)
    assert "it vanished from the bus meanwhile" in turn.failed[nodes.GPU].reason
    assert nvml.said == TAKEN


# A sudden end


def kill_at(nvml: Nvml, word: int, act: Callable[[], object]) -> None:
    """Let the process end around a word to NVML: before even ones, after odd ones."""
    words = iter(range(word))

    def end(_word: str) -> None:
        if next(words, None) is None:
            raise Killed

    nvml.on_word = end
    with pytest.raises(Killed):
        act()
    nvml.on_word = lambda _: None


@pytest.mark.parametrize("then", [bind, release])
@pytest.mark.parametrize("word", range(4))
def test_an_end_while_users_are_forbidden_is_mended(
    kernel: FakeKernel, nvml: Nvml, word: int, then: Callable[[FakeKernel], object]
) -> None:
    kill_at(nvml, word, lambda: bind(kernel))
    then(kernel)
    assert driver(kernel) == ("vfio-pci" if then is bind else "nvidia")
    release(kernel)
    assert is_as_found(kernel, nvml)


@pytest.mark.parametrize("then", [bind, release])
@pytest.mark.parametrize("word", range(8))
def test_an_end_while_a_failed_bind_is_undone_is_mended(
    kernel: FakeKernel, nvml: Nvml, word: int, then: Callable[[FakeKernel], object]
) -> None:
    kernel.fail_write(2, errno.EIO)
    kill_at(nvml, word, lambda: bind(kernel))
    then(kernel)
    release(kernel)
    assert is_as_found(kernel, nvml)


@pytest.mark.parametrize("then", [bind, release])
@pytest.mark.parametrize("word", range(4))
def test_an_end_while_a_gpu_is_given_back_is_mended(
    kernel: FakeKernel, nvml: Nvml, word: int, then: Callable[[FakeKernel], object]
) -> None:
    bind(kernel)
    kill_at(nvml, word, lambda: release(kernel))
    then(kernel)
    assert driver(kernel) == ("vfio-pci" if then is bind else "nvidia")
    release(kernel)
    assert is_as_found(kernel, nvml)
