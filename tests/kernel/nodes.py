"""Ready-made nodes: the shapes that decisions depend on, with the ids of real products.

Each has its devices on their host drivers and vfio-pci to load. The contract's node, which
mirrors the lab's, is in `tests.kernel.targets`.
"""

from pathlib import Path
from typing import Final

from tests.kernel.fake import FakeKernel
from tests.kernel.specs import PCI_BRIDGE, PciId, Sriov

GPU: Final = "0000:01:00.0"
AUDIO: Final = "0000:01:00.1"
BRIDGED: Final = ("0000:02:01.0", "0000:02:02.0")
HGX_GPUS: Final = ("0000:43:00.0", "0000:44:00.0", "0000:45:00.0", "0000:46:00.0")
HGX_SWITCH: Final = "0000:47:00.0"
EIGHT_GPUS: Final = tuple(f"0000:{bus:02x}:00.0" for bus in range(1, 9))
AMD_GPU: Final = "0000:02:00.0"
INTEL_GPU: Final = "0000:03:00.0"
DISK: Final = "0000:01:00.1"

GRACE_ALIAS: Final = "vfio_pci:v000010DEd00002342sv*sd*bc*sc*i*"

_NVIDIA: Final = 0x10DE
_H100: Final = 0x2330
_H100_SUBSYSTEM: Final = (0x10DE, 0x16C1)
_GH200: Final = 0x2342
_RTX_2080_TI: Final = 0x1E04
_RTX_2080_TI_AUDIO: Final = 0x10F7
_RTX_SUBSYSTEM: Final = (0x10DE, 0x12FA)
_NVSWITCH: Final = 0x22A3
_BIG_BARS: Final = (16 << 20, 128 << 30, 32 << 20)
_SMALL_BARS: Final = (16 << 20, 256 << 20, 32 << 20)
_AUDIO_BARS: Final = (16 << 10,)


def bare(root: Path, *, iommu: str | None = "dmar0", cdevs: bool = False) -> FakeKernel:
    """Return a node with drivers and no devices."""
    kernel = FakeKernel(root, iommu=iommu, interrupt_remapping=iommu is not None, cdevs=cdevs)
    kernel.add_driver("pcieport", ids=[PciId(subclass=PCI_BRIDGE >> 8)], managed_dma=True)
    kernel.add_driver(
        "nvidia",
        ids=[PciId(vendor=_NVIDIA, subclass=subclass) for subclass in (0x0300, 0x0302)],
    )
    kernel.add_driver(
        "nvidia-nvswitch", module="nvidia", ids=[PciId(vendor=_NVIDIA, subclass=0x0680)]
    )
    kernel.add_driver("snd_hda_intel", ids=[PciId(subclass=0x0403)])
    kernel.add_driver("amdgpu", ids=[(0x1002, 0x740F)])
    kernel.add_driver("xe", ids=[(0x8086, 0x56C0)], sriov=Sriov.REMOVES_VFS)
    kernel.add_driver("nvme", ids=[PciId(subclass=0x0108)], sriov=Sriov.KEEPS_VFS)
    kernel.add_driver("vfio-pci", vfio=True, aliases=("vfio_pci:v*d*sv*sd*bc*sc*i*",), loaded=False)
    kernel.add_driver("pci-stub", managed_dma=True, takes_anything=True, loaded=False)
    return kernel


def single_gpu(root: Path, *, cdevs: bool = False) -> FakeKernel:
    """One H100, alone in its group."""
    kernel = bare(root, cdevs=cdevs)
    _h100(kernel, GPU)
    return kernel


def eight_gpus(root: Path) -> FakeKernel:
    """Eight H100s, each alone in its group."""
    kernel = bare(root)
    for gpu in EIGHT_GPUS:
        _h100(kernel, gpu, parent=f"0000:00:{gpu[5:7]}.0")
    return kernel


def grace(root: Path, *, variant: bool = True, loaded: bool = True) -> FakeKernel:
    """One GH200, and the VFIO variant that it needs, if the host has it."""
    kernel = bare(root)
    if variant:
        add_grace_driver(kernel, loaded=loaded)
    kernel.add_device(
        GPU,
        vendor=_NVIDIA,
        device=_GH200,
        class_code=0x030200,
        driver="nvidia",
        group=1,
        subsystem=(0x10DE, 0x16EB),
        revision=0xA1,
        bars=_BIG_BARS,
    )
    return kernel


def add_grace_driver(kernel: FakeKernel, *, loaded: bool) -> None:
    """Give a host the variant for Grace, whose driver is not called as its module is."""
    kernel.add_driver(
        "nvgrace-gpu-vfio-pci",
        module="nvgrace_gpu_vfio_pci",
        vfio=True,
        aliases=(GRACE_ALIAS,),
        loaded=loaded,
    )


def no_iommu(root: Path) -> FakeKernel:
    """One H100 on a host whose IOMMU is off."""
    kernel = bare(root, iommu=None)
    _h100(kernel, GPU)
    return kernel


def gpu_with_audio(
    root: Path, *, reset_methods: tuple[str, ...] = ("bus",), audio_group: int = 1
) -> FakeKernel:
    """A GeForce with its audio function, in one slot and one group, unless told otherwise."""
    kernel = bare(root)
    _geforce(kernel, boot_vga=False, reset_methods=reset_methods)
    kernel.add_device(
        AUDIO,
        vendor=_NVIDIA,
        device=_RTX_2080_TI_AUDIO,
        class_code=0x040300,
        driver="snd_hda_intel",
        group=audio_group,
        subsystem=_RTX_SUBSYSTEM,
        revision=0xA1,
        multifunction=True,
        reset_methods=(),
        bars=_AUDIO_BARS,
    )
    return kernel


def boot_display(root: Path) -> FakeKernel:
    """A GeForce that the firmware showed its console on."""
    kernel = bare(root)
    _geforce(kernel, boot_vga=True)
    return kernel


def storage_in_group(root: Path) -> FakeKernel:
    """An H100 that shares its group with an NVMe disk."""
    kernel = bare(root)
    _h100(kernel, GPU, group=1)
    kernel.add_device(
        DISK,
        vendor=0x144D,
        device=0xA80A,
        class_code=0x010802,
        driver="nvme",
        group=1,
        bars=(16 << 10,),
    )
    return kernel


def bridge_pair(root: Path, *, reset_methods: tuple[str, ...] = ("bus",)) -> FakeKernel:
    """Two GPUs behind a PCIe-to-PCI bridge, with the bridge in one group."""
    kernel = bare(root)
    kernel.add_device(
        "0000:01:00.0",
        vendor=0x104C,
        device=0x8240,
        class_code=PCI_BRIDGE,
        group=1,
        header_type=1,
        reset_methods=(),
        bars=(),
    )
    for address in BRIDGED:
        _h100(kernel, address, parent="0000:01:00.0", group=1, reset_methods=reset_methods)
    return kernel


def hgx(root: Path) -> FakeKernel:
    """Four H100s and an NVSwitch behind a PCIe switch, on the second NUMA node."""
    kernel = bare(root)
    kernel.add_port("0000:40:01.0")
    kernel.add_port("0000:41:00.0", parent="0000:40:01.0")
    for index, address in enumerate((*HGX_GPUS, HGX_SWITCH)):
        kernel.add_port(f"0000:42:{index:02x}.0", parent="0000:41:00.0")
        if address != HGX_SWITCH:
            _h100(kernel, address, parent=f"0000:42:{index:02x}.0", numa_node=1)
    kernel.add_device(
        HGX_SWITCH,
        vendor=_NVIDIA,
        device=_NVSWITCH,
        class_code=0x068000,
        driver="nvidia-nvswitch",
        parent="0000:42:04.0",
        subsystem=(0x10DE, 0x1796),
        revision=0xA1,
        numa_node=1,
        bars=(32 << 20,),
    )
    return kernel


def sriov(root: Path, *, vfs: int = 0) -> FakeKernel:
    """An Intel Flex 140 that can have 31 virtual functions, and has *vfs*, on no driver."""
    kernel = bare(root)
    _flex(kernel, GPU, total_vfs=31, vfs=vfs)
    return kernel


def three_vendors(root: Path) -> FakeKernel:
    """An NVIDIA H100, an AMD Instinct MI210 and an Intel Flex 140, each on its own driver."""
    kernel = bare(root)
    _h100(kernel, GPU)
    kernel.add_device(
        AMD_GPU,
        vendor=0x1002,
        device=0x740F,
        class_code=0x038000,
        driver="amdgpu",
        parent="0000:00:02.0",
        subsystem=(0x1002, 0x0C34),
        revision=0x02,
        reset_methods=("bus",),
        bars=(64 << 30, 2 << 20),
    )
    _flex(kernel, INTEL_GPU, parent="0000:00:03.0")
    return kernel


def _h100(
    kernel: FakeKernel,
    address: str,
    *,
    parent: str = "0000:00:01.0",
    group: int | None = None,
    numa_node: int = 0,
    reset_methods: tuple[str, ...] = ("flr", "bus"),
) -> None:
    kernel.add_device(
        address,
        vendor=_NVIDIA,
        device=_H100,
        class_code=0x030200,
        driver="nvidia",
        parent=parent,
        group=group,
        subsystem=_H100_SUBSYSTEM,
        revision=0xA1,
        numa_node=numa_node,
        reset_methods=reset_methods,
        bars=_BIG_BARS,
        link=("32.0 GT/s PCIe", 16),
    )


def _geforce(
    kernel: FakeKernel, *, boot_vga: bool, reset_methods: tuple[str, ...] = ("bus",)
) -> None:
    kernel.add_device(
        GPU,
        vendor=_NVIDIA,
        device=_RTX_2080_TI,
        class_code=0x030000,
        driver="nvidia",
        group=1,
        subsystem=_RTX_SUBSYSTEM,
        revision=0xA1,
        boot_vga=boot_vga,
        multifunction=True,
        reset_methods=reset_methods,
        bars=_SMALL_BARS,
    )


def _flex(
    kernel: FakeKernel,
    address: str,
    *,
    parent: str = "0000:00:01.0",
    total_vfs: int = 0,
    vfs: int = 0,
) -> None:
    kernel.add_device(
        address,
        vendor=0x8086,
        device=0x56C0,
        class_code=0x038000,
        driver="xe",
        parent=parent,
        subsystem=(0x8086, 0x4905),
        revision=0x05,
        total_vfs=total_vfs,
        vfs=vfs,
        bars=(16 << 20, 8 << 30),
    )
