"""Find the node's container runtimes, and read what they are told, as they would.

Every file is bounded, and one that cannot be read is a fault in what is found. Links and
patterns are followed within the host's root.
"""

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files, paths, services
from kata_gpu.model.blueprint import RuntimeKind
from kata_gpu.model.runtime import (
    PLACES,
    ContainerRuntime,
    Place,
    RuntimeFile,
    Target,
)

_FILE_MAX_BYTES: Final = 1 << 20
_FILES_MAX: Final = 256
_VERSION: Final = re.compile(r"\bv?(\d+\.\d+\.\d+)")
_VERSION_TIMEOUT_S: Final = 5.0
_MANAGED: Final = "k0s_managed=true"


def find(host: Host) -> tuple[ContainerRuntime, ...]:
    """Return every container runtime that the node has a trace of."""
    return tuple(
        _read(host, kind, place) for kind, place in PLACES.items() if _is_there(host, place)
    )


def targets(host: Host, named: Iterable[str]) -> dict[str, Target]:
    """Return what lies at each of the paths that the configuration names."""
    return {path: _target(host, path) for path in dict.fromkeys(named)}


def _target(host: Host, path: str) -> Target:
    real = _resolved(host, path)
    at = host.path(real) if real is not None else None
    return Target(real=real, is_executable=at is not None and paths.is_executable(at))


def _resolved(host: Host, path: str) -> str | None:
    if not path.startswith("/") or "\0" in path:
        return None
    try:
        return files.resolve(path, root=host.root)
    except HostError:
        return None


def _is_there(host: Host, place: Place) -> bool:
    return any(_resolved(host, path) for path in (place.main, *place.signs, *place.programs))


def _read(host: Host, kind: RuntimeKind, place: Place) -> ContainerRuntime:
    found = _crio(host, place) if kind is RuntimeKind.CRIO else _containerd(host, place.main)
    service, started_at_s = _service(host, place.services)
    is_managed = kind is RuntimeKind.K0S and _is_managed(host, place.main)
    if is_managed:  # k0s finds the folder by itself, whatever the file says
        dropped = paths.matching(f"{place.drop_ins}/*.toml", root=host.root, limit=_FILES_MAX)
        known = {file.path for file in found}
        found += [_file(host, path) for path in dropped if path not in known]
    return ContainerRuntime(
        kind=kind,
        version=_version(host, place.programs),
        files=tuple(found),
        is_managed=is_managed,
        service=service,
        started_at_s=started_at_s,
    )


def _containerd(host: Host, main: str) -> list[RuntimeFile]:
    """Return the main file and what it imports, in the order in which containerd reads them."""
    found: dict[str, RuntimeFile] = {}
    pending = [main] if _resolved(host, main) else []
    while pending and len(found) < _FILES_MAX:
        path = pending.pop(0)
        if path not in found:
            found[path] = _file(host, path)
            pending += _imported(host, found[path])
    return list(found.values())


def _imported(host: Host, file: RuntimeFile) -> Iterable[str]:
    for path in file.imports[:_FILES_MAX]:
        if "\0" in path:
            continue
        if "*" in path:
            yield from paths.matching(path, root=host.root, limit=_FILES_MAX)
        else:
            yield path


def _crio(host: Host, place: Place) -> list[RuntimeFile]:
    main = [place.main] if _resolved(host, place.main) else []
    dropped = paths.matching(f"{place.drop_ins}/*", root=host.root, limit=_FILES_MAX)
    return [_file(host, path) for path in (*main, *dropped)]


def _file(host: Host, path: str) -> RuntimeFile:
    real = _resolved(host, path)
    if real is None:
        return RuntimeFile(path=path, tables=None, problem=f"cannot read {path}: it is not there")
    at = host.path(real)
    try:
        text = files.read(at, max_bytes=_FILE_MAX_BYTES) or ""
        tables = _parsed(text, path)
    except HostError as error:
        return RuntimeFile(path=path, tables=None, problem=str(error))
    return RuntimeFile(path=path, tables=tables, modified_at_s=_modified_at_s(at))


def _modified_at_s(path: Path) -> float | None:
    """Return when a file was written; None if the clock was put back since, so nobody can say.

    Else it would be newer than whatever was restarted to read it, again and again.
    """
    found = paths.modified_at_s(path)
    return None if found is None or found > time.time() else found


def _parsed(text: str, path: str) -> Mapping[str, Any]:
    import tomllib  # noqa: PLC0415 - for who has a container runtime

    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or int() of thousands of digits
        raise HostError(f"cannot use {path}: not TOML: {error}") from error
    except RecursionError as error:
        raise HostError(f"cannot use {path}: it is nested too deeply") from error


def _is_managed(host: Host, main: str) -> bool:
    try:
        text = files.read(host.path(main), max_bytes=_FILE_MAX_BYTES) or ""
    except HostError:
        return False
    return any(
        line.startswith("#") and _MANAGED in line.replace(" ", "") for line in text.splitlines()
    )


def _version(host: Host, programs: Iterable[str]) -> str | None:
    """Return what the program says of itself; None where it does not, or is not there.

    The same file is not asked again.
    """
    program = next((path for path in programs if _resolved(host, path)), None)
    if program is None:
        return None
    file = paths.identity(host.path(_resolved(host, program) or program))
    try:
        said = host.answers.get(
            ("version", program),
            lambda kept: file is not None and kept[0] == file,
            lambda: (file, _said(host, program)),
        )
    except HostError:
        return None
    match = _VERSION.search(said[1])
    return None if match is None else match[1]


def _said(host: Host, program: str) -> str:
    inside = () if str(host.root) == "/" else ("/usr/sbin/chroot", str(host.root))
    return host.run((*inside, program, "--version"), timeout_s=_VERSION_TIMEOUT_S)


def _service(host: Host, names: Iterable[str]) -> tuple[str | None, float | None]:
    """Return the service that runs, and since when; None for what nobody can say."""
    for name in names:
        try:
            started = services.last_start(host, name)
        except HostError:
            return None, None
        if started is not None:
            return name, started.at_s
    return None, None
