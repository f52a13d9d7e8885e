"""A unit: what is handed out as one, which is the guest's share of its IOMMU groups."""

from dataclasses import dataclass
from enum import StrEnum

from kata_gpu.model.iommu import Verdict
from kata_gpu.model.pci import PciAddress


class UnitState(StrEnum):
    """What a unit is to the node's users."""

    AVAILABLE = "available"
    """Every function on VFIO, in the CDI spec: a pod VM can have it."""

    IN_USE = "in-use"
    """As available, and a VM has it now."""

    UNCLAIMED = "unclaimed"
    """On its host driver until a claim asks for it: a pod can have it."""

    PENDING = "pending"
    """On its way: the next pass will move or publish it."""

    WAITING = "waiting"
    """Somebody uses it; it is moved as soon as they are gone."""

    REFUSED = "refused"
    """The blueprint wants it passed through, and something is in the way."""

    FOREIGN = "foreign"
    """On VFIO by somebody else's hand; it is left alone until the blueprint adopts it."""

    FAILED = "failed"
    """A step failed; the unit is where the step's error says."""

    DRIFTED = "drifted"
    """It is not as we left it, and the blueprint says to report that, not to repair it."""

    CONTESTED = "contested"
    """Another program keeps undoing what we do; it is left alone for a while."""

    STUCK = "stuck"
    """An operation on it hangs in the kernel; nothing else is done to it until that ends."""

    QUARANTINED = "quarantined"
    """It could not be cleaned after its last user; nobody gets it until an admin clears it."""

    HOST = "host"
    """With its host driver, as the blueprint says."""

    IGNORED = "ignored"
    """Left alone, as the blueprint says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The functions that go to a guest together: mostly of one group.

    The identity is the address of the primary function: neither group numbers nor cdev
    numbers live as long as a unit does.
    """

    primary: PciAddress
    """The GPU with the lowest address, or the lowest selected function without one."""

    groups: tuple[int, ...]
    """By number; empty without an IOMMU."""

    functions: tuple[PciAddress, ...]
    pool: str
    verdict: Verdict

    @property
    def id(self) -> str:
        """The name in CDI, Kubernetes, the ledger and on the command line."""
        return str(self.primary)
