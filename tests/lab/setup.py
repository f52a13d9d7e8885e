"""What the lab needs on this machine: a few packages, and a kernel in the cache.

Nothing is installed or downloaded without an agreement: a terminal is asked, anything else
is refused with the command that agrees. Only packages need root.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import kernel, process
from tests.lab.errors import LabError, SetupNeededError

_PACKAGES: Final = ("qemu-system-x86", "busybox-static", "curl", "kmod", "pciutils", "zstd")
_OLDEST_DEBIAN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller wants of the set-up."""

    kernel_package: str | None = None
    """The kernel package; None for the distribution's own."""

    agreed: bool = False
    """Whether installing and downloading need not be asked for."""

    @classmethod
    def from_environment(cls) -> "Wanted":
        """Read what a test run, which has no options, is told by variables."""
        return cls(
            kernel_package=os.environ.get("KATA_GPU_LAB_KERNEL"),
            agreed=os.environ.get("KATA_GPU_LAB_YES") == "1",
        )


def cache() -> Path:
    """Return the folder that holds everything the lab keeps between runs."""
    if chosen := os.environ.get("KATA_GPU_LAB_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kata-gpu/lab"


def say(text: str) -> None:
    """Print a line of progress, apart from the output of commands."""
    sys.stderr.write(f"lab: {text}\n")
    sys.stderr.flush()


def clean() -> None:
    """Remove the cache."""
    shutil.rmtree(cache(), ignore_errors=True)


def prepare(wanted: Wanted) -> kernel.Kernel:
    """Return a kernel to boot, after installing and downloading what is missing.

    Idempotent, and quick when nothing is missing. Two at once do the work once.

    Raises:
        SetupNeededError: something is missing and nobody agreed to get it.
        LabError: it cannot be got.
    """
    with _Progress() as progress:
        missing = missing_packages()
        cached = _cached(wanted)
        if cached is not None and not missing:
            return cached
        check_distribution()
        _agree(wanted, missing, needs_kernel=cached is None)
        with _lock(progress.step):
            if missing:
                _install(missing, progress.step)
            package, options = _known(wanted, progress.step)
            found = kernel.at(cache(), package)
            if found is None:
                found = kernel.fetch(cache(), package, options, progress.step)
            _ = (found.initramfs, found.pod_initramfs)
    return found


class _Progress:
    """Says each step as it starts, and how long the whole took."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._steps = 0

    def __enter__(self) -> "_Progress":
        return self

    def step(self, text: str) -> None:
        self._steps += 1
        say(f"[{time.monotonic() - self._started:5.1f} s] {text} …")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._steps and kind is None:
            say(f"[{time.monotonic() - self._started:5.1f} s] ready")


def missing_packages() -> tuple[str, ...]:
    """Return the packages that are not installed."""
    if shutil.which("dpkg-query") is None:
        check_distribution()
    argv = ("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *_PACKAGES)
    try:
        text = process.output(argv, timeout_s=30)
    except LabError:  # it fails when it knows nothing of one of them: ask one by one
        text = "".join(_status(package) for package in _PACKAGES)
    installed = {line.split()[0] for line in text.splitlines() if line.endswith(" installed")}
    return tuple(package for package in _PACKAGES if package not in installed)


def _status(package: str) -> str:
    argv = ("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", package)
    try:
        return process.output(argv, timeout_s=30)
    except LabError:
        return ""


def check_distribution(os_release: Path = Path("/etc/os-release")) -> None:
    """Refuse, with what the lab needs, where its packages have other names."""
    try:
        text = os_release.read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    release = lines.get("VERSION_ID", "").strip('"')
    is_debian = lines.get("ID", "").strip('"') == "debian"
    if is_debian and (not release or int(release.split(".")[0]) >= _OLDEST_DEBIAN):
        return
    name = lines.get("PRETTY_NAME", "an unknown system").strip('"')
    raise LabError(
        f"cannot set up the lab: this is {name}, and only Debian {_OLDEST_DEBIAN} and later are "
        f"known. It needs the programs of Debian's {', '.join(_PACKAGES)} and dpkg and apt with "
        "Debian's archive (for the kernel); run it in a Debian container, chroot or machine"
    )


def _cached(wanted: Wanted) -> kernel.Kernel | None:
    """Return the kernel if it is there; apt, which takes seconds, is asked once per update."""
    memory = cache() / f"package-{wanted.kernel_package or 'default'}.json"
    package = _remembered(memory)
    if package is None:
        found = (kernel.find(wanted.kernel_package, o) for o in ((), _private_lists()))
        package = next((p for p in found if p is not None), None)
        if package is None:
            return None
        _remember(memory, package)
    return kernel.at(cache(), package)


def _remembered(memory: Path) -> kernel.Package | None:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known.pop("lists") == _lists_age():
            return kernel.Package(**known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # asked for the first time, or by another version of this code
    return None


def _remember(memory: Path, package: kernel.Package) -> None:
    text = json.dumps({"lists": _lists_age(), **dataclasses.asdict(package)})
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.with_suffix(f".{os.getpid()}").write_text(text, encoding="utf-8")
    memory.with_suffix(f".{os.getpid()}").rename(memory)


def _lists_age() -> list[int]:
    """Return what changes with every update of the lists, the system's and the cache's."""
    folders = (Path("/var/lib/apt/lists"), cache() / "apt/state/lists")
    return [folder.stat().st_mtime_ns if folder.is_dir() else 0 for folder in folders]


def _agree(wanted: Wanted, missing: tuple[str, ...], *, needs_kernel: bool) -> None:
    """Return if the set-up may go on; say what it does otherwise."""
    chosen = f" --kernel {wanted.kernel_package}" if wanted.kernel_package else ""
    if missing and os.geteuid() != 0:
        raise SetupNeededError(
            "cannot install packages: you are not root; run: "
            f"sudo apt-get install --no-install-recommends {' '.join(missing)}"
        )
    actions = [f"install {', '.join(missing)} (up to 20 MB)"] if missing else []
    if needs_kernel:
        actions.append(f"download a Debian kernel (70 to 110 MB) into {cache()}")
    intent = " and ".join(actions)
    if wanted.agreed:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise SetupNeededError(
            f"the lab is not set up: it has to {intent}; agree with: "
            f"scripts/lab setup --yes{chosen} (or set KATA_GPU_LAB_YES=1)"
        )
    sys.stderr.write(f"lab: this will {intent}. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise SetupNeededError("not set up, as you wish")


@contextmanager
def _lock(step: Callable[[str], None]) -> Iterator[None]:
    """Keep other set-ups of this cache waiting."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step("waiting for another set-up")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(missing: tuple[str, ...], step: Callable[[str], None]) -> None:
    argv = ("apt-get", "install", "-y", "-q", "--no-install-recommends", *missing)
    step(f"installing {', '.join(missing)}")
    try:
        process.output(argv, timeout_s=900)
    except LabError:  # no lists, or lists so old that their files are gone
        step("updating the lists of packages")
        process.output(("apt-get", "update", "-q"), timeout_s=300)
        step(f"installing {', '.join(missing)}")
        process.output(argv, timeout_s=900)


def _known(wanted: Wanted, step: Callable[[str], None]) -> tuple[kernel.Package, tuple[str, ...]]:
    """Return the kernel package and the apt options that know it, updating lists if need be."""
    for options in ((), _private_lists()):
        if package := kernel.find(wanted.kernel_package, options):
            return package, options
    options = () if os.geteuid() == 0 else _private_lists()
    step("updating the lists of packages")
    process.output(("apt-get", *options, "update", "-q"), timeout_s=300)
    if package := kernel.find(wanted.kernel_package, options):
        return package, options
    name = wanted.kernel_package or "linux-image-amd64"
    raise LabError(f"cannot find the package {name}: no source in /etc/apt offers it")


def _private_lists() -> tuple[str, ...]:
    """Return apt options that keep lists in the cache, for users who may not write the system's."""
    folder = cache() / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return (
        *("-o", f"Dir::State={folder}/state"),
        *("-o", "Dir::State::status=/var/lib/dpkg/status"),
        *("-o", f"Dir::Cache={folder}/cache"),
    )
