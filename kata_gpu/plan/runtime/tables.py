"""Our handlers as the container runtime reads them: pure text.

Source: kata-deploy 4.1.0, runtime/containerd.rs and runtime/crio.rs, which write the same.
"""

from collections.abc import Iterable
from typing import Any, Final

from kata_gpu.model.blueprint import KataHandler, Runtime, RuntimeHandler
from kata_gpu.plan.runtime.handlers import CRI_V2, CRI_V3

_HEADER: Final = "Written by kata-gpu: changes are undone. Settings belong in the blueprint."
_IMAGES_V3: Final = "io.containerd.cri.v1.images"
_V3: Final = 3
_SHIM: Final = "bin/containerd-shim-kata-v2"
_PREFIX: Final = "/opt/kata"

Pairs = Iterable[tuple[RuntimeHandler, KataHandler]]
"""Handlers, each with its base."""


def runtime_type(handler: str) -> str:
    """Return what containerd names the shim of a handler by."""
    return f"io.containerd.{handler}.v2"


def shim(handler: RuntimeHandler, base: KataHandler) -> str:
    """Return the shim's path: where Kata installs it below the prefix of the base file."""
    if handler.shim is not None:
        return handler.shim
    prefix, share, _ = base.config.partition("/share/")
    home = prefix if share else _PREFIX
    return f"{home}/runtime-rs/{_SHIM}" if base.runtime is Runtime.RUST else f"{home}/{_SHIM}"


def containerd(pairs: Pairs, version: int) -> str:
    """Return containerd's drop-in with the handlers, of a configuration version of 2 or 3."""
    known = list(pairs)
    runtimes = {handler.name: _containerd_table(handler, base) for handler, base in known}
    plugin = CRI_V3 if version >= _V3 else CRI_V2
    plugins: dict[str, Any] = {plugin: {"containerd": {"runtimes": runtimes}}}
    snapshotters = {
        handler.name: {"snapshotter": handler.snapshotter}
        for handler, _ in known
        if handler.snapshotter is not None
    }
    if snapshotters and version >= _V3:  # images are pulled by a plugin of their own there
        plugins[_IMAGES_V3] = {"runtime_platforms": snapshotters}
    return _text({"version": min(version, _V3), "plugins": plugins})


def _containerd_table(handler: RuntimeHandler, base: KataHandler) -> dict[str, Any]:
    table: dict[str, Any] = {
        "runtime_type": runtime_type(handler.name),
        "runtime_path": shim(handler, base),
        "privileged_without_host_devices": True,
        "pod_annotations": ["io.katacontainers.*"],
        "container_annotations": ["io.kubernetes.container.terminationMessage*"],
    }
    if handler.snapshotter is not None:
        table["snapshotter"] = handler.snapshotter
    return {**table, "options": {"ConfigPath": base.config}}


def crio(pairs: Pairs) -> str:
    """Return CRI-O's drop-in with the handlers."""
    runtimes = {handler.name: _crio_table(handler, base) for handler, base in pairs}
    return _text({"crio": {"runtime": {"runtimes": runtimes}}})


def _crio_table(handler: RuntimeHandler, base: KataHandler) -> dict[str, Any]:
    table: dict[str, Any] = {
        "runtime_path": shim(handler, base),
        "runtime_type": "vm",
        "runtime_root": "/run/vc",
        "runtime_config_path": base.config,
        "privileged_without_host_devices": True,
    }
    if handler.guest_pull:
        table["runtime_pull_image"] = True
    return table


def _text(tables: dict[str, Any]) -> str:
    import tomli_w  # noqa: PLC0415 - only who has handlers of our own

    return f"# {_HEADER}\n\n{tomli_w.dumps(tables)}"
