"""Virtual functions: the links by which a physical function shows them.

``sriov_numvfs`` would say how many there are, but its read waits for whoever makes or removes
them, for it takes the device's lock.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci; sriov_numvfs_show in drivers/pci/iov.c.
"""

import re
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.pci import PciAddress

_LINK: Final = re.compile(r"virtfn[0-9]{1,5}")


def virtuals(sysfs: Sysfs, parent: PciAddress) -> tuple[PciAddress, ...]:
    """Return the virtual functions that a function has now, by address; none for most.

    Raises:
        HostError: a link leads to what is no PCI address, or they cannot be listed.
    """
    directory = f"bus/pci/devices/{parent}"
    if not sysfs.exists(f"{directory}/sriov_totalvfs"):
        return ()
    names = [name for name in sysfs.names(directory) if _LINK.fullmatch(name)]
    try:
        links = [sysfs.link(f"{directory}/{name}") for name in names]
        return tuple(sorted(PciAddress.parse(link) for link in links if link is not None))
    except ValueError as error:
        raise HostError(f"cannot read the virtual functions of {parent}: {error}") from error
