"""NVML is asked in a child, and what it says or refuses comes back as values and errors."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act.holders import refuse_if_at_work
from kata_gpu.errors import HeldError, HostError
from kata_gpu.host import Host, holders, nvml
from kata_gpu.model.holder import How
from kata_gpu.model.pci import PciAddress
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel

GPU: Final = PciAddress.parse("0000:01:00.0")
BARE: Final = PciAddress.parse("0000:02:00.0")
LOST: Final = PciAddress.parse("0000:03:00.0")
UNKNOWN: Final = PciAddress.parse("0000:04:00.0")
BEHIND_VMD: Final = PciAddress.parse("10000:e1:00.0")

IN_USE: Final = "19"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds an NVML."""
    folder = tmp_path_factory.mktemp("nvml")
    source, made = Path(__file__).with_name("nvml_stub.c"), folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-Wall", "-shared", "-fPIC", "-o", made, source], check=True)
    return folder


class Machine:
    """A host with NVIDIA's driver, whose children find the NVML in a folder."""

    def __init__(self, root: Path, library: Path | None, **says: str) -> None:
        self.log = root / "log"
        self._says = {**says, "STUB_LOG": str(self.log)}
        if library is not None:
            self._says["LD_LIBRARY_PATH"] = str(library)
        self.asked: list[Sequence[str]] = []
        self.kernel = nodes.single_gpu(root)
        for address in (GPU, BARE, LOST, UNKNOWN):
            self.kernel.tree.text(f"proc/driver/nvidia/gpus/{address}/information", "")

    @property
    def host(self) -> Host:
        return Host(root=self.kernel.tree.root, sysfs=self.kernel, run=self._run)

    def _run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        self.asked.append(argv)
        return subprocess.run(
            argv,
            env={"PATH": os.defpath, **self._says},
            timeout=timeout_s,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def done(self) -> list[str]:
        """Return what was changed; starting without attaching to any GPU changes nothing."""
        lines = self.log.read_text(encoding="ascii").splitlines()
        assert lines[0] == "init flags 3"
        return lines[1:]


def test_what_nvml_says_is_told_by_address(tmp_path: Path, library: Path) -> None:
    machine = Machine(tmp_path, library)
    assert nvml.read(machine.host, [GPU, BARE]) == {
        GPU: nvml.Gpu(
            uuid="GPU-full",
            serial="1652823000001",
            persistence=True,
            processes=(17, 4242),
            memory_bytes=85_520_809_984,
        ),
        BARE: nvml.Gpu(uuid="GPU-bare", serial=None, persistence=False, processes=()),
    }
    assert machine.done() == []


def test_a_gpu_that_is_lost_is_left_out(tmp_path: Path, library: Path) -> None:
    assert nvml.read(Machine(tmp_path, library).host, [LOST, UNKNOWN]) == {}


def test_a_gpu_that_nvidia_s_driver_does_not_have_is_not_asked_about(
    tmp_path: Path, library: Path
) -> None:
    machine = Machine(tmp_path, library)
    assert nvml.read(machine.host, [BEHIND_VMD]) == {}
    assert machine.asked == []


def test_without_the_library_there_is_no_answer(tmp_path: Path) -> None:
    assert nvml.read(Machine(tmp_path, None).host, [GPU]) is None


@pytest.mark.parametrize("code", ["9", "18"], ids=["no driver", "another driver's library"])
def test_without_its_driver_there_is_no_answer(tmp_path: Path, library: Path, code: str) -> None:
    assert nvml.read(Machine(tmp_path, library, STUB_INIT=code).host, [GPU]) is None


def test_a_library_that_refuses_is_an_error(tmp_path: Path, library: Path) -> None:
    host = Machine(tmp_path, library, STUB_INIT="4").host
    with pytest.raises(HostError, match="cannot read GPUs: NVML says Insufficient Permissions"):
        nvml.read(host, [GPU])


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_persistence_mode_is_switched(tmp_path: Path, library: Path, *, on: bool) -> None:
    machine = Machine(tmp_path, library)
    assert nvml.set_persistence(machine.host, GPU, on=on)
    assert machine.done() == [f"persistence full {on:d}"]


def test_a_gpu_without_persistence_mode_is_left_as_it_is(tmp_path: Path, library: Path) -> None:
    assert not nvml.set_persistence(Machine(tmp_path, library).host, BARE, on=True)


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_a_gpu_is_drained_by_its_whole_address(tmp_path: Path, library: Path, *, on: bool) -> None:
    machine = Machine(tmp_path, library)
    machine.kernel.tree.text(f"proc/driver/nvidia/gpus/{BEHIND_VMD}/information", "")
    assert nvml.set_drain(machine.host, BEHIND_VMD, on=on)
    assert machine.done() == [f"drain 00010000:E1:00.0 {on:d}"]


def test_a_gpu_in_use_is_not_drained(tmp_path: Path, library: Path) -> None:
    host = Machine(tmp_path, library, STUB_DRAIN=IN_USE).host
    with pytest.raises(HeldError, match=r"cannot switch drain on for 0000:01:00.0: NVML says In"):
        nvml.set_drain(host, GPU, on=True)


@pytest.mark.parametrize("code", ["3", "13"], ids=["not supported", "older library"])
def test_a_gpu_that_cannot_be_drained_is_left_as_it_is(
    tmp_path: Path, library: Path, code: str
) -> None:
    assert not nvml.set_drain(Machine(tmp_path, library, STUB_DRAIN=code).host, GPU, on=True)


def test_a_drain_that_is_refused_is_an_error(tmp_path: Path, library: Path) -> None:
    host = Machine(tmp_path, library, STUB_DRAIN="4").host
    with pytest.raises(HostError, match="NVML says Insufficient Permissions"):
        nvml.set_drain(host, GPU, on=True)


def test_nothing_is_switched_without_the_library(tmp_path: Path) -> None:
    assert not nvml.set_drain(Machine(tmp_path, None).host, GPU, on=True)


def test_nobody_is_asked_to_switch_what_nvidia_s_driver_does_not_have(
    tmp_path: Path, library: Path
) -> None:
    machine = Machine(tmp_path, library)
    assert not nvml.set_drain(machine.host, BEHIND_VMD, on=False)
    assert machine.asked == []


@pytest.mark.parametrize("answer", ["", "[]", "null", "{}", '{"gpus": 1}', '{"done": 1'])
def test_an_answer_that_is_none_is_an_error(tmp_path: Path, answer: str) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.tree.text(f"proc/driver/nvidia/gpus/{GPU}/information", "")
    kernel.on_run = lambda _argv: answer
    with pytest.raises(HostError, match=r"^cannot read (GPUs|NVML's answer to read 0000:01)"):
        nvml.read(kernel.host, [GPU])
    with pytest.raises(HostError, match=r"^cannot (switch drain on|read NVML's answer to drain)"):
        nvml.set_drain(kernel.host, GPU, on=True)


# as holders


def test_whoever_has_work_on_a_gpu_holds_it(tmp_path: Path, library: Path) -> None:
    host = Machine(tmp_path, library).host
    found = holders.at_work(host, nvml.read(host, [GPU, BARE]) or {})
    assert [(holder.pid, holder.how) for holder in found[GPU]] == [
        (17, How.NVML),
        (4242, How.NVML),
    ]
    assert found[BARE] == ()


def test_a_gpu_at_work_is_not_moved(tmp_path: Path, library: Path) -> None:
    host = Machine(tmp_path, library).host
    with pytest.raises(HeldError, match=r"\? \(pid 17\) runs work on GPU 0000:01:00.0; .*4242"):
        refuse_if_at_work(host, nvml.read(host, [GPU]) or {})
