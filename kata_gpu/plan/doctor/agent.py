"""The agent's own files and socket; a node may do without each."""

from collections.abc import Iterable

from kata_gpu.model.doctor import Answer
from kata_gpu.model.node_facts import AgentPart, NodeFacts, PartState, Unknown
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning


def settings(facts: NodeFacts) -> Iterable[Answer]:
    """The settings can be used; without a file the defaults hold."""
    yield _judged(
        facts.agent.settings,
        "the agent does not start with them; this went by the defaults",
        "correct the file (see configs/agent.toml), or remove it",
    )


def blueprint(facts: NodeFacts) -> Iterable[Answer]:
    """The blueprint can be used."""
    yield _judged(
        facts.agent.blueprint,
        "the agent does not start with it",
        "correct the file; kata-gpu plan shows what it would change",
    )


def ledger(facts: NodeFacts) -> Iterable[Answer]:
    """The ledger can be trusted."""
    yield _judged(
        facts.agent.ledger,
        "it is the only way back to the original drivers, so nothing is changed",
        "restore it from a backup or install the newer agent again; do not delete it",
    )


def socket(facts: NodeFacts) -> Iterable[Answer]:
    """The agent answers, if one runs."""
    part = facts.agent.socket
    if part.state is PartState.BROKEN:
        yield warning(
            part.detail,
            "nobody tells the state of this node, and perhaps nobody keeps it",
            "systemctl restart kata-gpu; its log says why it ended",
        )
    else:
        yield _judged(part, "", "")


def _judged(part: AgentPart, why: str, remedy: str) -> Answer:
    match part.state:
        case PartState.SOUND:
            return ok(part.detail)
        case PartState.ABSENT:
            return info(part.detail)
        case PartState.BROKEN:
            return error(part.detail, why, remedy)
        case PartState.UNKNOWN:
            return unknown(Unknown(reason=part.detail))
