"""The facts of a node that is fit for passthrough, for tests to change one thing about."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kata_gpu.discover.cdi import parse
from kata_gpu.model.cdi import CdiFile, CdiSpecs
from kata_gpu.model.kubernetes import PodResources
from kata_gpu.model.node_facts import (
    AgentFacts,
    AgentPart,
    AskedLink,
    DeviceFacts,
    DeviceNode,
    Directory,
    FileSystem,
    Hugepages,
    KernelFacts,
    MemoryLock,
    ModuleFacts,
    NodeFacts,
    PartState,
    ProcessFacts,
)
from kata_gpu.settings.agent import Settings
from tests.kernel.fake import RELEASE, FakeKernel
from tests.values import PLATFORM

NEEDED: Final = frozenset({"vfio", "vfio_iommu_type1", "vfio_pci"})
SYSFS: Final = FileSystem(kind="sysfs", is_read_only=False, free_bytes=0, free_files=None)
DISK: Final = FileSystem(kind="ext4", is_read_only=False, free_bytes=8 << 30, free_files=9999)


def directory(path: str, **changes: Any) -> Directory:
    """Return a folder of root's."""
    found = Directory(
        path=path, existing=path, is_directory=True, owner=0, mode=0o755, file_system=DISK
    )
    return replace(found, **changes)


def node(path: str, number: str | None, **changes: Any) -> DeviceNode:
    """Return a node that leads where it should."""
    return replace(DeviceNode(path=path, number=number, node=number, exists=True), **changes)


def spec(path: str, *devices: str, node: str = "/dev/vfio/7", **changes: Any) -> CdiFile:
    """Return a CDI spec that can be used, as a file."""
    edits = {"deviceNodes": [{"path": node}]}
    found = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/pgpu",
        "devices": [{"name": name, "containerEdits": edits} for name in devices or ("x",)],
    }
    text = json.dumps({**found, **changes})
    directory = path.rpartition("/")[0]
    return CdiFile(path=path, directory=directory, content=parse(path, text.encode()))


_PART: Final = AgentPart(state=PartState.SOUND, detail="as it should be")

FIT: Final = NodeFacts(
    kernel=KernelFacts(
        platform=PLATFORM,
        iommu_groups=12,
        command_line=("BOOT_IMAGE=/vmlinuz", "root=/dev/sda1", "intel_iommu=on", "quiet"),
        unsafe_interrupts=False,
        noiommu_mode=False,
        taint=0,
        operations=(),
        hugepages=(Hugepages(size_kib=2048, total=512, free=512),),
        tee_parameters=(("kvm_amd.sev_snp", None), ("kvm_intel.tdx", "N")),
    ),
    modules=ModuleFacts(
        release="6.1.0-56-amd64",
        has_folder=True,
        loadable=NEEDED,
        loaded=NEEDED | {"nvidia"},
        rules=(),
    ),
    devices=DeviceFacts(
        iommufd=node("/dev/iommu", "10:126"),
        groups=(node("/dev/vfio/vfio", "10:196"), node("/dev/vfio/18", "511:0")),
        cdevs=(node("/dev/vfio/devices/vfio0", "510:0"),),
        bound=1,
    ),
    process=ProcessFacts(
        user=0,
        capabilities=(1 << 41) - 1,
        sees_host=True,
        commands=frozenset({"systemd", "containerd", "kubelet"}),
        memory_locks=(MemoryLock(program="containerd", limit_bytes=None, may_exceed=True),),
    ),
    sysfs=SYSFS,
    state_directory=directory("/var/lib/kata-gpu"),
    cdi_directory=directory("/var/run/cdi"),
    cdi=CdiSpecs(files=(spec("/var/run/cdi/kata-gpu-x.json", "0000:01:00.0"),)),
    driverctl=(),
    asked=AskedLink(
        path=Settings().pod_resources_link,
        kubelet=PodResources().kubelet,
        is_wanted=True,
        is_there=True,
        target="/run/kata-gpu/pod-resources-0123abcd.sock",
        leads_to_agent=True,
        is_target_there=True,
        is_served=True,
    ),
    agent=AgentFacts(settings=_PART, blueprint=_PART, ledger=_PART, socket=_PART),
)


def with_(part: str, **changes: Any) -> NodeFacts:
    """Return the fit node with one part changed."""
    return replace(FIT, **{part: replace(getattr(FIT, part), **changes)})


STATUS: Final = "Name:\tpython3\nUid:\t0\t{user}\t0\t0\nCapEff:\t{caps}\nCapBnd:\t{caps}\n"
LIMITS: Final = "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  {limit}  {limit}  bytes\n"
_EVERYTHING: Final = "000001ffffffffff"
_DEPENDENCIES: Final = """\
kernel/drivers/vfio/vfio.ko:
kernel/drivers/vfio/vfio_iommu_type1.ko.xz: kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/pci/vfio-pci-core.ko: kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/pci/vfio-pci.ko.zst: kernel/drivers/vfio/pci/vfio-pci-core.ko
"""


def dress(kernel: FakeKernel) -> Path:
    """Give a fake node the files that the doctor reads and nobody else; return its root.

    Its sysfs is of the kind that mountinfo says, whatever the test's folder lies on.
    """
    tree = kernel.tree
    device = tree.root.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    tree.text("proc/cmdline", "root=/dev/sda1 intel_iommu=on -- nomodule\n")
    tree.text("proc/sys/kernel/tainted", "0\n")
    tree.text("proc/self/mountinfo", f"23 27 {number} / /sys rw,relatime - sysfs sysfs rw\n")
    tree.text("proc/self/status", STATUS.format(user=0, caps=_EVERYTHING))
    tree.text("proc/self/limits", LIMITS.format(limit="unlimited"))
    (tree.root / "proc/self/ns").mkdir()
    (tree.root / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    tree.text(f"lib/modules/{RELEASE}/modules.dep", _DEPENDENCIES)
    return tree.root


def add_process(kernel: FakeKernel, pid: int, name: str, limit: str, caps: str) -> None:
    """Let a program run on the fake node, with a limit on the memory it may pin."""
    kernel.tree.text(f"proc/{pid}/comm", f"{name[:15]}\n")
    kernel.tree.text(f"proc/{pid}/limits", LIMITS.format(limit=limit))
    kernel.tree.text(f"proc/{pid}/status", STATUS.format(user=0, caps=caps))
