"""Where our drop-in for the container runtime goes, or why nowhere.

The main file is never edited. A drop-in that would do harm is not written: containerd 1 lets a
file that names a plugin replace all that the files before it say of that plugin. To write the
whole of it, as merged today, would be no better: what an admin changes in the main file
tomorrow, a registry or a proxy, would be without effect for every pod of the node. Where no file
speaks of that plugin it is no better either: one that names a runtime has containerd 1 forget
runc, which it knows by itself.

Source: containerd, issues 5837 and 7982.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from kata_gpu.model.blueprint import RuntimeKind
from kata_gpu.model.runtime import ContainerRuntime, RuntimeFile
from kata_gpu.plan.runtime import handlers

NAME: Final = "kata-gpu.toml"
CRIO_NAME: Final = "99-kata-gpu"
_VERSION_MAX: Final = 3
_SHOW: Final = "kata-gpu runtime check -o wide shows them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a drop-in goes."""

    path: str
    staging: str
    """Above the folder that is read: on the same file system, and read by nobody."""

    version: int
    """containerd's configuration version that it is of; 0 for CRI-O."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why there is no such place, and what an admin does instead."""

    reason: str
    remedy: str


def find(runtime: ContainerRuntime) -> Spot | Obstacle:
    """Return where our drop-in for *runtime* goes, or what is in the way."""
    match runtime.kind:
        case RuntimeKind.CRIO:
            folder = runtime.place.drop_ins or ""
            return Spot(path=f"{folder}/{CRIO_NAME}", staging=_above(folder), version=0)
        case RuntimeKind.MICROK8S:
            return Obstacle(
                reason="microk8s writes containerd's configuration from a template of its own",
                remedy=f"add our tables to {_above(runtime.place.main)}/containerd-template.toml, "
                f"then microk8s stop and start; {_SHOW}",
            )
        case _:
            return _containerd(runtime)


def version_to_write(runtime: ContainerRuntime) -> int:
    """Return the configuration version of tables for *runtime*, wherever they go; 0 for CRI-O."""
    if runtime.kind is RuntimeKind.CRIO:
        return 0
    version = handlers.config_version(runtime)
    if version is not None and version > 1:
        return min(version, _VERSION_MAX)
    return _VERSION_MAX if handlers.merges_tables(runtime) else 2


def _containerd(runtime: ContainerRuntime) -> Spot | Obstacle:
    main = runtime.main
    if main is None or main.tables is None:
        return _no_main(runtime)
    version = handlers.version_of(main)
    if version is None or version < 2:  # noqa: PLR2004 - as its own name says
        return Obstacle(
            reason=f"{main.path} has no version of 2 or more, so containerd reads it as version 1",
            remedy="containerd config migrate shows it in the present form",
        )
    folder = _folder(runtime, main, version)
    harm = _harm(runtime, f"{folder}/{NAME}")
    if harm is not None:
        return harm
    if folder is None:
        return _no_import(runtime, main, version)
    return Spot(path=f"{folder}/{NAME}", staging=_above(folder), version=min(version, _VERSION_MAX))


def _no_main(runtime: ContainerRuntime) -> Obstacle:
    main = runtime.main
    if main is None:
        return Obstacle(
            reason=f"there is no {runtime.place.main}, which would import a drop-in",
            remedy=f"containerd config default > {runtime.place.main}",
        )
    return Obstacle(
        reason=main.problem or f"cannot read {main.path}",
        remedy="mend that file: containerd does not start with it either",
    )


def _folder(runtime: ContainerRuntime, main: RuntimeFile, version: int) -> str | None:
    """Return the folder that *main* has read: the usual one, else any other."""
    usual = runtime.place.folder(version)
    if usual is not None and (
        runtime.is_managed or any(_imports(p, f"{usual}/{NAME}") for p in main.imports)
    ):
        return usual
    for pattern in main.imports:
        folder = _above(pattern)
        if "*" not in folder and _imports(pattern, f"{folder}/{NAME}"):
            return folder
    return None


def _imports(pattern: str, path: str) -> bool:
    """Tell whether a glob names a path: a star ends at a slash."""
    parts, names = pattern.split("/"), path.split("/")
    return len(parts) == len(names) and all(map(fnmatchcase, names, parts))


def _no_import(runtime: ContainerRuntime, main: RuntimeFile, version: int) -> Obstacle:
    wanted = f"{runtime.place.folder(version)}/*.toml"
    line = ", ".join(f'"{pattern}"' for pattern in (*main.imports, wanted))
    template = _template(runtime)
    where = (
        f"before the first table of {main.path}"
        if template is None
        else f'above {{{{ template "base" . }}}} in {template}'
    )
    return Obstacle(
        reason=f"{main.path} imports no folder that a drop-in could go to",
        remedy=f"put this line {where}: imports = [{line}]",
    )


def _template(runtime: ContainerRuntime) -> str | None:
    """Return what the main file is made from at each start; None where it is nobody's work."""
    if runtime.kind not in {RuntimeKind.K3S, RuntimeKind.RKE2}:
        return None
    is_newest = (handlers.config_version(runtime) or 0) >= _VERSION_MAX
    name = "config-v3.toml.tmpl" if is_newest else "config.toml.tmpl"
    return f"{_above(runtime.place.main)}/{name}"


def _harm(runtime: ContainerRuntime, ours: str) -> Obstacle | None:
    """Object to a drop-in that would take settings of others away."""
    if handlers.merges_tables(runtime):
        return None
    main, release = runtime.place.main, runtime.version or "1"
    others = [file.path for file in runtime.files if file.path != ours and _speaks(file)]
    if not others:
        return Obstacle(
            reason=f"no file speaks of {handlers.CRI_V2}, and containerd {release} forgets its own "
            f"runc once a drop-in names a runtime",
            remedy=f"write {_template(runtime) or main} in full, as containerd config default "
            f"does, and add our tables to it; {_SHOW}",
        )
    where = others[-1]
    if where == main:
        where = _template(runtime) or where
    return Obstacle(
        reason=f"containerd {release} would replace all that {others[-1]} says of "
        f"{handlers.CRI_V2} by what a drop-in says of it",
        remedy=f"add our tables to {where}; {_SHOW}",
    )


def _speaks(file: RuntimeFile) -> bool:
    return file.tables is None or handlers.has_plugin(file)  # who knows what is in it


def _above(path: str) -> str:
    return path.rpartition("/")[0] or "/"
