"""A Debian kernel, unpacked and not installed.

One folder of the cache per package version, made in a temporary folder and renamed, so
that it is whole or absent. It holds ``vmlinux`` (booted as it is: a third of the time that
a compressed kernel takes under emulation), ``lib/modules`` with the folders the lab needs,
and the initial file systems, which are renewed when their init scripts change.
"""

import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import initramfs, process
from tests.lab.errors import LabError

_META_PACKAGE: Final = "linux-image-amd64"
_GUEST: Final = Path(__file__).parent / "guest"
_BUSYBOX: Final = Path("/bin/busybox")
_BOOT_MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

_FOLDERS: Final = (
    *("arch", "block", "crypto", "fs", "lib", "net/9p", "net/core", "virt"),
    *("drivers/acpi", "drivers/base", "drivers/block", "drivers/char", "drivers/gpu/drm/*.ko*"),
    *("drivers/crypto/ccp", "drivers/dca", "drivers/gpu/drm/display", "drivers/gpu/drm/tiny"),
    *(
        "drivers/gpu/drm/ttm",
        "drivers/gpu/drm/virtio",
        "drivers/hid/*.ko*",
        "drivers/i2c",
        "drivers/iommu",
    ),
    *("drivers/net/*.ko*", "drivers/net/ethernet/intel", "drivers/nvme", "drivers/pci"),
    *(
        "drivers/pps",
        "drivers/ptp",
        "drivers/uio",
        "drivers/usb/common",
        "drivers/usb/core",
        "drivers/usb/host",
    ),
    *("drivers/vfio", "drivers/video", "drivers/virt", "drivers/virtio"),
    *("sound/*.ko*", "sound/core", "sound/hda", "sound/pci/hda"),
)
_UNPACKED: Final = (
    "./boot/vmlinuz-*",
    *(
        f"{root}/lib/modules/*/{path}"
        for root in (".", "./usr")
        for path in ("modules.*", *(f"kernel/{folder}" for folder in _FOLDERS))
    ),
)
"""What is unpacked: less than half of the package; a new driver may need another folder here."""


@dataclass(frozen=True, slots=True)
class Package:
    """A kernel package as apt knows it."""

    name: str
    version: str
    size_mb: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel in the cache."""

    directory: Path

    @property
    def release(self) -> str:
        """What ``uname -r`` prints in the guest."""
        return (self.directory / "release").read_text(encoding="ascii")

    @property
    def vmlinux(self) -> Path:
        """The kernel, uncompressed."""
        return self.directory / "vmlinux"

    @property
    def modules(self) -> Path:
        """The folder to be mounted on /lib/modules/RELEASE."""
        return self.directory / "lib/modules" / self.release

    @property
    def initramfs(self) -> Path:
        """The guest's initial file system."""
        return self._initramfs(_GUEST / "initramfs-init", _BOOT_MODULES)

    @property
    def pod_initramfs(self) -> Path:
        """The pod VM's only file system."""
        return self._initramfs(_GUEST / "pod-init", ())

    def _initramfs(self, init: Path, names: tuple[str, ...]) -> Path:
        digest = hashlib.sha256(init.read_bytes() + " ".join(names).encode()).hexdigest()
        path = self.directory / f"{init.name}-{digest[:12]}.cpio"
        if not path.exists():
            modules = initramfs.with_dependencies(self.directory, self.release, names)
            _replace(path, initramfs.render(_BUSYBOX, init, modules))
        return path


def find(name: str | None, apt_options: tuple[str, ...]) -> Package | None:
    """Return the kernel package that apt offers; None when its lists do not know it.

    Args:
        name: the package; None for the one that the distribution's default depends on.
        apt_options: options for apt-cache, such as another folder of lists.
    """
    if name is None:
        name = _default(apt_options)
    if name is None:
        return None
    argv = ("apt-cache", *apt_options, "show", "--no-all-versions", name)
    try:
        text = process.output(argv, timeout_s=60)
    except LabError:
        return None  # apt-cache fails for an unknown package
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    if "Version" not in lines or "Size" not in lines:
        return None
    return Package(name=name, version=lines["Version"], size_mb=int(lines["Size"]) / 1e6)


def _default(apt_options: tuple[str, ...]) -> str | None:
    argv = ("apt-cache", *apt_options, "depends", _META_PACKAGE)
    try:
        text = process.output(argv, timeout_s=60)
    except LabError:
        return None
    for line in text.splitlines():
        match line.split():
            case ["Depends:", name] if name.startswith("linux-image-"):
                return name
            case _:
                continue
    return None


def at(cache: Path, package: Package) -> Kernel | None:
    """Return the kernel if the cache has it."""
    directory = _directory(cache, package)
    return Kernel(directory) if directory.is_dir() else None


def _directory(cache: Path, package: Package) -> Path:
    recipe = hashlib.sha256(" ".join(_UNPACKED).encode()).hexdigest()[:8]
    return cache / "kernels" / f"{package.name}_{package.version}_{recipe}"


def fetch(
    cache: Path,
    package: Package,
    apt_options: tuple[str, ...],
    step: Callable[[str], None],
) -> Kernel:
    """Download the package, unpack what is needed of it into the cache and return it."""
    kernels = cache / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=kernels) as folder:
        new = Path(folder) / "kernel"
        new.mkdir()
        step(f"downloading {package.name} {package.version} ({package.size_mb:.0f} MB)")
        unsandboxed = ("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()
        argv = ("apt-get", *apt_options, *unsandboxed, "-q", "download")
        process.output((*argv, f"{package.name}={package.version}"), timeout_s=900, cwd=folder)
        (archive,) = Path(folder).glob("*.deb")
        step("unpacking the kernel")
        _unpack(archive, new)
        archive.unlink()
        _complete(new)
        new.rename(_directory(cache, package))
    return Kernel(_directory(cache, package))


def _unpack(archive: Path, directory: Path) -> None:
    """Unpack the needed part of the package, by one pass over it."""
    untar = ("tar", "-x", "-C", str(directory), "--no-same-owner")
    patterns = ("--wildcards", "--no-wildcards-match-slash", *_UNPACKED)
    with subprocess.Popen(
        ("dpkg-deb", "--fsys-tarfile", str(archive)),
        env=process.ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as source:
        result = subprocess.run(
            (*untar, *patterns),
            env=process.ENVIRONMENT,
            stdin=source.stdout,
            capture_output=True,
            timeout=300,
            check=False,
        )
    # a pattern that matches nothing in this kernel is no failure: what is needed is checked next
    if source.returncode != 0 or not any(directory.iterdir()):
        raise LabError(f"cannot unpack {archive.name}: {result.stderr.decode().strip()}")


def _complete(directory: Path) -> None:
    """Make of an unpacked package what a guest boots: release, vmlinux, modules.dep."""
    if not (directory / "lib").exists():
        (directory / "lib").symlink_to("usr/lib")
    (compressed,) = (directory / "boot").glob("vmlinuz-*")
    release = compressed.name.removeprefix("vmlinuz-")
    (directory / "release").write_text(release, encoding="ascii")
    (directory / "vmlinux").write_bytes(vmlinux(compressed.read_bytes()))
    shutil.rmtree(directory / "boot")
    process.output(("depmod", "-b", str(directory), release), timeout_s=120)


def vmlinux(image: bytes) -> bytes:
    """Return the kernel that a bzImage carries.

    Source: Linux Documentation/arch/x86/boot.rst, payload_offset and payload_length.
    """
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        kernel = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        kernel = _zstd(payload)
    else:
        raise LabError(f"cannot unpack the kernel: unknown compression {payload[:6].hex()}")
    if not kernel.startswith(b"\x7fELF"):
        raise LabError(f"cannot unpack the kernel: no ELF file but {kernel[:6].hex()}")
    return kernel


def _zstd(payload: bytes) -> bytes:
    """Decompress; the size that follows the payload makes zstd complain after the last frame."""
    result = subprocess.run(
        ("zstd", "-d", "-c"),
        env=process.ENVIRONMENT,
        input=payload,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return result.stdout


def _replace(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(name).replace(path)
