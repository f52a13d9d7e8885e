"""Initial file systems: a static busybox, an init script and a few kernel modules.

Written here in cpio's "newc" format, so that no cpio, no mkinitramfs and no root are needed.
Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import lzma
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import process

_FOLDERS: Final = ("bin", "proc", "sys", "dev", "host", "overlay", "new", "modules")


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder of an archive."""

    name: str
    mode: int
    content: bytes = b""


def render(busybox: Path, init: Path, modules: tuple[Path, ...]) -> bytes:
    """Return the archive; its init loads the modules in the given order."""
    members = [Member(name, stat.S_IFDIR | 0o755) for name in _FOLDERS]
    members.append(Member("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    members.append(Member("init", stat.S_IFREG | 0o755, init.read_bytes()))
    for number, module in enumerate(modules, start=10):
        name = f"modules/{number}-{module.name.removesuffix('.xz')}"
        members.append(Member(name, stat.S_IFREG | 0o644, _read_module(module)))
    members.append(Member("TRAILER!!!", 0))
    return b"".join(_encode(inode, member) for inode, member in enumerate(members, start=1))


def with_dependencies(root: Path, release: str, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the module files that loading *names* takes, in order; built-in ones take none.

    Args:
        root: the folder that holds ``lib/modules``.
        release: the kernel's release, as ``uname -r`` would print it.
        names: modules by name.
    """
    found: dict[Path, None] = {}
    for name in names:
        found.update(dict.fromkeys(_dependencies(root, release, name)))
    return tuple(found)


def _dependencies(root: Path, release: str, name: str) -> Iterator[Path]:
    argv = ("modprobe", "-d", str(root), "-S", release, "--show-depends", name)
    for line in process.output(argv, timeout_s=60).splitlines():
        match line.split():
            case ["insmod", path, *_]:
                yield Path(path)
            case _:
                continue  # "builtin NAME"


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _encode(inode: int, member: Member) -> bytes:
    name = member.name.encode() + b"\0"
    fields = (inode, member.mode, 0, 0, 1, 0, len(member.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(member.content)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)
