"""Failures of Kata that are known, by what its programs say of them.

A pattern is looked for in one line of the journal. The first entry that matches a line is its
cause, so the narrower come first.

Source: Kata 4.1.0 (RT: src/runtime, RS: src/runtime-rs) and its issues, by number; Kubernetes
1.36; QEMU.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_VALIDATE: Final = "kata-gpu cdi validate names the file, the place in it, and what to do"
_DROP_INS: Final = "look through config.d beside the handler's base file, ours included"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What one complaint comes from."""

    pattern: str
    """A regular expression; the case does not matter."""

    cause: str
    mend: str
    source: str

    def matches(self, text: str) -> bool:
        """Tell whether *text* is such a complaint."""
        return re.search(self.pattern, text, re.IGNORECASE) is not None


FAILURES: Final[Mapping[str, Failure]] = {
    # CDI
    "guest-cdi": Failure(
        pattern=r"(unresolvable CDI devices|cdi devices).{0,80}nvidia\.com/gpu=",
        cause="the guest found no GPU for its container within agent.cdi_timeout (100 s): its "
        "driver did not start, or the guest numbers its GPUs otherwise",
        mend="look at the guest's console (enable_debug), with nvrc.log=trace in its kernel "
        "parameters; the host has done its part",
        source="issues 10888, 10891; src/agent/src/device/mod.rs:431",
    ),
    "unresolvable": Failure(
        pattern=r"unresolvable CDI devices",
        cause="a device that kubelet gave to the pod, of whatever resource, is in no CDI file; "
        "Kata resolves every one",
        mend="kata-gpu cdi list shows what there is; take devices without a CDI file from the "
        "pod, or wait until its device plugin has written one",
        source="RT/pkg/containerd-shim-v2/device_cold_plug.go:142; issue 12549",
    ),
    "conflict": Failure(
        pattern=r"conflicting device .*\(specs",
        cause="two CDI files of one directory have the same device",
        mend=_VALIDATE,
        source="pkg/cdi/cache.go",
    ),
    "cdi-version": Failure(
        pattern=r"invalid version|spec version must be at least",
        cause="a CDI file, maybe another vendor's, has a version that this runtime does not take",
        mend=_VALIDATE,
        source="pkg/cdi/version.go",
    ),
    "cdi-no-devices": Failure(
        pattern=r"invalid spec, no devices",
        cause="a CDI file has no devices, which runtime-rs refuses",
        mend="remove that file; kata-gpu cdi validate names it",
        source="src/spec.rs of the crate",
    ),
    "cdi-empty-edits": Failure(
        pattern=r"empty device edits",
        cause="a device in a CDI file has empty containerEdits",
        mend=_VALIDATE,
        source="pkg/cdi/device.go",
    ),
    "cdi-file": Failure(
        pattern=r"CDI registry refresh failed|failed to (load|parse|read|unmarshal) CDI Spec",
        cause="a CDI file, maybe another vendor's, cannot be read by this runtime, so it resolves "
        "no device at all",
        mend=_VALIDATE,
        source="pkg/cdi/spec.go; one bad file is fatal for every sandbox",
    ),
    "no-device-node": Failure(
        pattern=r"not a device node",
        cause="what a CDI file names as a device node is none",
        mend=_VALIDATE,
        source="pkg/cdi/container-edits_unix.go",
    ),
    # VFIO
    "confidential-group": Failure(
        pattern=r"ConfidentialGuest needs IOMMUFD",
        cause="a confidential VM was given a legacy VFIO group",
        mend="modprobe iommufd, on a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV; the "
        "agent then offers devices of their own",
        source="RT/virtcontainers/qemu.go:1421",
    ),
    "control-node": Failure(
        pattern=r"Invalid VFIO group path",
        cause="a CDI file lists /dev/vfio/vfio in a device, which runtime-rs takes for a group",
        mend="have only the group's node listed, by the program that writes the file",
        source="RS/crates/hypervisor/src/device/driver/vfio_device/core.rs:626",
    ),
    "dma-map": Failure(
        pattern=r"VFIO_MAP_DMA",
        cause="the VM's memory could not be mapped for the device: a TDX VM with a legacy group, "
        "or a limit on locked memory",
        mend="use iommufd on nodes of confidential VMs; else raise LimitMEMLOCK of the container "
        "runtime (kata-gpu doctor --only memory-lock)",
        source="issue 11721",
    ),
    "memory-lock": Failure(
        pattern=r"RLIMIT_MEMLOCK.{0,40}exceeded",
        cause="the VM may not lock as much memory as it has",
        mend="raise LimitMEMLOCK of the container runtime (kata-gpu doctor --only memory-lock)",
        source="vfio_iommu_type1.c",
    ),
    "iommufd-bind": Failure(
        pattern=r"BIND_IOMMUFD|iommufd.{0,60}(bind|Invalid argument)",
        cause="the kernel does not bind the device to iommufd, as after a crash loop of its pods",
        mend="kata-gpu explain the unit; if nobody has it, reboot the node",
        source="issue 13179",
    ),
    "not-viable": Failure(
        pattern=r"group \d+ is not viable",
        cause="a function of the IOMMU group is with a driver of the host",
        mend="kata-gpu explain the unit: every function of its group must be on VFIO",
        source="QEMU hw/vfio; RT/pkg/device/drivers/utils.go:282",
    ),
    "group-busy": Failure(
        pattern=r"/dev/vfio/\S+.{0,60}(Device or resource busy|EBUSY)",
        cause="somebody else has the group open",
        mend="kata-gpu explain the unit names who has it; end them",
        source="drivers/vfio/group.c",
    ),
    "one-function": Failure(
        pattern=r"duplicate id ['\"]?(rp|vfio|pci)|Duplicate (device )?ID",
        cause="several functions of one group went to one root port: runtime-rs takes one "
        "function per group",
        mend="use a handler of the Go runtime, or a node with iommufd",
        source="vfio_device/core.rs:657; issue 11292",
    ),
    "root-ports": Failure(
        pattern=r"(pcie.?root.?ports?|root ports?).{0,60}(exceed|larger|more than|maximum|limit)",
        cause="the VM has fewer root ports than the pod has functions",
        mend="ask for fewer units, or set pcie_root_ports of the handler in the blueprint; the Go "
        "runtime has 16 at most",
        source="RT/virtcontainers/qemu.go:1440; issue 8846",
    ),
    "no-iommufd": Failure(
        pattern=r"/dev/iommu.{0,60}No such file",
        cause="the runtime opens /dev/iommu, and the node has none",
        mend="modprobe iommufd, on a kernel with CONFIG_IOMMUFD",
        source="vfio_device/core.rs:510",
    ),
    # Configuration
    "bad-port": Failure(
        pattern=r"invalid vfio_port=",
        cause="cold_plug_vfio or hot_plug_vfio of the handler has a value that there is not",
        mend=_DROP_INS,
        source="RT/pkg/device/config/config.go:168",
    ),
    "both-plugs": Failure(
        pattern=r"only one of them can be set",
        cause="the handler has both cold_plug_vfio and hot_plug_vfio",
        mend="set hot_plug_vfio to no-port in the file of config.d that sets it",
        source="RT/pkg/katautils/config.go:2094",
    ),
    "vfio-mode": Failure(
        pattern=r"Unknown VFIO mode",
        cause="vfio_mode of the handler has a value that there is not",
        mend=_DROP_INS,
        source="RT/pkg/katautils/config.go",
    ),
    "unknown-key": Failure(
        pattern=r"key \"[^\"]+\" not found|unknown field `[^`]+`",
        cause="a file of config.d has a key that this runtime does not know: one of the other "
        "runtime's, as a rule",
        mend=f"{_DROP_INS}; the two runtimes do not take each other's",
        source="RT/pkg/katautils/config.go:1943; KT/agent.rs:61",
    ),
    "drop-in-folder": Failure(
        pattern=r"config\.d\S*.{0,40}is a directory",
        cause="config.d holds a folder, which is fatal to the runtime",
        mend="take it out of config.d",
        source="RT/pkg/katautils/config.go:1878",
    ),
    "experimental": Failure(
        pattern=r"Unsupported experimental feature",
        cause="the handler's experimental has an entry, and the Go runtime knows none",
        mend="for guest pull use experimental_force_guest_pull with the Go runtime",
        source="RT/pkg/katautils/config.go:1792",
    ),
    "annotation": Failure(
        pattern=r"annotation .{1,200} is not enabled",
        cause="the pod has an annotation that the handler's enable_annotations does not name",
        mend="take it from the pod, or name it in enable_annotations; a drop-in that sets that "
        "replaces the whole list",
        source="RT/pkg/oci/utils.go:315",
    ),
    "missing-file": Failure(
        pattern=r"file \S+ does not exist",
        cause="a kernel, image or firmware that the handler names is not installed",
        mend="install it, or correct its path; kata-deploy with a prefix of its own breaks "
        "NVIDIA's handlers",
        source="RT/pkg/katautils/config.go; KD/artifacts/install.rs:1507",
    ),
    # Around it
    "pod-resources": Failure(
        pattern=r"PodResources API Get method disabled|unknown method Get for service",
        cause="kubelet does not answer Kata: KubeletPodResourcesGet is off",
        mend="turn the feature gate on, or use Kubernetes 1.34 or later, where it is",
        source="device_cold_plug.go:103",
    ),
    "vsock": Failure(
        pattern=r"vsock.{0,80}timed? ?out|timed? ?out.{0,80}vsock",
        cause="the VM started and its agent did not answer in time; much memory takes long to pin",
        mend="raise dial_timeout (Go, s) or reconnect_timeout_ms (runtime-rs), and free memory",
        source="issue 12370",
    ),
    "fabric": Failure(
        pattern=r"system not yet initialized",
        cause="a GPU of an NVSwitch board started without its fabric",
        mend="give the VM all GPUs and NVSwitches of the board, and fabric manager in the guest",
        source="issue 11730",
    ),
    "admission": Failure(
        pattern=r"UnexpectedAdmissionError|cannot allocate unregistered device"
        r"|no healthy devices present",
        cause="kubelet refused the pod before the device plugin was there, as after a reboot; it "
        "does not try again",
        mend="delete the pod and have it made anew",
        source="Kubernetes pkg/kubelet/cm/devicemanager/manager.go:619",
    ),
}
"""By a name that does not change."""


def find(text: str) -> tuple[str, Failure] | None:
    """Return the failure that *text* complains of, with its name; None for none that is known."""
    return next(((name, one) for name, one in FAILURES.items() if one.matches(text)), None)
