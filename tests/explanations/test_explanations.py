"""Every situation's explanation is, to the letter, the text that was reviewed.

``python -m tests.explanations.test_explanations --write`` writes the texts anew; what it
changed is then reviewed as a diff.
"""

import re
import sys
import tempfile
from pathlib import Path

import pytest

from kata_gpu.model.explanation import Explanation, lines
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import explanation
from tests.explanations.situations import SITUATIONS

_GOLDEN = Path(__file__).parent
_PASSING = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"), "TIME"),
    (re.compile(r"\d+\.\d\d s\b"), "0.00 s"),
    (re.compile(r"hangs for \d+ s"), "hangs for 90 s"),
    (re.compile(r"4194\d{3}"), "4242"),
)
"""What is different each time."""


def explained(name: str, root: Path) -> Explanation:
    facts, address = SITUATIONS[name](root)
    return explanation.explain(facts, PciAddress.parse(address))


def written(found: Explanation, root: Path) -> str:
    text = "\n".join((*lines(found), "")).replace(str(root), "")
    for passing, fixed in _PASSING:
        text = passing.sub(fixed, text)
    return text


@pytest.mark.parametrize("name", sorted(SITUATIONS))
def test_the_explanation_reads_as_reviewed(name: str, tmp_path: Path) -> None:
    found = explained(name, tmp_path)
    assert written(found, tmp_path) == (_GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_text_has_its_situation() -> None:
    assert {path.stem for path in _GOLDEN.glob("*.txt")} == set(SITUATIONS)


def test_every_state_is_explained() -> None:
    headlines = "\n".join(path.read_text().partition("\n")[0] for path in _GOLDEN.glob("*.txt"))
    assert [state for state in UnitState if f" is {state}: " not in headlines] == []


@pytest.mark.parametrize("name", sorted(SITUATIONS))
def test_every_explanation_says_what_to_do(name: str, tmp_path: Path) -> None:
    found = explained(name, tmp_path)
    assert found.actions
    assert len(set(found.actions)) == len(found.actions)


def _write() -> None:
    for path in _GOLDEN.glob("*.txt"):
        path.unlink()
    for name in SITUATIONS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            text = written(explained(name, root), root)
        (_GOLDEN / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.explanations.test_explanations --write")
    _write()
