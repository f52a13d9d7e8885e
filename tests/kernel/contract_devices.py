"""The contract, third part: functions that are reset, that come and go, and that multiply.

Sources, all Linux: drivers/pci/pci-sysfs.c, drivers/pci/pci.c, drivers/pci/iov.c and, for a
host without an IOMMU, vfio_register_group_dev in drivers/vfio.
"""

from collections.abc import Mapping
from typing import Final

from tests.kernel.contract import (
    NOWHERE,
    Exists,
    HasVfioDevice,
    Leads,
    Reads,
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

LEFT_OUT: Final[Mapping[str, str]] = {
    "bind: EPERM from nvidia": "its probe answers -1 to every failure; the lab has no such driver",
    "bind: EAGAIN for a deferred probe": "no device of the lab defers",
    "bind: EINVAL for a denied device": "the devices that vfio-pci denies are not emulated",
    "bind: a host driver's word on what it does not know": (
        "each has its own errno; the fake kernel's drivers say ENODEV"
    ),
    "driver_override: ENOMEM": "needs an allocation to fail",
    "reset: no answer for up to 60 s": "no emulated device is slow to come back",
    "unbind and remove of a function in use": "they wait for ever; tests/kernel/test_fake.py",
    "drivers_autoprobe on hot-plug by QEMU": "the same path as rescan, which is here",
    "enable, msi_bus, resourceN_resize, reset_subordinate: EPERM": (
        "the agent writes none of them, and the fake kernel refuses them loudly"
    ),
}
"""What is known of the kernel and not in the rows, and why."""

_GPU_FREE: Final = (unbind("gpu", "bochs-drm"),)
_VFS_ON: Final = (
    attribute("nvme-pf", "sriov_drivers_autoprobe", "0"),
    attribute("nvme-pf", "sriov_numvfs", "2"),
)
_VIRTUAL: Final = "bus/pci/devices/{nvme-pf}/virtfn"
_NUMVFS: Final = "bus/pci/devices/{nvme-pf}/sriov_numvfs"

_RESET: Final = (
    Row(
        name="a reset works under the host driver",
        act=attribute("nic", "reset", "1"),
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="a reset takes its number with a newline, and in hexadecimal",
        act=attribute("nic", "reset", "0x1\n"),
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="a reset works without a driver",
        given=_GPU_FREE,
        act=attribute("gpu", "reset", "1"),
        then=(on("gpu", None),),
    ),
    Row(
        name="a reset works under a VM that has the function",
        given=to_vfio("gpu"),
        held="gpu",
        act=attribute("gpu", "reset", "1"),
        then=(on("gpu", "vfio-pci"),),
    ),
    Row(
        name="a reset by another number is refused",
        act=attribute("nic", "reset", "0"),
        refusal="EINVAL",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="a reset by a negative number is refused",
        act=attribute("nic", "reset", "-1"),
        refusal="EINVAL",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="a reset by what is no number is refused",
        act=attribute("nic", "reset", "x"),
        refusal="EINVAL",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="a reset of the bus is refused while another function is on it",
        act=attribute("card", "reset", "1"),
        refusal="ENOTTY",
        then=(Reads("bus/pci/devices/{card}/reset_method", "bus"), on("card", "bochs-drm")),
    ),
    Row(
        name="a function without a reset method has no reset",
        act=attribute("audio", "reset", "1"),
        refusal="ENOENT",
        then=(Exists("sys/bus/pci/devices/{audio}/reset_method", there=False),),
    ),
    Row(
        name="a reset with no method chosen is refused",
        given=(attribute("nic", "reset_method", "\n"),),
        act=attribute("nic", "reset", "1"),
        refusal="ENOTTY",
        then=(Reads("bus/pci/devices/{nic}/reset_method", ""),),
    ),
    Row(
        name="a reset method can be chosen",
        act=attribute("nic", "reset_method", "bus"),
        then=(Reads("bus/pci/devices/{nic}/reset_method", "bus"),),
    ),
    Row(
        name="the default reset methods come back by name",
        given=(attribute("nic", "reset_method", "\n"),),
        act=attribute("nic", "reset_method", "default"),
        then=(Reads("bus/pci/devices/{nic}/reset_method", "pm bus"),),
    ),
    Row(
        name="a reset of the bus cannot be chosen while another function is on it",
        act=attribute("card", "reset_method", "bus"),
        refusal="EINVAL",
        then=(Reads("bus/pci/devices/{card}/reset_method", "bus"),),
    ),
    Row(
        name="a reset method that the function has not is refused",
        act=attribute("nic", "reset_method", "flr"),
        refusal="EINVAL",
        then=(Reads("bus/pci/devices/{nic}/reset_method", "pm bus"),),
    ),
    Row(
        name="a reset method that does not exist is refused",
        act=attribute("nic", "reset_method", "hope"),
        refusal="EINVAL",
        then=(Reads("bus/pci/devices/{nic}/reset_method", "pm bus"),),
    ),
)

_REMOVE: Final = (
    Row(
        name="a function that is removed is gone, and its driver has it no more",
        act=attribute("nic", "remove", "1"),
        then=(
            Exists("sys/bus/pci/devices/{nic}", there=False),
            Exists("sys/bus/pci/drivers/e1000e/{nic}", there=False),
        ),
        undo=(Write("bus/pci/rescan", "1"),),
    ),
    Row(
        name="a function that is removed cannot be bound",
        given=(attribute("nic", "remove", "1"),),
        act=bind("nic", "e1000e"),
        refusal="ENODEV",
        then=(Exists("sys/bus/pci/devices/{nic}", there=False),),
        undo=(Write("bus/pci/rescan", "1"),),
    ),
    Row(
        name="a function that comes back has lost its override, and the host driver takes it",
        given=(*to_vfio("nic"), attribute("nic", "remove", "1")),
        act=Write("bus/pci/rescan", "1"),
        then=(on("nic", "e1000e"), only("nic", None)),
    ),
    Row(
        name="a function that comes while the bus does not probe is taken until Linux 7",
        given=(attribute("nic", "remove", "1"), Write("bus/pci/drivers_autoprobe", "0")),
        act=Write("bus/pci/rescan", "1"),
        then=(on("nic", "e1000e"),),
        then_from_7=(on("nic", None),),
        undo=(Write("bus/pci/drivers_autoprobe", "1"),),
    ),
    Row(
        name="remove with 0 does nothing",
        act=attribute("nic", "remove", "0"),
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="remove with what is no number is refused",
        act=attribute("nic", "remove", "x"),
        refusal="EINVAL",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="rescan with what is no number is refused",
        act=Write("bus/pci/rescan", "x"),
        refusal="EINVAL",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="a function that is not there cannot be removed",
        act=Write(f"bus/pci/devices/{NOWHERE}/remove", "1"),
        refusal="ENOENT",
        then=(on("nic", "e1000e"),),
    ),
)

_SRIOV: Final = (
    Row(
        name="virtual functions appear, each with a link to the physical one",
        given=(attribute("nvme-pf", "sriov_drivers_autoprobe", "0"),),
        act=Write(_NUMVFS, "2"),
        then=(
            Reads(_NUMVFS, "2"),
            Leads("bus/pci/devices/{vf}/physfn", "{nvme-pf}"),
            on("vf", None),
            Exists("sys/bus/pci/devices/{vf}/iommu_group"),
            Exists(f"sys/{_VIRTUAL}1"),
            Exists(f"sys/{_VIRTUAL}2", there=False),
        ),
    ),
    Row(
        name="more virtual functions than there are is refused",
        act=Write(_NUMVFS, "5"),
        refusal="ERANGE",
        then=(Reads(_NUMVFS, "0"),),
    ),
    Row(
        name="another number of virtual functions is refused until there are none",
        given=_VFS_ON,
        act=Write(_NUMVFS, "3"),
        refusal="EBUSY",
        then=(Reads(_NUMVFS, "2"),),
    ),
    Row(
        name="the same number of virtual functions is accepted",
        given=_VFS_ON,
        act=Write(_NUMVFS, "2"),
        then=(Reads(_NUMVFS, "2"),),
    ),
    Row(
        name="0 takes all virtual functions away",
        given=_VFS_ON,
        act=Write(_NUMVFS, "0"),
        then=(Reads(_NUMVFS, "0"), Exists(f"sys/{_VIRTUAL}0", there=False)),
    ),
    Row(
        name="what is no number of virtual functions is refused",
        act=Write(_NUMVFS, "many"),
        refusal="EINVAL",
        then=(Reads(_NUMVFS, "0"),),
    ),
    Row(
        name="virtual functions need a driver on the physical one",
        given=(unbind("nvme-pf", "nvme"),),
        act=Write(_NUMVFS, "2"),
        refusal="ENOENT",
        then=(Reads(_NUMVFS, "0"),),
    ),
    Row(
        name="vfio-pci enables no virtual functions",
        given=to_vfio("nvme-pf"),
        act=Write(_NUMVFS, "2"),
        refusal="ENOENT",
        then=(Reads(_NUMVFS, "0"),),
    ),
    Row(
        name="nvme leaves its virtual functions on, and then nobody can take them away",
        given=(*_VFS_ON, unbind("nvme-pf", "nvme")),
        act=Write(_NUMVFS, "0"),
        refusal="ENOENT",
        then=(Reads(_NUMVFS, "2"), on("nvme-pf", None)),
    ),
    Row(
        name="that virtual functions are not to probe is read back",
        act=attribute("nvme-pf", "sriov_drivers_autoprobe", "0"),
        then=(Reads("bus/pci/devices/{nvme-pf}/sriov_drivers_autoprobe", "0"),),
    ),
    Row(
        name="whether virtual functions probe may change while there are some",
        given=_VFS_ON,
        act=attribute("nvme-pf", "sriov_drivers_autoprobe", "1"),
        then=(
            Reads("bus/pci/devices/{nvme-pf}/sriov_drivers_autoprobe", "1"),
            on("vf", None),
        ),
    ),
    Row(
        name="the choice whether virtual functions probe outlasts them",
        given=_VFS_ON,
        act=Write(_NUMVFS, "0"),
        then=(Reads("bus/pci/devices/{nvme-pf}/sriov_drivers_autoprobe", "0"),),
    ),
    Row(
        name="whether virtual functions probe is yes or no",
        act=attribute("nvme-pf", "sriov_drivers_autoprobe", "x"),
        refusal="EINVAL",
        then=(Reads("bus/pci/devices/{nvme-pf}/sriov_drivers_autoprobe", "1"),),
    ),
    Row(
        name="a function that has no virtual ones has no number of them",
        act=attribute("nic", "sriov_numvfs", "1"),
        refusal="ENOENT",
        then=(on("nic", "e1000e"),),
    ),
)

_NO_GROUP: Final = Exists("sys/bus/pci/devices/{gpu}/iommu_group", there=False)

ROWS: Final = (*_RESET, *_REMOVE, *_SRIOV)

ROWS_WITH_NO_WAY_BACK: Final = (
    Row(
        name="the default reset methods are worked out anew: a reset of the bus may be lost",
        act=attribute("card", "reset_method", "default"),
        then=(Reads("bus/pci/devices/{card}/reset_method", ""),),
    ),
    Row(
        name="functions of one slot that come back have groups of their own",
        given=(attribute("card", "remove", "1"), attribute("audio", "remove", "1")),
        act=Write("bus/pci/rescan", "1"),
        then=(
            Exists("sys/bus/pci/devices/{audio}/iommu_group/devices/{audio}"),
            Exists("sys/bus/pci/devices/{audio}/iommu_group/devices/{card}", there=False),
        ),
    ),
)
"""What changes a machine until it boots again: on one of its own, in this order."""

ROWS_WITHOUT_IOMMU: Final = (
    Row(
        name="bind to VFIO is refused without an IOMMU",
        given=(override("gpu", "vfio-pci"), *_GPU_FREE),
        act=bind("gpu", "vfio-pci"),
        refusal="EINVAL",
        then=(on("gpu", None), _NO_GROUP, HasVfioDevice("gpu", has=False)),
    ),
    Row(
        name="a probe succeeds although VFIO refuses a function without an IOMMU",
        given=(override("gpu", "vfio-pci"), *_GPU_FREE),
        act=probe("gpu"),
        then=(on("gpu", None), _NO_GROUP),
    ),
    Row(
        name="the host driver takes a function without an IOMMU",
        given=_GPU_FREE,
        act=bind("gpu", "bochs-drm"),
        then=(on("gpu", "bochs-drm"), _NO_GROUP),
    ),
)
