"""Every simulated scenario is told, to the letter, as was reviewed.

``python -m tests.test_simulations --write`` writes the texts anew; what it changed is then
reviewed as a diff.
"""

import sys
from pathlib import Path

import pytest

from kata_gpu.cli.simulate import text
from kata_gpu.plan.simulate.answer import Answer, Verdict
from kata_gpu.plan.simulate.simulation import simulate
from kata_gpu.settings import manifests
from tests.simulations.objects import documents
from tests.simulations.scenarios import SCENARIOS

_GOLDEN = Path(__file__).parent / "simulations"


def answer(name: str) -> Answer:
    return simulate(manifests.scenario(documents(*SCENARIOS[name][1])))


def told(name: str) -> str:
    lines = (line.rstrip() for line in text(answer(name), is_wide=False))
    return "\n".join([SCENARIOS[name][0], "", *lines, ""])


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_answer_reads_as_reviewed(name: str) -> None:
    assert told(name) == _golden(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_no_device_is_given_twice_to_claims_that_are_not_one(name: str) -> None:
    given = [
        (item.device, pod.pod)
        for pod in answer(name).pods
        for item in pod.devices
        if item.claim != "common"
    ]
    assert len({device for device, _ in given}) == len(given)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_whatever_is_not_placed_has_a_reason(name: str) -> None:
    for pod in answer(name).pods:
        assert (pod.reason is None) is (pod.verdict is Verdict.PLACED)
        assert (pod.node is None) is (pod.verdict is not Verdict.PLACED)


def test_the_same_scenario_gets_the_same_answer() -> None:
    for name in SCENARIOS:
        assert answer(name) == answer(name)


def test_every_golden_text_has_its_scenario() -> None:
    assert {path.stem for path in _GOLDEN.glob("*.txt")} == set(SCENARIOS)


def test_every_scenario_says_what_it_shows() -> None:
    assert [name for name, (description, _) in SCENARIOS.items() if not description] == []


def _golden(name: str) -> Path:
    return _GOLDEN / f"{name}.txt"


def _write() -> None:
    for path in _GOLDEN.glob("*.txt"):
        path.unlink()
    for name in SCENARIOS:
        _golden(name).write_text(told(name), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.test_simulations --write")
    _write()
