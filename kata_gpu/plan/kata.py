"""The Kata drop-in: what a handler needs to give a unit to its VM, in its runtime's dialect.

The Go runtime and runtime-rs read the same tables with different keys, and each treats some
of the other's as fatal or ignores them. A value replaces the base file's whole value, so
only what passthrough needs is set, and nothing that the base may have lists in.

Source: Kata 4.1.0, src/runtime/pkg/katautils/config.go; src/libs/kata-types/src/config.
"""

from typing import Final

from kata_gpu.model.blueprint import KataHandler, Runtime

ROOT_PORTS_MAX: Final[dict[Runtime, int]] = {
    Runtime.GO: 16,  # clamped silently by the runtime
    Runtime.RUST: 22,  # slots left on its root bus
}
_HEADER: Final = "Written by kata-gpu: changes are undone. Settings belong in the blueprint."


def root_ports(handler: KataHandler, functions: int) -> int:
    """Return how many root ports a VM gets: enough for *functions*, at least one."""
    wanted = handler.pcie_root_ports or max(functions, 1)
    return min(wanted, ROOT_PORTS_MAX[handler.runtime])


def render(handler: KataHandler, functions: int) -> str:
    """Return the drop-in of *handler* for a node that passes *functions* through."""
    import tomli_w  # noqa: PLC0415 - a release renders nothing

    hypervisor: dict[str, str | int] = {"cold_plug_vfio": "root-port"}
    if handler.runtime is Runtime.GO:  # it refuses hot and cold plug together
        hypervisor["hot_plug_vfio"] = "no-port"
    hypervisor["pcie_root_port"] = root_ports(handler, functions)
    tables = {
        "hypervisor": {handler.hypervisor: hypervisor},
        "runtime": {
            "vfio_mode": "guest-kernel",
            "pod_resource_api_sock": handler.pod_resource_api_sock,
        },
    }
    return f"# {_HEADER}\n\n{tomli_w.dumps(tables)}"
