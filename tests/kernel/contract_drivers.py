"""The contract, second part: groups that a VM has, drivers that come, and ids they learn.

Sources, all Linux: drivers/vfio/group.c and container.c, iommu_device_use_default_domain in
drivers/iommu/iommu.c, bus_add_driver in drivers/base/bus.c, new_id_store and remove_id_store
in drivers/pci/pci-driver.c.
"""

from typing import Final

from tests.kernel.contract import (
    HasVfioDevice,
    Hold,
    Leads,
    Load,
    Reads,
    Row,
    Unload,
    Write,
    bind,
    on,
    override,
    probe,
    to_vfio,
    unbind,
)

_AUDIO_FREE: Final = (*to_vfio("card"), unbind("audio", "snd_hda_intel"))
_GPU_FREE: Final = (unbind("gpu", "bochs-drm"),)
_NEW_ID: Final = "bus/pci/drivers/vfio-pci/new_id"
_REMOVE_ID: Final = "bus/pci/drivers/vfio-pci/remove_id"
_GPU_ID: Final = "10de 2330"
_FORGET: Final = (Write(_REMOVE_ID, _GPU_ID),)

_GROUPS: Final = (
    Row(
        name="a VM cannot open a function that is not on VFIO",
        act=Hold("gpu"),
        refusal="ENOENT",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a VM can open a function on VFIO",
        given=to_vfio("gpu"),
        act=Hold("gpu"),
        then=(on("gpu", "vfio-pci"), HasVfioDevice("gpu")),
    ),
    Row(
        name="a second VM cannot open the group",
        given=to_vfio("gpu"),
        held="gpu",
        act=Hold("gpu"),
        refusal="EBUSY",
        then=(on("gpu", "vfio-pci"),),
    ),
    Row(
        name="a VM cannot have a group of which a host driver holds another function",
        given=to_vfio("card"),
        act=Hold("card"),
        refusal="EPERM",
        then=(on("card", "vfio-pci"), on("audio", "snd_hda_intel")),
    ),
    Row(
        name="a VM can have a group of which another function has no driver",
        given=_AUDIO_FREE,
        act=Hold("card"),
        then=(on("card", "vfio-pci"), on("audio", None)),
    ),
    Row(
        name="a VM cannot open a function without a driver, though its group is on VFIO",
        given=_AUDIO_FREE,
        act=Hold("audio"),
        refusal="ENODEV",
        then=(on("audio", None),),
    ),
    Row(
        name="a host driver is refused a function while a VM has its group",
        given=_AUDIO_FREE,
        held="card",
        act=bind("audio", "snd_hda_intel"),
        refusal="EBUSY",
        then=(on("audio", None),),
    ),
    Row(
        name="a probe is refused while a VM has the group",
        given=_AUDIO_FREE,
        held="card",
        act=probe("audio"),
        refusal="EINVAL",
        then=(on("audio", None),),
    ),
    Row(
        name="VFIO may take another function while a VM has the group",
        given=(*_AUDIO_FREE, override("audio", "vfio-pci")),
        held="card",
        act=bind("audio", "vfio-pci"),
        then=(on("audio", "vfio-pci"),),
    ),
    Row(
        name="pci-stub may take another function while a VM has the group",
        given=(*_AUDIO_FREE, Load("pci-stub"), override("audio", "pci-stub")),
        held="card",
        act=bind("audio", "pci-stub"),
        then=(on("audio", "pci-stub"),),
        undo=(Unload("pci-stub"),),
    ),
)

_MODULES: Final = (
    Row(
        name="a module that does not exist cannot be loaded",
        act=Load("nosuchmodule"),
        refusal="exit status 1",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a module that is loaded can be loaded again",
        act=Load("vfio-pci"),
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a module shows its PCI drivers, by names of their own",
        act=Load("pci-stub"),
        then=(
            Leads("module/pci_stub/drivers/pci:pci-stub", "pci-stub"),
            Leads("module/vfio_pci/drivers/pci:vfio-pci", "vfio-pci"),
            Leads("module/e1000e/drivers/pci:e1000e", "e1000e"),
        ),
        undo=(Unload("pci-stub"),),
    ),
    Row(
        name="a module that went shows no PCI drivers",
        given=(Load("pci-stub"),),
        act=Unload("pci-stub"),
        then=(Leads("module/pci_stub/drivers/pci:pci-stub", None),),
    ),
    Row(
        name="a driver that comes takes the function whose override names it",
        given=(override("gpu", "pci-stub"), *_GPU_FREE),
        act=Load("pci-stub"),
        then=(on("gpu", "pci-stub"),),
        undo=(Unload("pci-stub"),),
    ),
    Row(
        name="a driver that comes takes no function from another",
        given=(override("gpu", "pci-stub"),),
        act=Load("pci-stub"),
        then=(on("gpu", "bochs-drm"),),
        undo=(Unload("pci-stub"),),
    ),
    Row(
        name="a driver that comes takes every function that it knows and nobody holds",
        given=(Unload("e1000e"),),
        act=Load("e1000e"),
        then=(on("nic", "e1000e"),),
        undo=(Load("e1000e"),),
    ),
    Row(
        name="a driver that comes leaves a function whose override names another",
        given=(override("nic", "vfio-pci"), Unload("e1000e")),
        act=Load("e1000e"),
        then=(on("nic", None),),
        undo=(Load("e1000e"),),
    ),
    Row(
        name="a driver that goes lets go of what it holds",
        act=Unload("e1000e"),
        then=(on("nic", None),),
        undo=(Load("e1000e"),),
    ),
    Row(
        name="a driver that comes takes nothing while the bus does not probe",
        given=(Unload("e1000e"), Write("bus/pci/drivers_autoprobe", "0")),
        act=Load("e1000e"),
        then=(on("nic", None), Reads("bus/pci/drivers_autoprobe", "0")),
        undo=(Load("e1000e"), Write("bus/pci/drivers_autoprobe", "1")),
    ),
    Row(
        name="a probe that is asked for works while the bus does not probe",
        given=(*_GPU_FREE, Write("bus/pci/drivers_autoprobe", "0")),
        act=probe("gpu"),
        then=(on("gpu", "bochs-drm"),),
        undo=(Write("bus/pci/drivers_autoprobe", "1"),),
    ),
)

_IDS: Final = (
    Row(
        name="a new id takes at once every function with it that nobody holds",
        given=(*_GPU_FREE, unbind("bridged-gpu", "bochs-drm")),
        act=Write(_NEW_ID, _GPU_ID),
        then=(on("gpu", "vfio-pci"), on("bridged-gpu", "vfio-pci"), on("nic", "e1000e")),
        undo=_FORGET,
    ),
    Row(
        name="a new id takes no function from another driver",
        act=Write(_NEW_ID, _GPU_ID),
        then=(on("gpu", "bochs-drm"),),
        undo=_FORGET,
    ),
    Row(
        name="a new id takes no function whose override names another driver",
        given=(override("gpu", "nosuchdrv"), *_GPU_FREE),
        act=Write(_NEW_ID, _GPU_ID),
        then=(on("gpu", None),),
        undo=_FORGET,
    ),
    Row(
        name="a new id lets a function be bound without an override",
        given=(Write(_NEW_ID, _GPU_ID), *_GPU_FREE),
        act=bind("gpu", "vfio-pci"),
        then=(on("gpu", "vfio-pci"),),
        undo=_FORGET,
    ),
    Row(
        name="an id cannot be taught twice",
        given=(Write(_NEW_ID, _GPU_ID),),
        act=Write(_NEW_ID, _GPU_ID),
        refusal="EEXIST",
        then=(on("gpu", "bochs-drm"),),
        undo=_FORGET,
    ),
    Row(
        name="an id that the driver knows cannot be taught",
        act=Write("bus/pci/drivers/e1000e/new_id", "8086 10d3"),
        refusal="EEXIST",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="a new id needs a vendor and a device",
        act=Write(_NEW_ID, "10de"),
        refusal="EINVAL",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a new id needs numbers",
        act=Write(_NEW_ID, "not an id"),
        refusal="EINVAL",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a new id cannot have driver data that the driver's table has not",
        act=Write("bus/pci/drivers/e1000e/new_id", "8086 fffe ffffffff ffffffff 0 0 ff"),
        refusal="EINVAL",
        then=(on("nic", "e1000e"),),
    ),
    Row(
        name="an id that was not taught cannot be forgotten",
        act=Write(_REMOVE_ID, _GPU_ID),
        refusal="ENODEV",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="an id to forget needs a vendor and a device",
        act=Write(_REMOVE_ID, "10de"),
        refusal="EINVAL",
        then=(on("gpu", "bochs-drm"),),
    ),
    Row(
        name="a driver keeps what it holds when it forgets the id",
        given=(*_GPU_FREE, Write(_NEW_ID, _GPU_ID)),
        act=Write(_REMOVE_ID, _GPU_ID),
        then=(on("gpu", "vfio-pci"),),
    ),
)

ROWS: Final = (*_GROUPS, *_MODULES, *_IDS)
