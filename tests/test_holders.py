"""Whoever has a function is named as an admin knows them: user, container, pod."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

import pytest

from kata_gpu.act.holders import Looks, refuse_if_held
from kata_gpu.errors import HeldError, StuckError
from kata_gpu.host import Host, holders
from kata_gpu.host.children import Children
from kata_gpu.model.holder import Holder, How
from kata_gpu.model.pci import PciAddress
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel

GPU: Final = PciAddress.parse(nodes.GPU)
AUDIO: Final = PciAddress.parse(nodes.AUDIO)
ID: Final = "3f" * 32
UID: Final = "0b1c2d3e-4f50-4a6b-8c7d-9e0f1a2b3c4d"
POD: Final = f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.gpu_with_audio(tmp_path)


@pytest.fixture
def card(kernel: FakeKernel) -> Path:
    """A node of the GPU's."""
    return kernel.tree.show_device(nodes.GPU, "drm/card0", "dri/card0", "/dev/full")


def find_one(kernel: FakeKernel) -> Holder:
    (found,) = holders.find(kernel.host, [GPU])[GPU]
    return found


def on_vfio(kernel: FakeKernel) -> None:
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=1)
    for address, driver in ((GPU, "nvidia"), (AUDIO, "snd_hda_intel")):
        kernel.write(f"bus/pci/drivers/{driver}/unbind", str(address))
        kernel.write(f"bus/pci/devices/{address}/driver_override", "vfio-pci")
        kernel.write("bus/pci/drivers/vfio-pci/bind", str(address))


def test_a_holder_in_a_pod_is_told_with_everything_known(kernel: FakeKernel, card: Path) -> None:
    kernel.tree.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nana:x:1000:1000::/:/bin/sh\n")
    kernel.tree.text(f"var/log/pods/ml_train-0_{UID}/train/0.log", "")
    with kernel.process("python3", card, uid=1000, cgroup=POD) as pid:
        found = find_one(kernel)
    assert found == Holder(
        pid=pid,
        command="python3",
        device="/dev/dri/card0",
        how=How.OPEN,
        user="ana",
        container=ID,
        pod_uid=UID,
        pod_namespace="ml",
        pod_name="train-0",
    )
    assert str(found) == (f"python3 (pid {pid}, user ana, pod ml/train-0) has /dev/dri/card0 open")


def test_a_pod_without_logs_is_told_by_its_uid(kernel: FakeKernel, card: Path) -> None:
    with kernel.process("python3", card, cgroup=POD) as pid:
        assert str(find_one(kernel)).startswith(f"python3 (pid {pid}, user 0, pod {UID}) has")


def test_a_container_of_no_pod_is_told_by_its_id(kernel: FakeKernel, card: Path) -> None:
    with kernel.process("python3", card, cgroup=f"/docker/{ID}"):
        assert "user 0, container 3f3f3f3f3f3f) has" in str(find_one(kernel))


@pytest.mark.parametrize(
    "passwd",
    [None, "", "ana\n", "\x1b[2J:x:1000:0::/:\n", "ana:x:99:0::/:\nbob:x:1000\n"],
    ids=["missing", "empty", "short", "hostile", "other"],
)
def test_a_user_that_the_host_does_not_know_is_a_number(
    kernel: FakeKernel, card: Path, passwd: str | None
) -> None:
    if passwd is not None:
        kernel.tree.text("etc/passwd", passwd)
    with kernel.process("python3", card, uid=1000):
        assert find_one(kernel).user == "1000"


def test_the_first_of_two_names_counts(kernel: FakeKernel, card: Path) -> None:
    kernel.tree.text("etc/passwd", "root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\n")
    with kernel.process("Xorg", card):
        assert find_one(kernel).user == "root"


def test_whoever_has_the_group_has_every_function_of_it(kernel: FakeKernel) -> None:
    on_vfio(kernel)
    with kernel.vm_holds(nodes.GPU) as _:
        found = holders.find(kernel.host, [GPU, AUDIO])
    assert [holder.device for holder in found[GPU]] == ["/dev/vfio/1"]
    assert found[AUDIO] == found[GPU]
    assert holders.find(kernel.host, [GPU, AUDIO]) == {GPU: (), AUDIO: ()}


def open_by_address(kernel: FakeKernel, pid: int, address: PciAddress) -> None:
    """Let a process have a descriptor that tells the address alone, as from 7.x on."""
    home = kernel.host.path(f"/proc/{pid}")
    (home / "fd/9").symlink_to("anon_inode:[vfio-device]")
    (home / "fdinfo").mkdir()
    (home / "fdinfo/9").write_text(f"vfio-device-syspath: /sys/devices/pci0000:00/{address}\n")


def test_a_device_s_descriptor_alone_holds_its_function_alone(kernel: FakeKernel) -> None:
    on_vfio(kernel)
    with kernel.process("qemu-system-x86") as pid:
        open_by_address(kernel, pid, AUDIO)
        found = holders.find(kernel.host, [GPU, AUDIO])
    assert [holder.device for holder in found[AUDIO]] == [str(AUDIO)]
    assert found[GPU] == ()


def test_a_vm_that_has_node_and_descriptor_is_told_once(kernel: FakeKernel) -> None:
    on_vfio(kernel)
    with kernel.process("qemu-system-x86", kernel.tree.node(1)) as pid:
        open_by_address(kernel, pid, GPU)
        found = holders.find(kernel.host, [GPU])
    assert [holder.device for holder in found[GPU]] == ["/dev/vfio/1"]


def test_nothing_asked_is_nothing_found(kernel: FakeKernel) -> None:
    assert holders.find(kernel.host, []) == {}


# a tree of sysfs, and the processes of this machine


@contextmanager
def children(*commands: str) -> Iterator[list[int]]:
    """Let children of this process have /dev/full open, each under a name of its own."""
    code = "import sys, pathlib; f = open('/dev/full', 'rb')\n"
    code += "pathlib.Path('/proc/self/comm').write_text(sys.argv[1])\n"
    code += "print(flush=True); input()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for command in commands
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.communicate(b"\n")


@pytest.fixture
def host(kernel: FakeKernel, card: Path) -> Host:
    """The kernel's devices with this machine's processes."""
    assert card.exists()
    kernel.host.path("/proc").rename(kernel.host.path("/proc.fake"))
    kernel.host.path("/proc").symlink_to("/proc")
    return kernel.host


def test_nobody_hides_behind_the_name_of_our_children(host: Host) -> None:
    with children("kata-gpu-store") as (pid,):
        (found,) = holders.find(host, [GPU])[GPU]
    assert (found.pid, found.command) == (pid, "kata-gpu-store")


def test_our_children_that_read_have_no_device(host: Host) -> None:
    with open("/dev/full", "rb"), tempfile.TemporaryDirectory() as folder:  # noqa: PTH123
        os.mkfifo(Path(folder, "waits"))
        reader = Children(root=Path(folder), timeout_s=0.05)
        (answer,) = reader.read(["waits"]).values()
        assert isinstance(answer, StuckError)
        assert holders.find(host, [GPU]) == {GPU: ()}
        Path(folder, "waits").write_text("go on")


# the refusal


def test_a_refusal_says_who_in_words_and_in_values(kernel: FakeKernel, card: Path) -> None:
    with kernel.process("Xorg", card) as pid, pytest.raises(HeldError) as caught:
        refuse_if_held(kernel.host, [GPU, AUDIO])
    assert [(holder.pid, holder.how) for holder in caught.value.holders] == [(pid, How.OPEN)]
    assert str(caught.value) == (
        f"cannot move it: Xorg (pid {pid}, user 0) has /dev/dri/card0 open; "
        f"it is tried again when they are gone"
    )


def test_a_user_of_two_functions_of_a_group_is_told_once(kernel: FakeKernel) -> None:
    on_vfio(kernel)
    with kernel.vm_holds(nodes.GPU), pytest.raises(HeldError) as caught:
        refuse_if_held(kernel.host, [GPU, AUDIO])
    assert len(caught.value.holders) == 1


def test_what_nobody_has_is_not_refused(kernel: FakeKernel, card: Path) -> None:
    assert card.exists()
    refuse_if_held(kernel.host, [GPU, AUDIO])
    assert kernel.runs == []


def test_a_refusal_without_holders_has_none() -> None:
    assert HeldError("cannot lock it").holders == ()


# looks that lanes share


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Host):
    """A host that says when somebody looks at its processes, and waits for leave."""

    looks: list[int]
    leave: Event

    def path(self, absolute: str) -> Path:
        if absolute == "/proc":
            self.looks.append(1)
            assert self.leave.wait(10)
        return Host.path(self, absolute)


class Asked(list[PciAddress]):
    """Addresses that say when somebody has taken them."""

    def __init__(self, address: str) -> None:
        super().__init__([PciAddress.parse(address)])
        self.taken = Event()

    def __iter__(self) -> Iterator[PciAddress]:
        self.taken.set()
        return super().__iter__()


def test_lanes_that_ask_during_a_look_share_the_next(tmp_path: Path) -> None:
    kernel = nodes.eight_gpus(tmp_path)
    card = kernel.tree.show_device(nodes.EIGHT_GPUS[5], "drm/card0", "dri/card0", "/dev/full")
    seen: list[int] = []
    leave = Event()
    host = Watched(root=kernel.host.root, sysfs=kernel, run=kernel.run, looks=seen, leave=leave)
    looks = Looks(host)
    asked = [Asked(gpu) for gpu in nodes.EIGHT_GPUS]
    with ThreadPoolExecutor(len(asked)) as lanes:
        first = lanes.submit(looks.refuse_if_held, asked[0])
        while not seen:
            time.sleep(0.001)
        others = [lanes.submit(looks.refuse_if_held, addresses) for addresses in asked[1:]]
        assert all(addresses.taken.wait(10) for addresses in asked)
        with kernel.process("Xorg", card):  # it came after the first look began
            leave.set()
            ends = [end.exception() for end in (first, *others)]
    assert [type(end) for end in ends] == [*5 * [type(None)], HeldError, *2 * [type(None)]]
    assert len(seen) == 3, "the first look, the shared one, and who it is that has it"
