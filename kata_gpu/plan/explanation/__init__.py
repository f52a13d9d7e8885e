"""Answer "why is this device in the state it is in, and what makes it available?". Pure.

Facts go in, sentences that an admin understands come out. What the agent said of a unit's
state goes before what a look finds, for it alone knows what it tried; the rest is as found.
"""

from typing import Final

from kata_gpu.model.explanation import Explanation, Said
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.unit import UnitState
from kata_gpu.plan.explanation.actions import actions
from kata_gpu.plan.explanation.case import Case, Facts, choose
from kata_gpu.plan.explanation.sections import sections, time

__all__ = ["Case", "Facts", "choose", "explain"]

IN_ORDER: Final = frozenset(
    {
        UnitState.AVAILABLE,
        UnitState.IN_USE,
        UnitState.UNCLAIMED,
        UnitState.HOST,
        UnitState.IGNORED,
    }
)
"""To be had, had, or where the blueprint wants it."""


def explain(facts: Facts, address: PciAddress) -> Explanation:
    """Return why the function at *address*, or the unit it belongs to, is as it is."""
    case = choose(facts, address)
    return Explanation(
        address=address,
        unit=case.unit.id if case.unit else None,
        state=case.state,
        is_in_order=case.is_bridge
        or (case.unit is not None and case.state in IN_ORDER)
        or (case.asking is not None and case.state is None and not case.steps),
        headline=_headline(case),
        source=_source(facts, case),
        sections=sections(facts, case),
        actions=actions(facts, case),
    )


def _headline(case: Case) -> str:
    if case.state is not None:
        return f"{case.name} is {case.state}: {case.reason}"
    if case.is_bridge:
        return f"{case.address} stays on the host: it is a bridge"
    if case.function is None:
        return f"{case.address} is ours as part of unit {case.name}, and is gone from the bus"
    if case.asking is not None:
        name = case.asking.name
        return f"{case.address} stays on the host: pool {name} passes its virtual functions through"
    ours = "; it is ours all the same" if case.entry else ""
    return f"{case.address} is not available: no pool gives it to a unit{ours}"


def _source(facts: Facts, case: Case) -> str:
    looked = f"a look at the node at {time(facts.inventory.read_at)}"
    said = facts.said
    if not isinstance(said, Said):
        return f"by {looked}; {said.reason}"
    word = f"by the word of agent {said.agent} at {time(said.read_at)}, and {looked}"
    if case.unit is not None and case.unit.id not in said.states:
        word = f"by {looked}; agent {said.agent} does not know this unit yet"
    if said.blueprint != facts.blueprint.version:
        return f"{word}; the agent goes by blueprint {said.blueprint}, not the file's"
    return word
