"""What a base file is: its runtime, its hypervisor, and the trusted environment of its guests.

A file's runtime is what it holds; where it lies decides only when it holds no sign of either.
"""

from collections.abc import Iterable
from typing import Final

from kata_gpu.model.blueprint import Runtime, tee_of
from kata_gpu.model.kata import Configuration, Effective, Handler, InstalledFile, Key, Tee
from kata_gpu.plan.kata import effective
from kata_gpu.plan.kata.dialect import DIALECTS
from kata_gpu.plan.kata.parsing import Parsed, parse

_RUST_FOLDER: Final = "runtime-rs"
_RUST_RUNTIME: Final = frozenset({"name", "hypervisor_name", "agent_name"})
_GO_AGENT: Final = frozenset({"dial_timeout", "cdh_api_timeout"})
_RUST_HYPERVISOR: Final = frozenset({"guest_extension_images", "vm_rootfs_driver"})
_GO_HYPERVISOR: Final = frozenset({"hot_plug_vfio", "msize_9p", "seccompsandbox"})


def runtime(configuration: Configuration) -> tuple[Runtime, str | None]:
    """Return whose base file it is, and what makes that doubtful; None when nothing does."""
    place = Runtime.RUST if _RUST_FOLDER in configuration.path.split("/") else Runtime.GO
    parsed = Parsed() if configuration.text is None else parse(configuration.text)
    signs = {sign for key, _ in parsed.values if (sign := _sign(key)) is not None}
    if any(key[0] == "runtime" and key[-1] in _RUST_RUNTIME for key, _ in parsed.values):
        found, doubt = Runtime.RUST, Runtime.GO in signs
    elif len(signs) == 1:
        found, doubt = next(iter(signs)), False
    else:
        found, doubt = place, bool(signs)
    if doubt:
        return found, "it has keys of both runtimes"
    if signs and found is not place:
        return found, f"it lies where the {place} runtime's files do, and holds the {found} one's"
    return found, None


def _sign(key: Key) -> Runtime | None:
    """Return the runtime that alone has such a key; None for one that says nothing."""
    match key:
        case ("runtime", name) if name in _RUST_RUNTIME:
            return Runtime.RUST
        case ("agent", _, name) if name.endswith("_ms"):
            return Runtime.RUST
        case ("agent", _, name) if name in _GO_AGENT:
            return Runtime.GO
        case ("hypervisor", _, name) if name in _RUST_HYPERVISOR:
            return Runtime.RUST
        case ("hypervisor", _, name) if name in _GO_HYPERVISOR:
            return Runtime.GO
        case _:
            return None


def tee(found: Effective, name: str) -> Tee:
    """Return the trusted environment by the effective configuration, else by the name."""
    by_name = Tee(tee_of(name))
    if found.of_hypervisor("confidential_guest") is not True:
        return by_name
    if found.of_hypervisor("sev_snp_guest") is True:
        return Tee.SNP
    hints = f"{found.of_hypervisor('path')} {found.of_hypervisor('firmware')}"
    if "tdx" in hints:
        return Tee.TDX
    return by_name if by_name is not Tee.NONE else Tee.OTHER


def merged(file: InstalledFile) -> Effective:
    """Return what counts, by the blueprint's word on the runtime, else by what the file holds."""
    whose = file.declared or runtime(file.configuration)[0]
    return effective.merge(file.configuration, DIALECTS[whose])


def describe(file: InstalledFile) -> Handler:
    """Return a handler as a person asks for it."""
    found = merged(file)
    return Handler(
        name=file.name,
        runtime=found.runtime,
        hypervisor=found.hypervisor,
        base=file.configuration.path,
        config=file.config,
        version=file.version,
        installed=file.provenance,
        tee=tee(found, file.name),
        in_blueprint=file.declared is not None,
        problems=(*_doubts(file), *map(str, found.fatal)),
    )


def _doubts(file: InstalledFile) -> Iterable[str]:
    """Yield what makes it doubtful whose file it is."""
    found, doubt = runtime(file.configuration)
    if file.declared not in {None, found}:
        yield (
            f"{file.configuration.path}: it looks like the {found} runtime's, and the blueprint "
            f"says {file.declared}"
        )
    elif doubt is not None:
        yield f"{file.configuration.path}: {doubt}"
