"""What is wired to what: every Kata handler of the node, and of the blueprint, with its faults."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from kata_gpu.model.blueprint import Blueprint, RuntimeKind
from kata_gpu.model.runtime import ContainerRuntime, Target, Wire
from kata_gpu.plan.runtime import classes, handlers, soundness, spot, tables, wiring
from kata_gpu.plan.runtime.handlers import FoundHandler
from kata_gpu.plan.runtime.spot import Spot

Targets = Mapping[str, Target]

_TYPE_PARTS: Final = 4  # io.containerd.NAME.vN


def named_paths(blueprint: Blueprint, runtimes: Iterable[ContainerRuntime]) -> set[str]:
    """Return every path whose target `wires` asks for."""
    found = {
        path
        for runtime in runtimes
        for handler in handlers.found(runtime)
        for path in (handler.shim, handler.config)
        if path is not None
    }
    found |= {handler.config for handler in blueprint.handlers}
    return found | {tables.shim(own, base) for own, base in wiring.pairs(blueprint)}


def wires(
    blueprint: Blueprint, runtimes: Sequence[ContainerRuntime], targets: Targets
) -> tuple[Wire, ...]:
    """Return the Kata handlers of every container runtime, and what the blueprint misses."""
    wired = [
        _wire(blueprint, runtime, handler, targets)
        for runtime in runtimes
        for handler in handlers.found(runtime)
        if _is_kata(handler) or handler.name in _names(blueprint)
    ]
    present = {wire.handler for wire in wired if wire.is_wired}
    own = [_unwired(blueprint, runtimes, name) for name in _own(blueprint) if name not in present]
    bases = {handler.base for handler in blueprint.wiring.handlers}
    foreign = [
        _nowhere(handler.name, runtimes)
        for handler in blueprint.handlers
        if handler.name not in present | bases
    ]
    named = classes.by_handler(classes.runtime_classes(blueprint))
    found = (*wired, *own, *foreign)
    return tuple(replace(wire, runtime_class=named.get(wire.handler)) for wire in found)


def to_add(blueprint: Blueprint, runtimes: Sequence[ContainerRuntime]) -> str | None:
    """Return the tables of our handlers as the chosen runtime reads them; None without any."""
    if not blueprint.wiring.handlers:
        return None
    runtime = wiring.chosen(blueprint.wiring, runtimes)
    if not isinstance(runtime, ContainerRuntime):
        return None
    return wiring.text(wiring.pairs(blueprint), spot.version_to_write(runtime))


def faults(
    blueprint: Blueprint, runtimes: Sequence[ContainerRuntime], targets: Targets
) -> tuple[str, ...]:
    """Return what is wrong with the configurations as a whole, or not as the blueprint asks."""
    found = [fault for runtime in runtimes for fault in soundness.faults(runtime)]
    _, findings = wiring.drop_ins(blueprint, runtimes, partial(_is_same, targets))
    return (*found, *map(str, findings))


def unread(runtimes: Iterable[ContainerRuntime]) -> tuple[str, ...]:
    """Return a line for each file that is newer than the runtime which is to read it."""
    return tuple(
        f"{runtime.service or runtime.kind} must be restarted to read {file.path}"
        for runtime in runtimes
        for file in runtime.files
        if wiring.is_unread(runtime, file.path)
    )


def _wire(
    blueprint: Blueprint, runtime: ContainerRuntime, handler: FoundHandler, targets: Targets
) -> Wire:
    shim = handler.shim or _program(handler.runtime_type)
    is_path = shim is not None and shim.startswith("/")
    config = handler.config
    wire = Wire(
        handler=handler.name,
        runtime=runtime.kind,
        file=handler.file,
        is_wired=handler.shadowed_by is None,
        is_ours=handler.name in _own(blueprint),
        runtime_type=handler.runtime_type,
        shim=shim,
        is_shim_executable=_target(targets, shim).is_executable if is_path and shim else None,
        config=config,
        has_config=None if config is None else _target(targets, config).real is not None,
        snapshotter=handler.snapshotter,
    )
    return replace(wire, faults=tuple(_wrong(blueprint, wire, handler, targets)))


def _wrong(
    blueprint: Blueprint, wire: Wire, handler: FoundHandler, targets: Targets
) -> Iterable[str]:
    if handler.shadowed_by is not None:
        yield f"{handler.shadowed_by} takes it away: that file has the last word"
        return
    if wire.is_shim_executable is False:
        is_there = wire.shim is not None and _target(targets, wire.shim).real is not None
        what = "is not executable" if is_there else "does not exist"
        yield f"its shim {wire.shim} {what}"
    if wire.has_config is False:
        yield f"its base file {wire.config} does not exist"
    wanted = _config_of(blueprint, wire.handler)
    if wanted is not None and not _is_same(targets, wanted, wire.config):
        read = wire.config or "no base file that it names"
        yield f"it reads {read}, and the blueprint says {wanted}"


def _unwired(blueprint: Blueprint, runtimes: Sequence[ContainerRuntime], name: str) -> Wire:
    own, base = next(pair for pair in wiring.pairs(blueprint) if pair[0].name == name)
    runtime = wiring.chosen(blueprint.wiring, runtimes)
    if not isinstance(runtime, ContainerRuntime):
        fault = f"it is not wired: {runtime.reason}"
        return Wire(
            handler=name,
            runtime=blueprint.wiring.kind or RuntimeKind.CONTAINERD,
            file=None,
            is_wired=False,
            is_ours=True,
            faults=(fault,),
        )
    place = spot.find(runtime)
    fault = (
        f"it is not wired yet: kata-gpu apply writes {place.path}"
        if isinstance(place, Spot)
        else f"it is not wired: {place.reason}"
    )
    return Wire(
        handler=name,
        runtime=runtime.kind,
        file=place.path if isinstance(place, Spot) else None,
        is_wired=False,
        is_ours=True,
        runtime_type="vm" if runtime.kind is RuntimeKind.CRIO else tables.runtime_type(name),
        shim=tables.shim(own, base),
        config=base.config,
        snapshotter=own.snapshotter,
        faults=(fault,),
    )


def _nowhere(name: str, runtimes: Sequence[ContainerRuntime]) -> Wire:
    kinds = ", ".join(runtime.kind for runtime in runtimes) or "no container runtime"
    fault = (
        f"{kinds} does not know it: have kata-deploy install it, or wire it by a "
        f"[[runtime.handler]] with base {name}"
    )
    return Wire(
        handler=name,
        runtime=runtimes[0].kind if runtimes else RuntimeKind.CONTAINERD,
        file=None,
        is_wired=False,
        is_ours=False,
        faults=(fault,),
    )


def _is_kata(handler: FoundHandler) -> bool:
    return any(
        "kata" in (word or "") for word in (handler.name, handler.runtime_type, handler.shim)
    )


def _program(runtime_type: str | None) -> str | None:
    """Return the name by which containerd looks for a shim that it is given no path of."""
    parts = (runtime_type or "").split(".")
    if len(parts) < _TYPE_PARTS:
        return None
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def _own(blueprint: Blueprint) -> tuple[str, ...]:
    return tuple(handler.name for handler in blueprint.wiring.handlers)


def _names(blueprint: Blueprint) -> set[str]:
    return {*_own(blueprint), *(handler.name for handler in blueprint.handlers)}


def _config_of(blueprint: Blueprint, name: str) -> str | None:
    """Return the base file that the blueprint has for a handler; None for one it has not."""
    known = {handler.name: handler.config for handler in blueprint.handlers}
    known |= {own.name: base.config for own, base in wiring.pairs(blueprint)}
    return known.get(name)


def _is_same(targets: Targets, one: str, other: str | None) -> bool:
    if other is None:
        return False
    if one == other:
        return True
    real = _target(targets, one).real
    return real is not None and real == _target(targets, other).real


def _target(targets: Targets, path: str) -> Target:
    return targets.get(path, Target(real=None))
