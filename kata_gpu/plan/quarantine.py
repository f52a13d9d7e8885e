"""Move foreign CDI files and Kata drop-ins away where the blueprint names them; back on release.

Only what an owner left behind is meant: a file that comes back after it was moved has an owner
who runs, and is told and not fought. The names in the quarantine say where each was, so there
is nothing to remember.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from kata_gpu.model.inventory import DROP_IN_NAME, quarantine_name
from kata_gpu.model.kata import EntryKind, name_bytes
from kata_gpu.model.plan import Finding, MoveFile, Severity
from kata_gpu.plan import cdi
from kata_gpu.plan.situation import Situation

_NAME_MAX_BYTES: Final = 255
_DROP_INS: Final = "/config.d"
_KATA_DEPLOYS: Final = re.compile(r"(10|20|22|25|30|50)-")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    path: str
    pattern: str
    what: str


def plan(now: Situation) -> tuple[tuple[MoveFile, ...], tuple[Finding, ...]]:
    """Return the moves that the blueprint asks for, and what is not moved though it does."""
    directory = now.inventory.quarantine
    if directory is None:
        return (), ()
    aside = {one.path: one for one in now.inventory.set_aside}
    moves: dict[str, MoveFile] = {}
    findings: dict[str, Finding] = {}
    for match in (*_specs(now), *_drop_ins(now)):
        kept, last = aside.get(match.path), quarantine_name(match.path)
        if kept is not None and not kept.is_half_done:
            findings[match.path] = _came_back(match.path, kept.kept)
        elif not match.path.isprintable():
            findings[match.path] = _stays(match.path, "nobody can read its name")
        elif len(name_bytes(last)) > _NAME_MAX_BYTES:
            reason = f"a name that says its path has more than {_NAME_MAX_BYTES} bytes"
            findings[match.path] = _stays(match.path, reason)
        else:
            moves[match.path] = MoveFile(
                path=match.path,
                target=f"{directory}/{last}",
                staging=directory,
                reason=f"the blueprint has {match.what} like {match.pattern} in quarantine",
            )
    return tuple(moves.values()), tuple(findings.values())


def release(now: Situation) -> tuple[MoveFile, ...]:
    """Return the way back of all that was moved."""
    return tuple(
        MoveFile(
            path=one.kept,
            target=one.path,
            staging=_staging(one.path),
            reason="everything is given back",
        )
        for one in now.inventory.set_aside
        if one.is_half_done or not one.is_taken
    )


def _specs(now: Situation) -> Iterator[_Match]:
    specs = now.inventory.cdi
    if specs is None:
        return
    for file in specs.files:
        folder, _, last = file.path.rpartition("/")
        if folder != file.directory or cdi.is_ours(specs.ours, file.path):
            continue
        pattern = _pattern(last, now.blueprint.cdi_quarantine)
        if pattern is not None:
            yield _Match(path=file.path, pattern=pattern, what="CDI files")


def _drop_ins(now: Situation) -> Iterator[_Match]:
    """Yield the drop-ins; a name of kata-deploy's, which writes it anew, must be meant exactly."""
    bases = {base.file for base in now.inventory.kata}
    for configuration in now.inventory.configurations:
        for entry in configuration.entries:
            path = f"{configuration.directory}/{entry.name}"
            is_ours = entry.name == DROP_IN_NAME or path in now.ledger.files
            if entry.kind is not EntryKind.FILE or is_ours or path in bases:
                continue
            patterns = now.blueprint.kata_quarantine
            if _KATA_DEPLOYS.match(entry.name):
                patterns = tuple(pattern for pattern in patterns if pattern == entry.name)
            pattern = _pattern(entry.name, patterns)
            if pattern is not None:
                yield _Match(path=path, pattern=pattern, what="Kata drop-ins")


def _pattern(last: str, patterns: Iterable[str]) -> str | None:
    return next((p for p in patterns if p == last or fnmatchcase(last, p)), None)


def _staging(path: str) -> str:
    """Return where a copy is made: Kata reads whatever is in ``config.d``, half-written or not."""
    return path.rpartition("/")[0].removesuffix(_DROP_INS) or "/"


def _came_back(path: str, kept: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        subject=path,
        reason=f"it was moved to {kept}, and somebody has written it again",
        remedy=f"end the program that writes it, and remove {path} or {kept}",
    )


def _stays(path: str, reason: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        subject=ascii(path)[1:-1],
        reason=f"it is not moved away though the blueprint names it: {reason}",
        remedy="move it by hand",
    )
