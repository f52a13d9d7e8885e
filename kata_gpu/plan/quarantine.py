"""Move foreign CDI files out of the way where the blueprint names them, and back on release.

Only what an owner left behind is meant: a file that comes back after it was moved has an owner
who runs, and is told and not fought. The names in the quarantine say where each was, so there
is nothing to remember.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from kata_gpu.model.plan import Finding, MoveFile, Severity
from kata_gpu.plan import cdi
from kata_gpu.plan.situation import Situation


def name(path: str) -> str:
    """Return what the file at *path* is called in the quarantine."""
    return path.replace("%", "%25").replace("/", "%2F")


def plan(now: Situation) -> tuple[tuple[MoveFile, ...], tuple[Finding, ...]]:
    """Return the moves that the blueprint asks for, and what is not moved though it does."""
    directory, specs = now.inventory.quarantine, now.inventory.cdi
    aside = {one.path: one for one in now.inventory.set_aside}
    moves, findings = [], []
    for file in specs.files if directory is not None else ():
        folder, _, last = file.path.rpartition("/")
        if folder != file.directory or cdi.is_ours(specs.ours, file.path):
            continue
        pattern = _pattern(last, now.blueprint.cdi_quarantine)
        if pattern is None:
            continue
        kept = aside.get(file.path)
        if kept is not None and not kept.is_half_done:
            findings.append(_came_back(file.path, kept.kept))
            continue
        moves.append(
            MoveFile(
                path=file.path,
                target=f"{directory}/{name(file.path)}",
                reason=f"the blueprint has CDI files like {pattern} in quarantine",
            )
        )
    return tuple(moves), tuple(findings)


def release(now: Situation) -> tuple[MoveFile, ...]:
    """Return the way back of all that was moved."""
    there = {file.path for file in now.inventory.cdi.files}
    return tuple(
        MoveFile(path=one.kept, target=one.path, reason="everything is given back")
        for one in now.inventory.set_aside
        if one.is_half_done or one.path not in there
    )


def _pattern(last: str, patterns: Iterable[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(last, pattern)), None)


def _came_back(path: str, kept: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        subject=path,
        reason=f"it was moved to {kept}, and somebody has written it again",
        remedy=f"end the program that writes it, and remove {path} or {kept}",
    )
