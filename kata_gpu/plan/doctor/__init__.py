"""Is this node fit for GPU passthrough, and if not, what is to be done? Pure.

A check's id stays what it is: scripts and alerts hang on it. A check gives at least one
answer, several where several things are to be mended.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from kata_gpu.model.doctor import Answer, Check
from kata_gpu.model.node_facts import NodeFacts
from kata_gpu.plan.doctor import (
    access,
    agent,
    cdi,
    command_line,
    devices,
    kata,
    kernel,
    modules,
    neighbours,
    pod_resources,
)

CHECKS: Final[Mapping[str, Callable[[NodeFacts], Iterable[Answer]]]] = {
    "iommu": kernel.iommu,
    "interrupt-remapping": kernel.interrupt_remapping,
    "unsafe-interrupts": kernel.unsafe_interrupts,
    "noiommu-mode": kernel.noiommu_mode,
    "kernel-command-line": command_line.settings,
    "kernel-taint": kernel.taint,
    "stuck-operations": kernel.stuck_operations,
    "kernel-modules": modules.on_disk,
    "vfio-modules": modules.loadable,
    "module-rules": modules.rules,
    "iommufd": devices.iommufd,
    "vfio-nodes": devices.groups,
    "vfio-cdevs": devices.cdevs,
    "root-user": access.root_user,
    "sysfs": access.sysfs,
    "process-visibility": access.process_visibility,
    "state-directory": access.state_directory,
    "cdi-directory": access.cdi_directory,
    "free-space": access.free_space,
    "memory-lock": access.memory_lock,
    "hugepages": kernel.hugepages,
    "host-drivers": neighbours.host_drivers,
    "other-managers": neighbours.managers,
    "cdi-files": cdi.files,
    "cdi-versions": cdi.versions,
    "cdi-duplicates": cdi.duplicates,
    "cdi-device-nodes": cdi.device_nodes,
    "cdi-leftovers": cdi.leftovers,
    "kata-configuration": kata.configuration,
    "kata-drop-ins": kata.drop_ins,
    "kata-pod-resources": pod_resources.pod_resources,
    "agent-settings": agent.settings,
    "agent-blueprint": agent.blueprint,
    "agent-ledger": agent.ledger,
    "agent-socket": agent.socket,
    "confidential-computing": kernel.confidential_computing,
}


def judge(facts: NodeFacts, only: Collection[str] = CHECKS) -> tuple[Check, ...]:
    """Return the answers of the checks named in *only*, in the order of CHECKS."""
    return tuple(
        Check(
            id=name,
            grade=answer.grade,
            found=answer.found,
            why=answer.why,
            remedy=answer.remedy,
        )
        for name, check in CHECKS.items()
        if name in only
        for answer in check(facts)
    )
