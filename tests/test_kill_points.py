"""Wherever the agent is killed, the next one finishes or gives back, and nothing was lost."""

import pytest

from tests import kill_points


@pytest.mark.parametrize("act", kill_points.ACTS)
@pytest.mark.parametrize("shape", kill_points.SHAPES)
def test_every_kill_is_survived(shape: str, act: str) -> None:
    row = kill_points.run(kill_points.SHAPES[shape], kill_points.ACTS[act])
    assert row.violations == ()
    assert row.survived == row.points > 0
