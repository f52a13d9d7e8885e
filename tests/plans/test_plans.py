"""Every scenario's plan is, to the letter, the text that was reviewed.

``python -m tests.plans.test_plans --write`` writes the texts anew; what it changed is then
reviewed as a diff.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kata_gpu.model.plan import MoveGroup, Plan, Severity
from kata_gpu.plan import review
from tests.plans import (
    bundles,
    care,
    claims,
    files,
    history,
    selection,
    services,
    variants,
    virtuals,
    wiring,
)
from tests.plans.node import SCENARIOS

_GOLDEN = Path(__file__).parent
_MEMORY = Path("/dev/shm")  # noqa: S108 - nodes are many small files, and gone at once
_MODULES = (
    bundles,
    care,
    claims,
    files,
    history,
    selection,
    services,
    variants,
    virtuals,
    wiring,
)  # importing them registers their scenarios


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A scenario's plan, and what came of it; made once, for all tests to look at."""

    name: str
    plan: Plan
    second_look: Plan
    """The plan of the untouched node, made once more."""

    left_over: Plan
    """The plan that is left when two have been carried out."""


@pytest.fixture(scope="module", params=sorted(SCENARIOS))
def story(request: pytest.FixtureRequest) -> Story:
    """Tell every scenario from its beginning to its end."""
    name = request.param
    with _root() as root:
        node, plan = SCENARIOS[name].build(root)
        second_look = node.again()
        node.carry_out(plan)
        node.carry_out(node.again())
        return Story(name=name, plan=plan, second_look=second_look, left_over=node.again())


def test_the_plan_reads_as_reviewed(story: Story) -> None:
    assert review.text(story.plan) == _golden(story.name).read_text(encoding="utf-8")


def test_what_is_refused_is_not_moved(story: Story) -> None:
    refused = {f.subject for f in story.plan.findings if f.severity is Severity.REFUSED}
    moved = {step.entry.unit for step in story.plan.steps if isinstance(step, MoveGroup)}
    assert not refused & moved


def test_a_step_needs_only_steps_before_it(story: Story) -> None:
    steps = enumerate(story.plan.steps, 1)
    assert all(need < number for number, step in steps for need in step.needs)


def test_the_same_node_gets_the_same_plan(story: Story) -> None:
    assert story.second_look == story.plan


def test_after_at_most_two_passes_nothing_is_left_to_do(story: Story) -> None:
    assert story.left_over.steps == ()


def test_every_golden_text_has_its_scenario() -> None:
    assert {path.stem for path in _GOLDEN.glob("*.txt")} == set(SCENARIOS)


def test_every_scenario_says_what_it_shows() -> None:
    assert [name for name, found in SCENARIOS.items() if not found.description] == []


def _golden(name: str) -> Path:
    return _GOLDEN / f"{name}.txt"


@contextmanager
def _root() -> Iterator[Path]:
    """Give a node a root for as long as it lasts: in memory, where the host has such a place."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        yield Path(name)


def _write() -> None:
    for path in _GOLDEN.glob("*.txt"):
        path.unlink()
    for name, found in SCENARIOS.items():
        with _root() as root:
            _, plan = found.build(root)
        _golden(name).write_text(review.text(plan), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.plans.test_plans --write")
    _write()
