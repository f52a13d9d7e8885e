"""The two kernels that the contract is held against, with the same devices by role."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from kata_gpu.host import Host
from tests.kernel import vfio_user
from tests.kernel.fake import RELEASE, ROOT_PORT, FakeKernel
from tests.kernel.specs import PCI_BRIDGE, PciId, Sriov


class Locates(Protocol):
    """Whatever knows where devices are: the lab's machine, for one."""

    def address(self, role: str) -> str:
        """Return where the function with a role is."""


class Target(Locates, Protocol):
    """A kernel with the contract's devices."""

    @property
    def host(self) -> Host:
        """The host that it runs."""

    def holding(self, address: str) -> AbstractContextManager[None]:
        """Let a VM have a function open; OSError as the kernel refuses it."""


class RealTarget:
    """The kernel that this test runs on."""

    def __init__(self, machine: Locates) -> None:
        self._machine = machine
        self._addresses: dict[str, str] = {}  # no row moves a function
        self.host = Host.at()

    def address(self, role: str) -> str:
        if role not in self._addresses:
            self._addresses[role] = self._machine.address(role)
        return self._addresses[role]

    def holding(self, address: str) -> AbstractContextManager[None]:
        return vfio_user.holding(address)


class FakeTarget:
    """The fake kernel, with the devices of the lab's machine."""

    _ADDRESSES: Final[Mapping[str, str]] = {
        "gpu": "0000:02:00.0",
        "card": "0000:03:00.0",
        "audio": "0000:03:00.1",
        "pci-bridge": "0000:04:00.0",
        "bridged-gpu": "0000:05:01.0",
        "bridged-mate": "0000:05:02.0",
        "nvme-pf": "0000:06:00.0",
        "nic": "0000:07:00.0",
        "spare-port": "0000:00:07.0",
    }

    def __init__(self, root: Path, *, iommu: bool = True, release: str = RELEASE) -> None:
        self._kernel = FakeKernel(root, iommu="dmar0" if iommu else None, release=release)
        self.host = self._kernel.host
        _add_drivers(self._kernel)
        _add_functions(self._kernel, self._ADDRESSES)

    def address(self, role: str) -> str:
        return self._ADDRESSES[role]

    def holding(self, address: str) -> AbstractContextManager[None]:
        return self._kernel.vm_holds(address)


def _add_drivers(kernel: FakeKernel) -> None:
    kernel.add_driver("pcieport", ids=[PciId(subclass=PCI_BRIDGE >> 8)], managed_dma=True)
    kernel.add_driver("bochs-drm", module="bochs", ids=[(0x10DE, 0x2330), (0x10DE, 0x1E04)])
    kernel.add_driver("snd_hda_intel", ids=[PciId(subclass=0x0403)])
    kernel.add_driver("nvme", ids=[PciId(subclass=0x0108)], sriov=Sriov.KEEPS_VFS)
    kernel.add_driver("e1000e", ids=[(0x8086, 0x10D3)])
    kernel.add_driver("vfio-pci", vfio=True, aliases=("vfio_pci:v*d*sv*sd*bc*sc*i*",), loaded=False)
    kernel.add_driver("pci-stub", managed_dma=True, takes_anything=True, loaded=False)


def _add_functions(kernel: FakeKernel, at: Mapping[str, str]) -> None:
    kernel.add_port(at["spare-port"])
    _add_display(kernel, at["gpu"], group=50)
    _add_display(kernel, at["card"], group=51, device=0x1E04, class_code=0x030000)
    kernel.add_device(
        at["audio"],
        vendor=0x10DE,
        device=0x10F7,
        class_code=0x040300,
        driver="snd_hda_intel",
        group=51,
        reset_methods=(),
    )
    kernel.add_device(
        at["pci-bridge"],
        vendor=0x1B36,
        device=0x000E,
        class_code=PCI_BRIDGE,
        group=52,
        header_type=1,
        reset_methods=(),
    )
    _add_display(kernel, at["bridged-gpu"], group=52, parent=at["pci-bridge"])
    kernel.add_device(
        at["bridged-mate"],
        vendor=0x1234,
        device=0x11E8,
        class_code=0x00FF00,
        group=52,
        parent=at["pci-bridge"],
        reset_methods=(),
        pcie=False,
    )
    kernel.add_device(
        at["nvme-pf"],
        vendor=0x1B36,
        device=0x0010,
        class_code=0x010802,
        driver="nvme",
        group=53,
        total_vfs=4,
    )
    kernel.add_device(
        at["nic"],
        vendor=0x8086,
        device=0x10D3,
        class_code=0x020000,
        driver="e1000e",
        group=54,
        reset_methods=("pm", "bus"),
    )


def _add_display(
    kernel: FakeKernel,
    address: str,
    *,
    group: int,
    device: int = 0x2330,
    class_code: int = 0x030200,
    parent: str = ROOT_PORT,
) -> None:
    kernel.add_device(
        address,
        vendor=0x10DE,
        device=device,
        class_code=class_code,
        driver="bochs-drm",
        parent=parent,
        group=group,
        reset_methods=("bus",),
    )
