"""Kernel modules: are VFIO's there, and may modprobe load them?

That ``blacklist`` hides a module's aliases and not its name, and that ``install`` replaces
loading, were tried with kmod 30; modprobe.d(5) says the same.
"""

import re
from collections.abc import Iterable
from typing import Final

from kata_gpu.model.doctor import Answer
from kata_gpu.model.node_facts import ModuleFacts, ModuleRule, NodeFacts, Unknown
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning

_NEEDED: Final = ("vfio", "vfio_iommu_type1", "vfio_pci")
_REFUSES: Final = re.compile(r"(/usr)?(/bin/)?(false|true|:)( .*)?|exit .*")
_UNSAFE: Final = re.compile(r"(allow_unsafe_interrupts|enable_unsafe_noiommu_mode)=[1yY]")


def on_disk(facts: NodeFacts) -> Iterable[Answer]:
    """The modules of the running kernel are on disk."""
    modules = facts.modules
    if isinstance(modules.has_folder, Unknown):
        yield unknown(modules.has_folder)
    elif modules.has_folder:
        yield ok(f"/lib/modules/{modules.release}")
    else:
        yield (error if _missing(modules) else warning)(
            f"/lib/modules/{modules.release} does not exist",
            "no module of the running kernel can be loaded, as after an upgrade of the kernel or "
            "in a container without the host's /lib/modules",
            "reboot into the kernel that is installed, or mount /lib/modules of the host",
        )


def loadable(facts: NodeFacts) -> Iterable[Answer]:
    """Each module that VFIO needs is loaded, built in, or on disk."""
    modules = facts.modules
    for fact in (modules.loadable, modules.loaded):
        if isinstance(fact, Unknown):
            yield unknown(fact)
            return
    missing = _missing(modules)
    if missing:
        yield error(
            f"not found for {modules.release}: {', '.join(missing)}",
            "a device can only be passed through by vfio-pci and what it rests on",
            "install the kernel's full set of modules (such as linux-modules-extra), or a kernel "
            "with CONFIG_VFIO_PCI",
        )
    else:
        yield ok(f"{', '.join(_NEEDED)}: {_where(modules)}")


def _where(modules: ModuleFacts) -> str:
    loaded = not isinstance(modules.loaded, Unknown) and set(_NEEDED) <= modules.loaded
    return "loaded" if loaded else "can be loaded"


def _missing(modules: ModuleFacts) -> tuple[str, ...]:
    there: set[str] = set()
    for fact in (modules.loadable, modules.loaded):
        there |= set() if isinstance(fact, Unknown) else fact
    return tuple(name for name in _NEEDED if name not in there)


def rules(facts: NodeFacts) -> Iterable[Answer]:
    """No line of modprobe.d stops or weakens VFIO."""
    found = facts.modules.rules
    if isinstance(found, Unknown):
        yield unknown(found)
        return
    for rule in found:
        yield _judged(rule)
    if not found:
        yield ok("modprobe.d says nothing about VFIO's modules")


def _judged(rule: ModuleRule) -> Answer:
    text = f"{rule.file}: {rule.verb} {rule.module} {rule.rest}".rstrip()
    remedy = f"remove the line from {rule.file}"
    match rule.verb:
        case "install" if _REFUSES.fullmatch(rule.rest):
            return error(text, "modprobe runs this instead of loading the module", remedy)
        case "install":
            return warning(
                text,
                "modprobe runs this instead, and only it knows whether the module gets loaded",
                f"see that it loads {rule.module}, or {remedy}",
            )
        case "blacklist":
            return info(f"{text}: stops loading by alias; the agent loads by name")
        case _ if _UNSAFE.search(rule.rest):
            return warning(text, "from its next load on VFIO gives up isolation", remedy)
        case _ if "ids=" in rule.rest:
            return warning(
                text,
                "vfio-pci takes such devices when it is loaded, and nobody knows the driver they "
                "belong to",
                f"{remedy} and select the devices in a blueprint; or select them by address",
            )
        case _:
            return info(text)
