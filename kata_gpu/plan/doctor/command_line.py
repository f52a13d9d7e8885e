"""The kernel command line: settings that weaken isolation, or take VFIO away.

What holds now is the matter of other checks; this one names who said so. ``-`` and ``_``
are the same in a name.

Sources: Linux Documentation/admin-guide/kernel-parameters.txt; modprobe(8);
drivers/iommu/amd/init.c, "SNP cannot be supported".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kata_gpu.model.doctor import Answer, Grade
from kata_gpu.model.node_facts import NodeFacts, Unknown
from kata_gpu.plan.doctor.answers import ok, unknown

_VFIO: Final = r"vfio([_-](pci|pci[_-]core|iommu[_-]type1))?"
_YES: Final = r"[1yY].*|on|"
_OUT: Final = "remove it from the kernel command line and reboot"


@dataclass(frozen=True, slots=True)
class _Rule:
    """One setting; *value* is matched against each of its parts between commas."""

    name: str
    value: str
    grade: Grade
    why: str
    remedy: str | None = _OUT


_NO_IOMMU: Final = "it switches the IOMMU off, without which VFIO refuses every device"
_ACS: Final = (
    "functions that hardware does not keep apart may be told apart or not by it: groups promise "
    "more, or less, than the hardware keeps"
)
_SNP: Final = (
    "VFIO makes a domain of its own, so passthrough works; on AMD without SNP page mode 0 it "
    "disables SEV-SNP"
)
_RULES: Final = (
    _Rule("intel_iommu", r"off", Grade.ERROR, _NO_IOMMU),
    _Rule("amd_iommu", r"off", Grade.ERROR, _NO_IOMMU),
    _Rule("iommu", r"off", Grade.ERROR, _NO_IOMMU),
    _Rule("iommu", r"pt", Grade.INFO, _SNP, None),
    _Rule("iommu.passthrough", _YES, Grade.INFO, _SNP, None),
    _Rule("intremap", r"off", Grade.WARNING, "interrupts of devices are not remapped"),
    _Rule("nointremap", r"", Grade.WARNING, "interrupts of devices are not remapped"),
    _Rule("intremap", r"nosid", Grade.WARNING, "nobody checks which device an interrupt is from"),
    _Rule("intremap", r"no_x2apic_optout", Grade.INFO, "overrules the firmware, harmless", None),
    _Rule("intremap", r"nopost", Grade.INFO, "costs speed, not isolation", None),
    _Rule("pcie_acs_override", r".*", Grade.WARNING, _ACS),
    _Rule("pci", r"(config_acs|disable_acs_redir)=.*", Grade.WARNING, _ACS),
    _Rule(
        "vfio_iommu_type1.allow_unsafe_interrupts",
        _YES,
        Grade.WARNING,
        "without interrupt remapping a guest can then raise any interrupt of the host",
    ),
    _Rule(
        "vfio.enable_unsafe_noiommu_mode",
        _YES,
        Grade.WARNING,
        "a device without an IOMMU can then be handed out",
    ),
    _Rule("module_blacklist", _VFIO, Grade.ERROR, "the kernel refuses to load the module"),
    _Rule("nomodule", r"", Grade.WARNING, "no module can be loaded, VFIO must be built in"),
    _Rule("modprobe.blacklist", _VFIO, Grade.INFO, "the agent loads it by name all the same", None),
    _Rule("rd.driver.blacklist", _VFIO, Grade.INFO, "this holds in the initramfs alone", None),
    _Rule(
        "vfio_pci.ids",
        r".*",
        Grade.WARNING,
        "vfio-pci takes such devices at boot, and nobody knows the driver they belong to",
        "remove it and select the devices in a blueprint; or select them by address",
    ),
)


def settings(facts: NodeFacts) -> Iterable[Answer]:
    """No setting weakens isolation or takes VFIO away."""
    words = facts.kernel.command_line
    if isinstance(words, Unknown):
        yield unknown(words)
        return
    found = [(text, rule) for word in words for rule in _RULES if (text := _matched(word, rule))]
    for text, rule in found:
        is_moot = rule.why == _NO_IOMMU and _has_iommu(facts)
        yield Answer(
            grade=Grade.INFO if is_moot else rule.grade,
            found=f"{text}: an IOMMU is in use all the same" if is_moot else text,
            why=rule.why,
            remedy=None if is_moot else rule.remedy,
        )
    if not found:
        yield ok(f"none of the {len({rule.name for rule in _RULES})} settings that matter")


def _matched(word: str, rule: _Rule) -> str | None:
    """Return the part of a word that the rule is about; None when none is."""
    name, _, value = word.partition("=")
    if name.replace("-", "_") != rule.name:
        return None
    parts = [part for part in value.strip('"').split(",") if re.fullmatch(rule.value, part)]
    return "=".join((name, ",".join(parts))).rstrip("=") if parts else None


def _has_iommu(facts: NodeFacts) -> bool:
    platform = facts.kernel.platform
    return not isinstance(platform, Unknown) and platform.iommu is not None
