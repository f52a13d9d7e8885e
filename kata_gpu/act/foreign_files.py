"""Files of others, which the blueprint names to be out of the way."""

from pathlib import Path

from kata_gpu.errors import VerificationError
from kata_gpu.host import Host, files
from kata_gpu.model.plan import MoveFile


def move(host: Host, step: MoveFile) -> None:
    """Move the file and verify; one that was cut short is finished.

    Raises:
        HostError: it cannot be moved. VerificationError: it is still there, or is lost.
    """
    source, target = _place(host, step.path), _place(host, step.target)
    files.move(source, target, staging=_folder(host, step.staging))
    if source.exists() or not target.exists():
        raise VerificationError(f"cannot move {step.path}: it is still there, or is lost")


def _place(host: Host, path: str) -> Path:
    """Return where *path* is below the host's root, its folder's links followed."""
    folder, _, name = path.rpartition("/")
    return _folder(host, folder) / name


def _folder(host: Host, folder: str) -> Path:
    return host.path(files.resolve(folder, root=host.root) or folder)
