"""An operation on sysfs that the kernel has not ended yet."""

from dataclasses import dataclass

from kata_gpu.model.pci import PciAddress, addresses_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A read or a store that waits in the kernel, in a process that this agent left to it.

    Nobody can end it: not even SIGKILL, once the kernel waits uninterruptibly.
    """

    pid: int
    attribute: str
    """Path below /sys."""

    value: str | None
    """What is stored; None for a read."""

    age_s: float
    wait_channel: str | None
    """The kernel function it sleeps in; None where the kernel does not say."""

    @property
    def address(self) -> PciAddress | None:
        """The function it is about; None when it is about none that can be told."""
        found = addresses_in(self.value or "") or addresses_in(self.attribute)
        return found[-1] if found else None

    def __str__(self) -> str:
        what = "a read of" if self.value is None else f"a write of {self.value!r} to"
        where = f" in {self.wait_channel}" if self.wait_channel else ""
        return f"{what} {self.attribute} hangs for {self.age_s:.0f} s{where} (pid {self.pid})"
