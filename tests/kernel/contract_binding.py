"""The contract, first part: who holds a function, and who may.

Sources, all Linux: drivers/base/bus.c, drivers/base/dd.c, drivers/base/driver.c,
drivers/pci/pci-driver.c, drivers/vfio/pci/vfio_pci_core.c.
"""

from typing import Final

from tests.kernel.contract import (
    NOWHERE,
    HasVfioDevice,
    Row,
    Write,
    attribute,
    bind,
    on,
    only,
    override,
    probe,
    to_vfio,
    unbind,
)

_GPU_FREE: Final = (unbind("gpu", "bochs-drm"),)
_GPU_FOR_VFIO: Final = (override("gpu", "vfio-pci"), *_GPU_FREE)
_VFS_ON: Final = (
    attribute("nvme-pf", "sriov_drivers_autoprobe", "0"),
    attribute("nvme-pf", "sriov_numvfs", "2"),
)
_PF_WITH_VFS_FREE: Final = (
    *_VFS_ON,
    override("nvme-pf", "vfio-pci"),
    unbind("nvme-pf", "nvme"),
)

_OVERRIDE: Final = (
    Row(
        name="an override may name a driver that does not exist, and moves nothing",
        act=override("gpu", "nosuchdrv"),
        then=(only("gpu", "nosuchdrv"), on("gpu", "bochs-drm")),
    ),
    Row(
        name="a newline clears the override",
        given=(override("gpu", "vfio-pci"),),
        act=override("gpu", "\n"),
        then=(only("gpu", None), on("gpu", "bochs-drm")),
    ),
    Row(
        name="a NUL clears the override",
        given=(override("gpu", "vfio-pci"),),
        act=override("gpu", "\0"),
        then=(only("gpu", None),),
    ),
    Row(
        name="an override keeps its blanks",
        act=override("gpu", "a b"),
        then=(only("gpu", "a b"),),
    ),
    Row(
        name="an override ends at the first newline",
        act=override("gpu", "two\nlines"),
        then=(only("gpu", "two"),),
    ),
    Row(
        name="an override of 4094 bytes is kept",
        act=override("gpu", "a" * 4094),
        then=(only("gpu", "a" * 4094),),
    ),
    Row(
        name="an override of 4095 bytes is refused",
        act=override("gpu", "a" * 4095),
        refusal="EINVAL",
        then=(only("gpu", None),),
    ),
    Row(
        name="an override of a page is refused",
        given=(override("gpu", "vfio-pci"),),
        act=override("gpu", "a" * 4096),
        refusal="EINVAL",
        then=(only("gpu", "vfio-pci"),),
    ),
    Row(
        name="clearing the override does not unbind from VFIO",
        given=to_vfio("gpu"),
        act=override("gpu", "\n"),
        then=(only("gpu", None), on("gpu", "vfio-pci")),
    ),
    Row(
        name="a function that is not there has no override",
        act=Write(f"bus/pci/devices/{NOWHERE}/driver_override", "vfio-pci"),
        refusal="ENOENT",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="an attribute that is only read cannot be opened for writing, by root either",
        act=attribute("gpu", "vendor", "0x1234"),
        refusal="EACCES",
        then=(on("gpu", "bochs-drm"),),
    ),
)

_UNBIND: Final = (
    Row(
        name="unbind takes a function from its driver",
        act=unbind("gpu", "bochs-drm"),
        then=(on("gpu", None), only("gpu", None)),
    ),
    Row(
        name="unbind takes an address with a newline",
        act=Write("bus/pci/drivers/bochs-drm/unbind", "{gpu}\n"),
        then=(on("gpu", None),),
    ),
    Row(
        name="unbind from a driver that does not own the function is refused",
        act=unbind("gpu", "e1000e"),
        refusal="ENODEV",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a second unbind is refused",
        given=_GPU_FREE,
        act=unbind("gpu", "bochs-drm"),
        refusal="ENODEV",
        then=(on("gpu", None),),
    ),
    Row(
        name="unbind of an unknown address is refused",
        act=Write("bus/pci/drivers/bochs-drm/unbind", NOWHERE),
        refusal="ENODEV",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="unbind of what is no address is refused",
        act=Write("bus/pci/drivers/bochs-drm/unbind", "garbage"),
        refusal="ENODEV",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a driver that is not loaded has no unbind",
        act=unbind("gpu", "nosuchdrv"),
        refusal="ENOENT",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="unbind from VFIO takes the VFIO device and the group's node away",
        given=to_vfio("gpu"),
        act=unbind("gpu", "vfio-pci"),
        then=(on("gpu", None), only("gpu", "vfio-pci"), HasVfioDevice("gpu", has=False)),
    ),
)

_BIND: Final = (
    Row(
        name="bind to VFIO works for the override, and makes a VFIO device and a group node",
        given=_GPU_FOR_VFIO,
        act=bind("gpu", "vfio-pci"),
        then=(on("gpu", "vfio-pci"), HasVfioDevice("gpu")),
    ),
    Row(
        name="bind takes an address with a newline",
        given=_GPU_FOR_VFIO,
        act=Write("bus/pci/drivers/vfio-pci/bind", "{gpu}\n"),
        then=(on("gpu", "vfio-pci"),),
    ),
    Row(
        name="bind to VFIO without the override is refused",
        given=_GPU_FREE,
        act=bind("gpu", "vfio-pci"),
        refusal="ENODEV",
        then=(on("gpu", None),),
    ),
    Row(
        name="bind to the driver that already holds the function is refused",
        act=bind("nic", "e1000e"),
        refusal="EBUSY",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="bind to VFIO, which already holds the function, is refused",
        given=to_vfio("gpu"),
        act=bind("gpu", "vfio-pci"),
        refusal="EBUSY",
        then=(on("gpu", "vfio-pci"),),
    ),
    Row(
        name="bind to another driver that does not match is refused as no match, not as busy",
        act=bind("gpu", "vfio-pci"),
        refusal="ENODEV",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="bind to the driver of the override is refused as busy while another holds it",
        given=(override("gpu", "vfio-pci"),),
        act=bind("gpu", "vfio-pci"),
        refusal="EBUSY",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="bind to the host driver is refused while the override names another",
        given=_GPU_FOR_VFIO,
        act=bind("gpu", "bochs-drm"),
        refusal="ENODEV",
        then=(on("gpu", None),),
    ),
    Row(
        name="bind to the host driver works without an override",
        given=_GPU_FREE,
        act=bind("gpu", "bochs-drm"),
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="bind to the host driver works with an override that names it",
        given=(override("gpu", "bochs-drm"), *_GPU_FREE),
        act=bind("gpu", "bochs-drm"),
        then=(on("gpu", "bochs-drm"), only("gpu", "bochs-drm")),
    ),
    Row(
        name="bind of an unknown address is refused",
        act=Write("bus/pci/drivers/vfio-pci/bind", NOWHERE),
        refusal="ENODEV",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a driver that is not loaded has no bind",
        given=_GPU_FREE,
        act=bind("gpu", "nosuchdrv"),
        refusal="ENOENT",
        then=(on("gpu", None),),
    ),
    Row(
        name="bind of a port to VFIO is refused as busy while its own driver holds it",
        given=(override("spare-port", "vfio-pci"),),
        act=bind("spare-port", "vfio-pci"),
        refusal="EBUSY",
        then=(on("spare-port", "pcieport"),),
    ),
    Row(
        name="bind of a port to VFIO is refused for its header type",
        given=(override("spare-port", "vfio-pci"), unbind("spare-port", "pcieport")),
        act=bind("spare-port", "vfio-pci"),
        refusal="EINVAL",
        then=(on("spare-port", None),),
    ),
    Row(
        name="bind of a bridge to VFIO is refused for its header type",
        given=(override("pci-bridge", "vfio-pci"),),
        act=bind("pci-bridge", "vfio-pci"),
        refusal="EINVAL",
        then=(on("pci-bridge", None),),
    ),
    Row(
        name="bind of a physical function to VFIO is refused while it has virtual ones",
        given=_PF_WITH_VFS_FREE,
        act=bind("nvme-pf", "vfio-pci"),
        refusal="EBUSY",
        then=(on("nvme-pf", None),),
    ),
    Row(
        name="bind of a virtual function is refused while its parent does not let it probe",
        given=_VFS_ON,
        act=bind("vf", "nvme"),
        refusal="ENODEV",
        then=(on("vf", None),),
    ),
    Row(
        name="an override lets a virtual function be bound all the same",
        given=(*_VFS_ON, override("vf", "vfio-pci")),
        act=bind("vf", "vfio-pci"),
        then=(on("vf", "vfio-pci"), HasVfioDevice("vf")),
    ),
)

_PROBE: Final = (
    Row(
        name="a probe gives a function to the driver of its override",
        given=_GPU_FOR_VFIO,
        act=probe("gpu"),
        then=(on("gpu", "vfio-pci"),),
    ),
    Row(
        name="a probe gives a function without an override to the driver that knows it",
        given=_GPU_FREE,
        act=probe("gpu"),
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a probe succeeds although the override names a driver that is not there",
        given=(override("gpu", "nosuchdrv"), *_GPU_FREE),
        act=probe("gpu"),
        then=(on("gpu", None),),
    ),
    Row(
        name="a probe succeeds although no driver knows the function",
        act=probe("bridged-mate"),
        then=(on("bridged-mate", None),),
    ),
    Row(
        name="a probe succeeds and does nothing when a driver already holds the function",
        given=(override("gpu", "vfio-pci"),),
        act=probe("gpu"),
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a probe succeeds although the override's driver refuses what it does not know",
        given=(override("bridged-mate", "bochs-drm"),),
        act=probe("bridged-mate"),
        then=(on("bridged-mate", None),),
    ),
    Row(
        name="a probe succeeds although VFIO refuses the header type",
        given=(override("pci-bridge", "vfio-pci"),),
        act=probe("pci-bridge"),
        then=(on("pci-bridge", None),),
    ),
    Row(
        name="a probe succeeds although VFIO refuses a physical function with virtual ones",
        given=_PF_WITH_VFS_FREE,
        act=probe("nvme-pf"),
        then=(on("nvme-pf", None),),
    ),
    Row(
        name="a probe succeeds although the parent does not let the virtual function probe",
        given=_VFS_ON,
        act=probe("vf"),
        then=(on("vf", None),),
    ),
    Row(
        name="a probe of an unknown address is refused",
        act=Write("bus/pci/drivers_probe", NOWHERE),
        refusal="ENODEV",
        then=(on("gpu", "bochs-drm"),),
    ),
)

ROWS: Final = (*_OVERRIDE, *_UNBIND, *_BIND, *_PROBE)
