"""The contract, fourth part: functions that sleep while nobody uses them.

The NIC is the lab's device with a power management capability.

Sources, all Linux: control_store in drivers/base/power/sysfs.c, and
vfio_pci_core_register_device and vfio_pci_core_runtime_suspend in drivers/vfio/pci.
"""

from typing import Final

from tests.kernel.contract import (
    NOWHERE,
    Reads,
    Row,
    Write,
    attribute,
    bind,
    on,
    override,
    to_vfio,
    unbind,
)

_CONTROL: Final = "power/control"
_ASLEEP: Final = Reads("bus/pci/devices/{nic}/power_state", "D3hot")
_AWAKE: Final = Reads("bus/pci/devices/{nic}/power_state", "D0")


def _control(text: str) -> Reads:
    return Reads(f"bus/pci/devices/{{nic}}/{_CONTROL}", text)


ROWS: Final = (
    Row(
        name="a host driver's function is not told to sleep, and is awake",
        act=attribute("nic", _CONTROL, "on"),
        then=(_control("on"), _AWAKE),
    ),
    Row(
        name="VFIO lets a function sleep that nobody uses",
        given=(override("nic", "vfio-pci"), unbind("nic", "e1000e")),
        act=bind("nic", "vfio-pci"),
        then=(_control("auto"), _ASLEEP),
    ),
    Row(
        name="a function that sleeps wakes when it may not any more",
        given=to_vfio("nic"),
        act=attribute("nic", _CONTROL, "on"),
        then=(_control("on"), _AWAKE, on("nic", "vfio-pci")),
    ),
    Row(
        name="a function sleeps again when it may",
        given=(*to_vfio("nic"), attribute("nic", _CONTROL, "on")),
        act=attribute("nic", _CONTROL, "auto\n"),
        then=(_control("auto"), _ASLEEP),
    ),
    Row(
        name="a function that a VM has is awake although it may sleep",
        given=to_vfio("nic"),
        held="nic",
        act=attribute("nic", _CONTROL, "auto"),
        then=(_control("auto"), _AWAKE),
    ),
    Row(
        name="a function that a reset was done to sleeps again",
        given=to_vfio("nic"),
        act=attribute("nic", "reset", "1"),
        then=(_control("auto"), _ASLEEP),
    ),
    Row(
        name="VFIO lets go of a function that may not sleep any more",
        given=to_vfio("nic"),
        act=unbind("nic", "vfio-pci"),
        then=(_control("on"), on("nic", None)),
    ),
    Row(
        name="whether a function may sleep is one of two words",
        given=to_vfio("nic"),
        act=attribute("nic", _CONTROL, "off"),
        refusal="EINVAL",
        then=(_control("auto"), _ASLEEP),
    ),
    Row(
        name="a function that is not there cannot be woken",
        act=Write(f"bus/pci/devices/{NOWHERE}/{_CONTROL}", "on"),
        refusal="ENOENT",
        then=(on("nic", "e1000e"),),
    ),
)
