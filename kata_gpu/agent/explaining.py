"""Look at a node, and explain one device of it."""

from dataclasses import replace

from kata_gpu.agent import node
from kata_gpu.discover import clients
from kata_gpu.discover import inventory as discover
from kata_gpu.errors import HostError
from kata_gpu.host import Host, holders
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.explanation import Said, Unsaid
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import PciAddress
from kata_gpu.plan.explanation import Facts
from kata_gpu.settings.agent import Settings


def look(
    host: Host,
    settings: Settings,
    blueprint: Blueprint,
    ledger: Ledger,
    address: PciAddress,
    said: Said | Unsaid,
) -> Facts:
    """Return all that an explanation of the function at *address* depends on.

    Raises:
        HostError: there is no such function, and there was none that is ours.
    """
    inventory, plan = node.make_plan(host, settings, blueprint, ledger)
    if address not in inventory.by_address() and ledger.owner(address) is None:
        inventory = _with(host, inventory, address)
    drivers = (f.binding.driver for f in inventory.functions if f.binding.driver is not None)
    return Facts(
        blueprint=blueprint,
        inventory=inventory,
        ledger=ledger,
        plan=plan,
        cdi_directory=settings.cdi_directory,
        modules=clients.read(host.sysfs, drivers),
        said=said,
    )


def _with(host: Host, known: Inventory, address: PciAddress) -> Inventory:
    """Return an inventory with a function that neither the blueprint nor a GPU brings in."""
    found = discover.collect(host, interest=lambda identity: identity.address == address)
    if address not in found.by_address():
        addresses = ", ".join(str(f.address) for f in known.functions) or "none"
        why = next((p.reason for p in found.problems if p.subject == str(address)), None)
        raise HostError(
            f"cannot explain {address}: {why or 'nothing is there'} (GPUs and what is near "
            f"them: {addresses}; kata-gpu inventory --all shows the others)"
        )
    users = holders.find(host, [f.address for f in found.functions if not f.is_bridge])
    return replace(
        known,
        functions=found.functions,
        groups=found.groups,
        holders={address: who for address, who in users.items() if who},
    )
