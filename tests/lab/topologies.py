"""The machines there are.

GPUs are QEMU's displays with other identities: real endpoints with memory regions and an
in-tree driver that holds them (bochs-drm), which is what a node agent has to take them from.
"""

from typing import Final

from tests.lab.topology import Bridge, Function, Identity, Model, Port, Switch, Topology

# what QEMU emulates

_BOCHS: Final = Model(
    device="bochs-display",
    emulates=Identity(vendor=0x1234, device=0x1111, class_code=0x038000),
    module="bochs",
    driver="bochs-drm",
)
_VGA: Final = Model(
    device="VGA",
    emulates=Identity(vendor=0x1234, device=0x1111, class_code=0x030000),
    module="bochs",
    driver="bochs-drm",
)
_HDA: Final = Model(
    device="intel-hda",
    emulates=Identity(vendor=0x8086, device=0x2668, class_code=0x040300),
    module="snd_hda_intel",
    driver="snd_hda_intel",
)
_EDU: Final = Model(
    device="edu",
    emulates=Identity(vendor=0x1234, device=0x11E8, class_code=0x00FF00),
)
_BIG_MEMORY: Final = Model(
    device="ivshmem-plain,memdev={role}-memory",
    emulates=Identity(vendor=0x1AF4, device=0x1110, class_code=0x050000),
    backends=("-object", "memory-backend-ram,id={role}-memory,size=8G,share=on,reserve=off"),
)
_NVME: Final = Model(
    device="nvme,serial={role},drive={role}-disk",
    emulates=Identity(vendor=0x1B36, device=0x0010, class_code=0x010802),
    module="nvme",
    driver="nvme",
    backends=(
        "-drive",
        "if=none,id={role}-disk,format=raw,file={disk},file.locking=off,snapshot=on",
    ),
)
_NVME_SRIOV: Final = Model(
    device=(
        "nvme,serial={role},subsys={role}-subsystem,sriov_max_vfs=4,sriov_vq_flexible=8,"
        "sriov_vi_flexible=4,max_ioqpairs=26,msix_qsize=16"
    ),
    emulates=Identity(vendor=0x1B36, device=0x0010, class_code=0x010802),
    module="nvme",
    driver="nvme",
    backends=("-device", "nvme-subsys,id={role}-subsystem"),
)
_E1000E: Final = Model(
    device="e1000e,romfile=",
    emulates=Identity(vendor=0x8086, device=0x10D3, class_code=0x020000),
    module="e1000e",
    driver="e1000e",
)

_IGB: Final = Model(
    device="igb,romfile=",
    emulates=Identity(vendor=0x8086, device=0x10C9, class_code=0x020000),
    module="igb",
    driver="igb",
)

# what they are given out for

_H100: Final = Identity(
    vendor=0x10DE,
    device=0x2330,
    class_code=0x030200,
    revision=0xA1,
    subsystem_vendor=0x10DE,
    subsystem_device=0x16C1,
)
_RTX: Final = Identity(
    vendor=0x10DE,
    device=0x1E04,
    class_code=0x030000,
    revision=0xA1,
    subsystem_vendor=0x10DE,
    subsystem_device=0x12FA,
)
_RTX_AUDIO: Final = Identity(
    vendor=0x10DE,
    device=0x10F7,
    class_code=0x040300,
    revision=0xA1,
    subsystem_vendor=0x10DE,
    subsystem_device=0x12FA,
)
_NVSWITCH: Final = Identity(
    vendor=0x10DE,
    device=0x22A3,
    class_code=0x068000,
    revision=0xA1,
    subsystem_vendor=0x10DE,
    subsystem_device=0x1796,
)
_MI210: Final = Identity(
    vendor=0x1002,
    device=0x740F,
    class_code=0x038000,
    revision=0x02,
    subsystem_vendor=0x1002,
    subsystem_device=0x0C34,
)
_FLEX_140: Final = Identity(
    vendor=0x8086,
    device=0x56C0,
    class_code=0x038000,
    revision=0x05,
    subsystem_vendor=0x8086,
    subsystem_device=0x4905,
)

# parts

_SINGLE: Final = Port(role="gpu-port", slot=(Function(role="gpu", model=_BOCHS, identity=_H100),))
_MULTIFUNCTION: Final = Port(
    role="card-port",
    slot=(
        Function(role="card", model=_BOCHS, identity=_RTX),
        Function(role="audio", model=_HDA, identity=_RTX_AUDIO),
    ),
)
_EIGHT: Final = tuple(
    Port(
        role=f"gpu-port-{index}",
        slot=(Function(role=f"gpu-{index}", model=_BOCHS, identity=_H100),),
    )
    for index in range(8)
)
_CARD: Final = Port(
    role="card-port",
    slot=(
        Function(role="card", model=_BOCHS, identity=_H100),
        Function(role="audio", model=_HDA, identity=_RTX_AUDIO),
    ),
)
_BRIDGE: Final = Bridge(
    role="pci-bridge",
    slots=(
        Function(role="bridged-gpu", model=_BOCHS, identity=_H100),
        Function(role="bridged-mate", model=_EDU),
    ),
)
_SWITCH: Final = Switch(
    role="pcie-switch",
    ports=(
        *(
            Port(
                role=f"switch-port-{index}",
                slot=(Function(role=f"switch-gpu-{index}", model=_BOCHS, identity=_H100),),
            )
            for index in range(4)
        ),
        Port(
            role="nvswitch-port",
            slot=(Function(role="nvswitch", model=_EDU, identity=_NVSWITCH),),
        ),
    ),
)
_SRIOV: Final = Port(role="nvme-pf-port", slot=(Function(role="nvme-pf", model=_NVME_SRIOV),))
_IGB_SRIOV: Final = Port(role="igb-pf-port", slot=(Function(role="igb-pf", model=_IGB),))
_HOTPLUG: Final = Port(
    role="spare-port", slot=(Function(role="plug-nic", model=_E1000E, shown=False),)
)
_AMD: Final = Port(
    role="amd-port", slot=(Function(role="amd-gpu", model=_BIG_MEMORY, identity=_MI210),)
)
_INTEL: Final = Port(
    role="intel-port", slot=(Function(role="intel-gpu", model=_BOCHS, identity=_FLEX_140),)
)
_DISK: Final = Port(role="disk-port", slot=(Function(role="disk", model=_NVME),))
_NIC: Final = Port(role="nic-port", slot=(Function(role="nic", model=_E1000E),))
_BOOT_DISPLAY: Final = Port(
    role="display-port", slot=(Function(role="boot-display", model=_VGA, identity=_RTX),)
)

TOPOLOGIES: Final = {
    topology.name: topology
    for topology in (
        Topology(
            name="node",
            summary="all of the below in one machine with two NUMA nodes; the tests' default",
            parts=(
                _BOOT_DISPLAY,  # the firmware enables the first display that it meets
                _SINGLE,
                _MULTIFUNCTION,
                _BRIDGE,
                _SRIOV,
                _HOTPLUG,
                _AMD,
                _INTEL,
                _DISK,
                _NIC,
            ),
            far_parts=(_SWITCH,),
            memory_mib=3072,
        ),
        Topology(name="single", summary="one GPU on its own root port", parts=(_SINGLE,)),
        Topology(name="eight", summary="eight GPUs, each on its own root port", parts=_EIGHT),
        Topology(
            name="multifunction",
            summary="a GPU with an audio function in one slot",
            parts=(_MULTIFUNCTION,),
        ),
        Topology(
            name="card",
            summary="a GPU that no firmware takes for a display, with audio in one slot",
            parts=(_CARD,),
        ),
        Topology(
            name="bridge",
            summary="two devices that share a group behind a PCIe-to-PCI bridge",
            parts=(_BRIDGE,),
        ),
        Topology(
            name="switch",
            summary="four GPUs and an NVSwitch behind a PCIe switch with ACS",
            parts=(_SWITCH,),
        ),
        Topology(name="sriov", summary="an NVMe device with four VFs", parts=(_SRIOV,)),
        Topology(
            name="igb",
            summary="a NIC with seven VFs, which pools may ask for; QEMU 8 and later",
            parts=(_IGB_SRIOV,),
            needs="igb",
        ),
        Topology(name="hotplug", summary="a spare port to plug a NIC into", parts=(_HOTPLUG,)),
        Topology(
            name="amd", summary="an AMD GPU with 8 GiB of memory and no driver", parts=(_AMD,)
        ),
        Topology(name="intel", summary="an Intel GPU", parts=(_INTEL,)),
        Topology(
            name="storage",
            summary="an NVMe disk and a NIC, which must never be taken",
            parts=(_DISK, _NIC),
        ),
        Topology(
            name="boot-display",
            summary="a GPU that is the machine's boot display",
            parts=(_BOOT_DISPLAY,),
        ),
        Topology(name="no-iommu", summary="one GPU and no IOMMU", parts=(_SINGLE,), iommu=False),
    )
}
