"""What a node shows is read as it is, and what it does not show is unknown."""

import os
import socket
from pathlib import Path

import pytest

from kata_gpu.discover import node_facts
from kata_gpu.discover.node_facts import asking
from kata_gpu.errors import HostError
from kata_gpu.host import Host, paths, procfs
from kata_gpu.model.node_facts import (
    AgentFacts,
    AgentPart,
    AskedLink,
    DeviceNode,
    Directory,
    Hugepages,
    MemoryLock,
    ModuleRule,
    NodeFacts,
    PartState,
    Unknown,
)
from tests.fit_node import NEEDED, add_process, dress
from tests.kernel import nodes
from tests.kernel.fake import RELEASE, FakeKernel

PART = AgentPart(state=PartState.ABSENT, detail="none")
AGENT = AgentFacts(settings=PART, blueprint=PART, ledger=PART, socket=PART)


def collected(host: Host) -> NodeFacts:
    return node_facts.collect(
        host,
        state_directory="/var/lib/kata-gpu",
        cdi_directory="/var/run/cdi",
        agent=AGENT,
        link="/var/lib/kata-gpu/pod-resources.sock",
    )


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    found = nodes.single_gpu(tmp_path)
    dress(found)
    return found


def write(kernel: FakeKernel, path: str, content: str) -> None:
    kernel.tree.text(path, content)


def test_a_plain_node_shows_plain_facts(kernel: FakeKernel) -> None:
    found = collected(kernel.host)
    assert found.kernel.command_line == ("root=/dev/sda1", "intel_iommu=on")
    assert (found.kernel.unsafe_interrupts, found.kernel.noiommu_mode) == (None, None)
    assert (found.kernel.taint, found.kernel.hugepages, found.kernel.iommu_groups) == (0, (), 2)
    assert found.kernel.tee_parameters == (("kvm_amd.sev_snp", None), ("kvm_intel.tdx", None))
    assert (found.modules.release, found.modules.has_folder) == (RELEASE, True)
    assert found.modules.loadable == NEEDED | {"vfio_pci_core"}
    assert found.modules.rules == ()
    assert (found.process.user, found.process.sees_host) == (0, True)
    assert found.process.capabilities == (1 << 41) - 1
    assert found.driverctl == ()
    assert not isinstance(found.sysfs, Unknown)
    assert (found.sysfs.kind, found.sysfs.is_read_only) == ("sysfs", False)


def test_a_root_that_is_no_hosts_has_unknown_facts_and_no_error(tmp_path: Path) -> None:
    found = collected(Host.at(tmp_path))
    for fact in (
        *(found.kernel.command_line, found.kernel.taint, found.modules.has_folder, found.sysfs),
        *(found.process.user, found.process.capabilities, found.process.sees_host),
        *(found.process.commands, found.process.memory_locks),
    ):
        assert isinstance(fact, Unknown)
        assert fact.reason.startswith("cannot ")


@pytest.mark.parametrize(("value", "expected"), [("Y", True), ("N", False)])
def test_the_unsafe_modes_are_read(value: str, expected: bool, kernel: FakeKernel) -> None:
    kernel.tree.add_module("vfio_iommu_type1", {"allow_unsafe_interrupts": value})
    kernel.tree.add_module("vfio", {"enable_unsafe_noiommu_mode": value})
    found = collected(kernel.host).kernel
    assert (found.unsafe_interrupts, found.noiommu_mode) == (expected, expected)


def test_a_flag_that_is_no_flag_is_unknown(kernel: FakeKernel) -> None:
    kernel.tree.add_module("vfio", {"enable_unsafe_noiommu_mode": "perhaps"})
    assert isinstance(collected(kernel.host).kernel.noiommu_mode, Unknown)


def test_a_taint_that_is_no_number_is_unknown(kernel: FakeKernel) -> None:
    write(kernel, "proc/sys/kernel/tainted", "x\n")
    assert isinstance(collected(kernel.host).kernel.taint, Unknown)


def test_hugepages_are_read_by_size(kernel: FakeKernel) -> None:
    for size, total in (("1048576", "4"), ("2048", "512")):
        folder = f"sys/kernel/mm/hugepages/hugepages-{size}kB"
        write(kernel, f"{folder}/nr_hugepages", f"{total}\n")
        write(kernel, f"{folder}/free_hugepages", "3\n")
    assert collected(kernel.host).kernel.hugepages == (
        Hugepages(size_kib=2048, total=512, free=3),
        Hugepages(size_kib=1048576, total=4, free=3),
    )


# Modules


def test_modules_that_are_built_in_are_there(kernel: FakeKernel) -> None:
    folder = f"lib/modules/{RELEASE}"
    write(kernel, f"{folder}/modules.dep", "kernel/drivers/vfio/vfio-helper.ko:\n")
    write(kernel, f"{folder}/modules.builtin", "kernel/drivers/vfio/vfio.ko\n")
    assert collected(kernel.host).modules.loadable == frozenset({"vfio"})


def test_an_upgrade_that_took_the_running_kernels_modules_is_seen(kernel: FakeKernel) -> None:
    (kernel.tree.root / "lib/modules" / RELEASE).rename(kernel.tree.root / "lib/modules/6.1.0-57")
    found = collected(kernel.host).modules
    assert (found.has_folder, found.loadable) == (False, frozenset())


def test_lines_of_modprobe_d_on_vfio_are_read_as_modprobe_does(kernel: FakeKernel) -> None:
    write(
        kernel, "etc/modprobe.d/a.conf", "# c\nblacklist vfio-pci\ninstall vfio \\\n /bin/false\n"
    )
    write(kernel, "usr/lib/modprobe.d/a.conf", "blacklist vfio\n")
    write(kernel, "usr/lib/modprobe.d/b.conf", "options vfio_pci ids=10de:2330 x=1\nblacklist\n")
    write(kernel, "etc/modprobe.d/c.conf.bak", "blacklist vfio\n")
    os.mkfifo(kernel.tree.root / "etc/modprobe.d/never-ends.conf")
    write(kernel, "etc/modprobe.d/d.conf", "blacklist nouveau\nsoftdep vfio_pci pre: x\n")

    def rule(file: str, verb: str, module: str, rest: str) -> ModuleRule:
        return ModuleRule(file=file, verb=verb, module=module, rest=rest)

    assert collected(kernel.host).modules.rules == (
        rule("/etc/modprobe.d/a.conf", "blacklist", "vfio_pci", ""),
        rule("/etc/modprobe.d/a.conf", "install", "vfio", "/bin/false"),
        rule("/usr/lib/modprobe.d/b.conf", "options", "vfio_pci", "ids=10de:2330 x=1"),
    )


# Device nodes


def test_nodes_are_compared_with_what_the_kernel_shows(kernel: FakeKernel) -> None:
    write(kernel, "sys/class/misc/iommu/dev", "1:3\n")
    (kernel.tree.root / "dev/iommu").symlink_to("/dev/null")
    write(kernel, "sys/class/misc/vfio/dev", "10:196\n")
    write(kernel, "sys/class/vfio/7/dev", "511:0\n")
    write(kernel, "dev/vfio/7", "no device\n")
    write(kernel, "sys/class/vfio-dev/vfio0/dev", "510:0\n")
    write(kernel, "sys/class/vfio-dev/vfio1/uevent", "")
    (kernel.tree.root / "dev/vfio/devices").mkdir()
    (kernel.tree.root / "dev/vfio/devices/vfio0").symlink_to("/dev/zero")
    found = collected(kernel.host).devices
    assert found.bound == 2
    assert found.iommufd == DeviceNode(path="/dev/iommu", number="1:3", node="1:3", exists=True)
    assert found.groups == (
        DeviceNode(path="/dev/vfio/vfio", number="10:196", node=None, exists=False),
        DeviceNode(path="/dev/vfio/7", number="511:0", node=None, exists=True),
    )
    assert found.cdevs == (
        DeviceNode(path="/dev/vfio/devices/vfio0", number="510:0", node="1:5", exists=True),
    )


# Processes


def test_a_runtimes_limit_counts_and_not_ours(kernel: FakeKernel) -> None:
    add_process(kernel, 7, "containerd", "8388608", "0000000000000000")
    add_process(kernel, 8, "kubelet", "unlimited", "0000000000004000")
    add_process(kernel, 9, "nvidia-kubevirt-gpu-device-plugin", "1", "0")
    found = collected(kernel.host).process
    assert found.commands == frozenset({"containerd", "kubelet", "nvidia-kubevirt"})
    assert found.memory_locks == (
        MemoryLock(program="containerd", limit_bytes=8 << 20, may_exceed=False),
        MemoryLock(program="kubelet", limit_bytes=None, may_exceed=True),
    )


def test_without_a_runtime_our_own_limit_counts(kernel: FakeKernel) -> None:
    (found,) = collected(kernel.host).process.memory_locks  # type: ignore[misc]
    assert (found.program, found.limit_bytes) == ("this process", None)


def test_another_pid_namespace_is_told_from_the_first(kernel: FakeKernel) -> None:
    link = kernel.tree.root / "proc/self/ns/pid"
    link.unlink()
    link.symlink_to("pid:[4026532201]")
    assert collected(kernel.host).process.sees_host is False


# Whom Kata asks


def test_the_link_for_kata_is_followed_to_who_serves_there(short_path: Path) -> None:
    root = short_path
    link, way = (
        root / "var/lib/kata-gpu/pod-resources.sock",
        "/run/kata-gpu/pod-resources-0123abcd.sock",
    )
    link.parent.mkdir(parents=True)
    (root / "run/kata-gpu").mkdir(parents=True)

    def look() -> AskedLink:
        return asking.read(
            Host.at(root), "/var/lib/kata-gpu/pod-resources.sock", kubelet="/k", is_wanted=True
        )

    assert not look().is_there
    link.symlink_to(way)
    found = look()
    assert (found.is_there, found.target, found.leads_to_agent) == (True, way, True)
    assert (found.is_target_there, found.is_served) == (False, False)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / way[1:]))
        assert (look().is_target_there, look().is_served) == (True, False)
        server.listen()
        assert look().is_served
    link.unlink()
    link.write_text("")
    assert (look().is_there, look().target) == (True, None)


# Folders


def test_a_folder_that_is_not_made_yet_stands_for_the_one_above(kernel: FakeKernel) -> None:
    (kernel.tree.root / "var/lib").mkdir(parents=True, mode=0o750)
    found = collected(kernel.host).state_directory
    assert isinstance(found, Directory)
    assert (found.path, found.existing, found.mode) == ("/var/lib/kata-gpu", "/var/lib", 0o750)
    assert (found.is_directory, found.owner) == (True, os.getuid())


def test_a_link_leads_where_the_host_says(kernel: FakeKernel) -> None:
    root = kernel.tree.root
    (root / "run/cdi").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    found = collected(kernel.host).cdi_directory
    assert isinstance(found, Directory)
    assert (found.path, found.existing) == ("/var/run/cdi", "/run/cdi")


def test_a_part_of_sysfs_that_is_something_else_is_found_out() -> None:
    proc = Path("/proc")
    assert paths.file_system(Path("/sys/devices"), proc=proc).kind == "sysfs"
    assert paths.file_system(proc, proc=proc).kind == "proc"


def test_a_file_system_that_no_mount_has_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text("1 2 0:999999 / /x rw - ext4 /dev/sda rw\nnonsense\n")
    with pytest.raises(HostError, match="cannot find a mount with device number"):
        paths.file_system(tmp_path, proc=tmp_path)


def test_the_programs_of_this_machine_are_listed() -> None:
    assert procfs.commands(Path("/proc"))[os.getpid()]
