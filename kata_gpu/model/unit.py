"""A unit: what is handed out as one, which is the guest's share of its IOMMU groups."""

from dataclasses import dataclass

from kata_gpu.model.iommu import Verdict
from kata_gpu.model.pci import PciAddress


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
