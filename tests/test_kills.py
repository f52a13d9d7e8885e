"""An agent that is killed at any moment leaves nothing that a fresh one does not mend."""

from pathlib import Path

import pytest

from tests import kills


@pytest.mark.parametrize(
    "_topology",
    [
        pytest.param(name, marks=pytest.mark.lab(name, timeout_s=600))
        for name in ("single", "multifunction", "bridge")
    ],
)
def test_an_agent_may_be_killed_at_any_moment(_topology: str, tmp_path: Path) -> None:
    for tally in kills.tallies(tmp_path):
        assert tally.points > 0
        assert tally.wrong == ()
