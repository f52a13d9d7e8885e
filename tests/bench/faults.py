"""The table of kill points: where the agent was killed, and what the next one made of it."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.kill_points import ACTS, SHAPES, Row, run

_FILE: Final = Path(__file__).with_name("faults.md")
_INTRODUCTION: Final = """\
# Kill points

The agent is killed before and after every store, every change of the ledger, every program and
every step, which is before and after every file too. At each point the next agent once finishes
and once gives back. It survived when nothing that `tests/invariants.py` says was ever broken, the
unit reached its target or its original driver, nothing of ours was left after a release, and a
second run had nothing to do. What others left behind, and the blueprint has in quarantine, was at
every point at one place, and as they left it.

Made by `scripts/bench faults --write`; `tests/test_kill_points.py` runs all of it.
"""


def main(*options: str) -> None:
    """Print the table and what was violated; with --write keep the table beside this file."""
    logging.disable(logging.CRITICAL)
    rows = {(s, a): run(shape, act) for s, shape in SHAPES.items() for a, act in ACTS.items()}
    text = "\n".join([_INTRODUCTION, *_table(rows)]) + "\n"
    print(text)
    for (shape, act), row in rows.items():
        for violation in row.violations:
            print(f"{shape}, {act}: {violation}", file=sys.stderr)
    if "--write" in options:
        _FILE.write_text(text)
    if any(row.violations for row in rows.values()):
        sys.exit(1)


def _table(rows: dict[tuple[str, str], Row]) -> Iterator[str]:
    yield "| unit | act | points | survived | violations |"
    yield "|---|---|---:|---:|---:|"
    for (shape, act), row in rows.items():
        yield f"| {shape} | {act} | {row.points} | {row.survived} | {len(row.violations)} |"
    points, survived = (sum(getattr(row, n) for row in rows.values()) for n in Row.__slots__[:2])
    violations = sum(len(row.violations) for row in rows.values())
    yield f"| all | | {points} | {survived} | {violations} |"
