"""The drop-in that is ours: what a handler needs to give a unit to its VM, in its dialect.

A value replaces the whole value of the files before it, so only what passthrough or the
blueprint needs is set, and lists are those that hold without us with ours behind them. Nothing
is said that the runtime does not know.

Source: Kata 4.1.0, as in ``dialect``.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.kata import Effective, Key
from kata_gpu.model.kubernetes import PodResources
from kata_gpu.plan.kata.dialect import DIALECTS
from kata_gpu.plan.kata.parsing import thawed

_HEADER: Final = "Written by kata-gpu: changes are undone. Settings belong in the blueprint."
_MS: Final = 1000
_PORTS: Final = "pcie_root_port"
_KUBELET: Final = PodResources()
SOCKET: Final = ("runtime", "pod_resource_api_sock")
"""Whom a runtime asks which devices a pod has."""

SOURCES: Final = ("runtime", "pod_resource_device_sources")
"""Known to a Kata that reads DRA devices by itself, which then refuses a pod with devices of a
source that is not in it, and one with the same device from two."""

_ALL_SOURCES: Final = ("device-plugin", "dra")


def root_ports(handler: KataHandler, functions: int, before: Effective | None = None) -> int:
    """Return how many root ports a VM gets.

    Enough for *functions*, at least one, no fewer than it has without us (*before*), and no
    more than the runtime can give.
    """
    wanted = handler.pcie_root_ports or max(functions, 1, _held(before, handler, _PORTS) or 0)
    return min(wanted, DIALECTS[handler.runtime].root_ports_max)


def values(
    handler: KataHandler,
    functions: int,
    before: Effective | None = None,
    asked: PodResources = _KUBELET,
) -> dict[Key, Any]:
    """Return what the drop-in sets.

    *before* is what holds without it, of the files before it; *asked* whom Kata is to ask for
    a pod's devices.
    """
    hypervisor = ("hypervisor", handler.hypervisor)
    found: dict[Key, Any] = {(*hypervisor, "cold_plug_vfio"): handler.cold_plug_vfio}
    if "hot_plug_vfio" in DIALECTS[handler.runtime].tables["hypervisor"].keys:
        found[*hypervisor, "hot_plug_vfio"] = handler.hot_plug_vfio
    found[*hypervisor, _PORTS] = root_ports(handler, functions, before)
    if handler.memory_mib is not None:
        found[*hypervisor, "default_memory"] = handler.memory_mib
    params = str(_held(before, handler, "kernel_params") or "")
    missing = _missing(params.split(), handler.kernel_params)
    if missing:
        found[*hypervisor, "kernel_params"] = " ".join((params, *missing)).lstrip()
    allowed = tuple(_held(before, handler, "enable_annotations") or ())
    missing = _missing(allowed, handler.enable_annotations)
    if missing:
        found[*hypervisor, "enable_annotations"] = (*allowed, *missing)
    return (
        found
        | _timeouts(handler, before)
        | {("runtime", "vfio_mode"): handler.vfio_mode}
        | _asking(handler, before, asked)
    )


def _asking(handler: KataHandler, before: Effective | None, asked: PodResources) -> dict[Key, Any]:
    """Return whom it asks; a Kata that reads DRA devices by itself asks kubelet for them."""
    if handler.pod_resource_api_sock is not None:
        return {SOCKET: handler.pod_resource_api_sock}
    sources = None if before is None else before.value(*SOURCES)
    if asked.link is None or sources is None:
        return {SOCKET: asked.link or asked.kubelet}
    return {
        SOCKET: asked.kubelet,
        SOURCES: (*sources, *_missing(sources, _ALL_SOURCES)),
    }


def render(
    handler: KataHandler,
    functions: int,
    before: Effective | None = None,
    asked: PodResources = _KUBELET,
) -> str:
    """Return the drop-in of *handler* for a node that passes *functions* through."""
    import tomli_w  # noqa: PLC0415 - a release renders nothing

    tables: dict[str, Any] = {}
    for key, value in values(handler, functions, before, asked).items():
        table = tables
        for name in key[:-1]:
            table = table.setdefault(name, {})
        table[key[-1]] = thawed(value)
    return f"# {_HEADER}\n\n{tomli_w.dumps(tables)}"


def _timeouts(handler: KataHandler, before: Effective | None) -> dict[Key, Any]:
    """Return the timeouts that the blueprint asks for, each where its runtime has it."""
    found: dict[Key, Any] = {}
    agent, dial_s = ("agent", "kata"), handler.dial_timeout_s
    match handler.runtime:
        case Runtime.GO:
            found[*agent, "dial_timeout"] = dial_s
            found[*agent, "cdh_api_timeout"] = handler.cdh_api_timeout_s
            found["runtime", "create_container_timeout"] = handler.create_container_timeout_s
        case Runtime.RUST:
            found |= _reconnect(dial_s, before)
            found[*agent, "cdh_api_timeout_ms"] = _ms(handler.cdh_api_timeout_s)
            found[*agent, "create_container_timeout"] = handler.create_container_timeout_s
    found[*agent, "launch_process_timeout"] = handler.launch_process_timeout_s
    return {key: value for key, value in found.items() if value is not None}


def _reconnect(dial_s: int | None, before: Effective | None) -> dict[Key, Any]:
    """Return runtime-rs's words for how long the agent is waited for in all.

    ``dial_timeout_ms`` is that of one attempt, and must not be longer than all of them.
    """
    if dial_s is None:
        return {}
    attempt_ms = None if before is None else before.value("agent", "kata", "dial_timeout_ms")
    all_ms = dial_s * _MS
    found: dict[Key, Any] = {}
    if attempt_ms is not None and attempt_ms > all_ms:
        found["agent", "kata", "dial_timeout_ms"] = all_ms
    found["agent", "kata", "reconnect_timeout_ms"] = all_ms
    return found


def _ms(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * _MS


def _held(before: Effective | None, handler: KataHandler, name: str) -> Any:
    """Return what a hypervisor's key says without us; None where no file sets it."""
    return None if before is None else before.value("hypervisor", handler.hypervisor, name)


def _missing(held: Collection[str], wanted: Iterable[str]) -> tuple[str, ...]:
    return tuple(item for item in dict.fromkeys(wanted) if item not in held)
