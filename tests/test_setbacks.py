"""What failed is not tried again at once, and is when an admin says so."""

from typing import Final

from kata_gpu.agent.setbacks import Setbacks
from kata_gpu.model.restraint import Setback
from kata_gpu.model.unit import UnitState

FAILED: Final = Setback(reason="it does not answer")
WAITING: Final = Setback(reason="a VM has it", state=UnitState.WAITING)
FINAL: Final = Setback(reason="it does not start", is_final=True)


def test_what_failed_waits_and_what_is_held_does_not() -> None:
    setbacks = Setbacks()
    setbacks.learn({"a": FAILED, "b": WAITING}, {}, pause_s=60)
    assert setbacks.fresh() == {"a": FAILED}


def test_it_is_tried_after_the_pause_unless_that_would_do_harm() -> None:
    setbacks = Setbacks()
    setbacks.learn({"a": FAILED, "b": FINAL}, {}, pause_s=0)
    assert setbacks.fresh() == {"b": FINAL}


def test_a_turn_that_does_not_try_it_makes_the_pause_no_longer() -> None:
    setbacks = Setbacks()
    setbacks.learn({"a": FAILED}, {}, pause_s=0)
    setbacks.learn({"a": FAILED}, {"a": FAILED}, pause_s=60)
    assert setbacks.fresh() == {}


def test_what_works_is_forgotten() -> None:
    setbacks = Setbacks()
    setbacks.learn({"a": FAILED}, {}, pause_s=60)
    setbacks.learn({}, {}, pause_s=60)
    assert setbacks.fresh() == {}


def test_what_is_forgotten_during_a_turn_stays_so() -> None:
    setbacks = Setbacks()
    setbacks.learn({"a": FAILED, "b": FAILED}, {}, pause_s=60)
    hopeless = setbacks.fresh()
    setbacks.forget("a")
    setbacks.learn({"a": FAILED, "b": FAILED}, hopeless, pause_s=60)
    assert setbacks.fresh() == {"b": FAILED}
    setbacks.forget_all()
    setbacks.learn({"b": FAILED}, hopeless, pause_s=60)
    assert setbacks.fresh() == {}
