"""A blueprint that passes every GPU through, and all that a node's files hold."""

import os
import stat
from pathlib import Path
from typing import Final

from kata_gpu.act.journal import Journal
from kata_gpu.host import Host
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.plan import cdi
from kata_gpu.settings import blueprint
from kata_gpu.settings.agent import Settings

SETTINGS: Final = Settings()
CDI: Final = cdi.path(SETTINGS.cdi_directory, "example.com/pgpu")

TEXT: Final = """\
schema = 1
version = "2026.1"

[[pool]]
name = "gpus"
mode = "passthrough"
resource = "example.com/pgpu"

[[pool.select]]
class = "03"
"""

EVERY_GPU: Final[Blueprint] = blueprint.parse(TEXT)


def journal_of(host: Host) -> Journal:
    """Return the node's journal, read anew as a new process would."""
    return Journal(host.path(SETTINGS.ledger))


def put(root: Path, path: str, text: str = "") -> Path:
    """Write a file at an absolute *path* of the node at *root*, its folders too."""
    at = root / path.lstrip("/")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(text)
    return at


def everything(root: Path) -> dict[str, str]:
    """Return every file, link, device and folder below *root*, with its content and mode."""
    found = {}
    for folder, folders, names in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *names)):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                content = str(path.readlink())
            else:
                content = path.read_bytes().hex() if stat.S_ISREG(mode) else ""
            found[str(path)] = f"{stat.filemode(mode)} {content}"
    return found
