"""Read the facts that a node's fitness for passthrough hangs on; nothing is changed.

One fact that cannot be read is unknown and spoils no other. Texts in them are the node's
and untrusted.
"""

from typing import Final

from kata_gpu.discover import cdi, kata
from kata_gpu.discover.node_facts import asking, devices, directories, kernel, modules, processes
from kata_gpu.discover.node_facts.known import known
from kata_gpu.host import Host, paths
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.node_facts import AgentFacts, NodeFacts

NO_BLUEPRINT: Final = Blueprint(version="none")


def collect(
    host: Host,
    *,
    state_directory: str,
    cdi_directory: str,
    agent: AgentFacts,
    kata_prefixes: tuple[str, ...] = (),
    blueprint: Blueprint = NO_BLUEPRINT,
    link: str,
) -> NodeFacts:
    """Return what the host shows; *agent* is what others found of the agent's own parts.

    The *blueprint*'s handlers may have their base files anywhere. *link* is where the link is, or
    would be, by which Kata asks the agent.
    """
    return NodeFacts(
        kernel=kernel.read(host),
        modules=modules.read(host),
        devices=devices.read(host),
        process=processes.read(host),
        sysfs=known(lambda: directories.sysfs(host)),
        state_directory=known(lambda: directories.read(host, state_directory)),
        cdi_directory=known(lambda: directories.read(host, cdi_directory)),
        cdi=known(lambda: cdi.read(host, cdi_directory)),
        driverctl=known(lambda: paths.names(host.path("/etc/driverctl.d"))),
        agent=agent,
        asked=known(
            lambda: asking.read(
                host,
                link,
                kubelet=blueprint.asked.kubelet,
                is_wanted=blueprint.asked.link is not None,
            )
        ),
        kata=known(lambda: kata.touched(host, kata_prefixes, blueprint.handlers)),
    )
