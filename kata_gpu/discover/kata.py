"""Find Kata on a node: where each handler's configuration really lies, and what is in it.

Kata looks for ``config.d`` beside the real file behind links (kata-deploy puts links at
the paths it documents), so a path is only where the search begins.

Source: Kata 4.1.0: kata-deploy's utils/system.rs (where it puts a shim's configuration) and
artifacts/install.rs (custom runtimes); kata-types default.rs, katautils/config.go (what
distributions have).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, entries, files
from kata_gpu.model.blueprint import KataHandler
from kata_gpu.model.inventory import KataBase
from kata_gpu.model.kata import Configuration, InstalledFile, Provenance

_DEPLOYED: Final = "/opt/kata"
_DISTRIBUTED: Final = ("/usr", "/etc/kata-containers")
_DEFAULTS: Final = "share/defaults/kata-containers"
_RUST: Final = "runtime-rs"
_NAME: Final = re.compile(r"configuration(?:-(?P<shim>[A-Za-z0-9._-]{1,128}))?\.toml")
_FILE: Final = re.compile(
    r"""^[ \t]*(?:path|kernel|image|initrd|firmware|firmware_volume)[ \t]*=[ \t]*"""
    r"""["'](/[^"'\\\n\0]{1,1024})["']""",
    re.MULTILINE,
)
_FILES_MAX: Final = 64
_FOLDERS_MAX: Final = 256
_VERSIONS: Final = ("VERSION", "share/kata-containers/VERSION")
_VERSION: Final = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+[A-Za-z0-9.+~-]{0,40}")


def find(host: Host, handler: str, config: str) -> KataBase:
    """Return where the drop-ins of a handler with that base file belong, or why nowhere."""
    directory, reason, real = None, None, None
    try:
        real = files.resolve(config, root=host.root)
        if real is None:
            reason = f"{config} does not exist"
        elif not host.path(real).is_file():
            reason, real = f"{config} is not a file", None
        else:
            directory = real.rpartition("/")[0] or "/"
    except (HostError, OSError) as error:
        reason = str(error)
    return KataBase(handler=handler, config=config, directory=directory, reason=reason, file=real)


def configuration(host: Host, path: str) -> Configuration:
    """Return a real base file and all that lies in the ``config.d`` beside it."""
    text: str | None = None
    reason: str | None = None
    try:
        text = entries.text(path, root=host.root)
    except HostError as error:
        reason = str(error)
    found = Configuration(path=path, text=text, reason=reason)
    held, unlisted = entries.read(found.directory, root=host.root)
    texts = (text, *(entry.text for entry in held))
    return replace(found, entries=held, unlisted=unlisted, absent=_absent(host, texts))


def _absent(host: Host, texts: Iterable[str | None]) -> frozenset[str]:
    """Return the files that a configuration names and that are not there, as far as one sees."""
    named = {match[1] for text in texts for match in _FILE.finditer(text or "")}
    return frozenset(path for path in sorted(named)[:_FILES_MAX] if not _is_there(host, path))


def _is_there(host: Host, path: str) -> bool:
    try:
        return files.resolve(path, root=host.root) is not None
    except (HostError, OSError):
        return True  # who cannot look does not say that there is nothing


def places(
    host: Host, prefixes: Iterable[str] = (), handlers: Iterable[KataHandler] = ()
) -> tuple[InstalledFile, ...]:
    """Return every base file below the usual prefixes and *prefixes*, each real file once, unread.

    And those of the blueprint's *handlers*, wherever they are, with the blueprint's name and
    word on the runtime.
    """
    found: dict[str, InstalledFile] = {}
    for prefix in dict.fromkeys((*prefixes, *_deployed(host))):
        version = _version(host, prefix)
        for name, path, provenance in _of_kata_deploy(host, prefix):
            _add(host, found, name, path, provenance, version)
    for prefix in _DISTRIBUTED:
        version = _version(host, prefix)
        for name, path in _of_distribution(host, prefix):
            _add(host, found, name, path, Provenance.DISTRIBUTION, version)
    for handler in handlers:
        _declare(host, found, handler)
    return tuple(sorted(found.values(), key=lambda file: (file.name, file.config)))


def installed(
    host: Host, prefixes: Iterable[str] = (), handlers: Iterable[KataHandler] = ()
) -> tuple[InstalledFile, ...]:
    """Return what *places* does, read."""
    return tuple(read(host, file) for file in places(host, prefixes, handlers))


def touched(
    host: Host, prefixes: Iterable[str] = (), handlers: Iterable[KataHandler] = ()
) -> tuple[InstalledFile, ...]:
    """Return the base files, read, that a handler of the blueprint has or with something beside.

    The others are as their installation left them.
    """
    return tuple(
        read(host, file)
        for file in places(host, prefixes, handlers)
        if file.declared is not None
        or entries.has_any(file.configuration.directory, root=host.root)
    )


def read(host: Host, file: InstalledFile) -> InstalledFile:
    """Return a base file of *places* with its texts."""
    return replace(file, configuration=configuration(host, file.configuration.path))


def declared(host: Host, handler: KataHandler) -> InstalledFile | None:
    """Return the base file of one of the blueprint's handlers, read; None where there is none."""
    found: dict[str, InstalledFile] = {}
    _declare(host, found, handler)
    return next((read(host, file) for file in found.values()), None)


def undeclared(host: Host, config: str) -> InstalledFile | None:
    """Return the base file at a path that nobody named before, read; None where there is none."""
    found: dict[str, InstalledFile] = {}
    _add(host, found, config.rpartition("/")[2], config, Provenance.UNKNOWN, None)
    return next((read(host, file) for file in found.values()), None)


def _declare(host: Host, found: dict[str, InstalledFile], handler: KataHandler) -> None:
    real = _add(host, found, handler.name, handler.config, Provenance.BLUEPRINT, None)
    if real is not None and found[real].declared is None:
        found[real] = replace(found[real], name=handler.name, declared=handler.runtime)


def _add(
    host: Host,
    found: dict[str, InstalledFile],
    name: str,
    path: str,
    provenance: Provenance,
    version: str | None,
) -> str | None:
    """Add a base file, unless it is known by another path; return where it really is."""
    real = find(host, name, path).file
    if real is not None and real not in found:
        found[real] = InstalledFile(
            name=name,
            config=path,
            provenance=provenance,
            version=version,
            configuration=Configuration(path=real, text=None, reason="it was not read"),
        )
    return real


def _deployed(host: Host) -> Iterator[str]:
    """Yield kata-deploy's prefix, and those of its further installations."""
    yield _DEPLOYED
    parent, _, name = _DEPLOYED.rpartition("/")
    for other in _names(host, parent):
        if other.startswith(f"{name}-"):
            yield f"{parent}/{other}"


def _of_kata_deploy(host: Host, prefix: str) -> Iterator[tuple[str, str, Provenance]]:
    """Yield name, path and provenance of each file below a prefix of kata-deploy."""
    defaults = f"{prefix}/{_DEFAULTS}"
    suffix = prefix.rpartition("/")[2].removeprefix("kata") if prefix != _DEPLOYED else ""
    suffix = suffix if suffix.startswith("-") else ""
    for folder in (defaults, f"{defaults}/{_RUST}"):
        for shim in _names(host, f"{folder}/runtimes"):
            for path, _ in _files(host, f"{folder}/runtimes/{shim}"):
                yield f"kata-{shim}{suffix}", path, Provenance.KATA_DEPLOY
    for handler in _names(host, f"{defaults}/custom-runtimes"):
        for path, _ in _files(host, f"{defaults}/custom-runtimes/{handler}"):
            yield handler, path, Provenance.CUSTOM
    for folder in (defaults, f"{defaults}/{_RUST}"):
        for path, named in _files(host, folder):
            yield _handler(named) + suffix, path, Provenance.KATA_DEPLOY


def _of_distribution(host: Host, prefix: str) -> Iterator[tuple[str, str]]:
    defaults = f"{prefix}/{_DEFAULTS}" if prefix == "/usr" else prefix
    for folder in (defaults, f"{defaults}/{_RUST}"):
        for path, shim in _files(host, folder):
            yield _handler(shim), path


def _handler(shim: str | None) -> str:
    return "kata" if shim is None else f"kata-{shim}"


def _files(host: Host, folder: str) -> Iterator[tuple[str, str | None]]:
    """Yield the base files in a folder, with the shim that each is for."""
    for name in _names(host, folder):
        match = _NAME.fullmatch(name)
        if match is not None:
            yield f"{folder}/{name}", match["shim"]


def _names(host: Host, folder: str) -> list[str]:
    return files.names(host.path(folder))[:_FOLDERS_MAX]


def _version(host: Host, prefix: str) -> str | None:
    """Return what an installation says of itself; a file that is no version says nothing."""
    for name in _VERSIONS:
        try:
            real = files.resolve(f"{prefix}/{name}", root=host.root)
            said = "" if real is None else entries.text(real, root=host.root).strip()
        except HostError:
            continue
        if _VERSION.fullmatch(said):
            return said
    return None
