"""The way by which Kata asks which devices a pod has: a link, to the agent or to kubelet."""

from collections.abc import Iterable
from typing import Final

from kata_gpu.model.doctor import Answer
from kata_gpu.model.inventory import DROP_IN_NAME
from kata_gpu.model.kata import Effective, InstalledFile
from kata_gpu.model.node_facts import AskedLink, NodeFacts, PartState, Unknown
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning
from kata_gpu.plan.kata import drop_in, handlers

_START: Final = "start the agent (systemctl restart kata-gpu), or say kata-gpu apply: both mend it"

_NO_PODS: Final = "Kata asks there when it makes a VM, and without an answer no pod has its devices"
_NO_CLAIMS: Final = (
    "kubelet tells Kata nothing of a claim's devices, so pods with claims do not start"
)


def pod_resources(facts: NodeFacts) -> Iterable[Answer]:
    """Whom Kata asks is the link, where it should be, and the link leads to who answers."""
    link = facts.asked
    if isinstance(link, Unknown):
        yield unknown(link)
        return
    if isinstance(facts.kata, Unknown):
        yield unknown(facts.kata)
        found = []
    else:
        found = [(file, handlers.merged(file)) for file in facts.kata]
    if link.is_wanted:
        yield from _elsewhere(found, link)
    users = [file.name for file, effective in found if _asks(effective) == link.path]
    if users or (link.is_wanted and link.is_there):
        yield _led(link, users, answers=facts.agent.socket.state is PartState.SOUND)
    elif link.is_wanted:
        yield info(f"{link.path} is not there, and no handler has it yet; the agent makes it")
    else:
        yield ok("Kata asks kubelet itself: no pool is offered through DRA by this agent")


def _asks(effective: Effective) -> object:
    return effective.value(*drop_in.SOCKET)


def _elsewhere(
    found: Iterable[tuple[InstalledFile, Effective]], link: AskedLink
) -> Iterable[Answer]:
    """Yield the blueprint's handlers that have our drop-in, and ask somebody else all the same."""
    for file, effective in found:
        names = {entry.name for entry in file.configuration.entries}
        setting = effective.settings.get(drop_in.SOCKET)
        if file.declared is None or DROP_IN_NAME not in names or _asks(effective) == link.path:
            continue
        sources = effective.value(*drop_in.SOURCES)
        reads_dra = isinstance(sources, tuple) and "dra" in sources
        if _asks(effective) == link.kubelet and reads_dra:
            continue  # this Kata reads DRA devices by itself
        asks = "nobody" if setting is None else f"{setting.value} (set in {setting.file})"
        yield error(
            f"handler {file.name} asks {asks} and not {link.path}",
            _NO_CLAIMS,
            f"take pod_resource_api_sock out of whatever sets it after {DROP_IN_NAME}, and out of "
            f"the blueprint; kata-gpu kata show {file.name} --origin tells who does",
        )


def _led(link: AskedLink, users: list[str], *, answers: bool) -> Answer:
    """Say where the link leads; *answers* tells whether the agent does on its status socket."""
    whom = f"handlers that ask there: {', '.join(users) or 'none yet'}"
    if not link.is_there:
        return error(f"nothing is at {link.path}; {whom}", _NO_PODS, _START)
    if link.target is None:
        return error(
            f"{link.path} is no symbolic link; {whom}",
            "the agent does not start, and Kata is told whatever answers there",
            f"remove it, then {_START}",
        )
    leads = f"{link.path} leads to {link.target}"
    if link.target == link.kubelet:
        return _around(link, leads, answers=answers)
    if not link.is_served:
        what = "which nobody serves any more" if link.is_target_there else "where nothing is"
        return error(f"{leads}, {what}; {whom}", _NO_PODS, _START)
    if not link.leads_to_agent:
        return warning(
            f"{leads}, which is neither kubelet's socket nor the agent's",
            "who listens there tells Kata which devices a pod gets",
            f"find out who made it; {_START}",
        )
    return ok(f"{leads}: the agent answers")


def _around(link: AskedLink, leads: str, *, answers: bool) -> Answer:
    if not link.is_served:
        return warning(
            f"{leads}, and kubelet does not listen there",
            _NO_PODS,
            "start kubelet; where it has another folder, set kubernetes.kubelet_directory",
        )
    if answers and link.is_wanted:
        return warning(
            f"{leads}: to kubelet, though the agent runs",
            _NO_CLAIMS,
            "look again when the agent has started; kata-gpu status tells its troubles, and "
            "systemctl restart kata-gpu leads Kata there again",
        )
    return info(f"{leads}: to kubelet, as no agent answers Kata; pods with claims do not start")
