"""The words in which the contract between the fake kernel and the real one is written.

A row says: on a node where every function is on its host driver, after some steps, one act
is answered with an errno or with success, and then this is what the kernel shows. Paths and
values name functions by role, as ``{gpu}``; the roles are those of the lab's machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

HOME: Final[Mapping[str, str | None]] = {
    "gpu": "bochs-drm",
    "card": "bochs-drm",
    "audio": "snd_hda_intel",
    "bridged-gpu": "bochs-drm",
    "bridged-mate": None,
    "pci-bridge": None,
    "spare-port": "pcieport",
    "nvme-pf": "nvme",
    "nic": "e1000e",
}
"""The roles that rows may name, and the driver each is on before and after a row.

One more is ``vf``: the first virtual function of ``nvme-pf``, when there is one.
"""

HOME_WITHOUT_IOMMU: Final[Mapping[str, str | None]] = {"gpu": "bochs-drm"}

HOME_OF_ONE_CARD: Final[Mapping[str, str | None]] = {"card": "bochs-drm", "audio": "snd_hda_intel"}

NOWHERE: Final = "0000:fe:1f.7"


@dataclass(frozen=True, slots=True)
class Write:
    """Store a value in an attribute."""

    path: str
    value: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load a module."""

    module: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload a module; all that its driver holds is let go."""

    module: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Open a function through VFIO as a VM does, and let go of it again."""

    role: str


Act = Write | Load | Unload | Hold


@dataclass(frozen=True, slots=True)
class Reads:
    """An attribute has this text."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Leads:
    """A link ends in this name; None when there is no link."""

    path: str
    name: str | None


@dataclass(frozen=True, slots=True)
class Exists:
    """Something is at a path of the host, or is not."""

    path: str
    there: bool = True


@dataclass(frozen=True, slots=True)
class HasVfioDevice:
    """A function has a VFIO device and its group has a node, or neither is so."""

    role: str
    has: bool = True


Check = Reads | Leads | Exists | HasVfioDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sentence about the kernel that holds for the fake and for the real one."""

    name: str
    given: tuple[Act, ...] = ()
    held: str | None = None
    """The role that a VFIO user has open meanwhile."""

    act: Act
    refusal: str | None = None
    """The errno's name, or ``exit status 1`` for a program; None when it is accepted."""

    then: tuple[Check, ...]
    then_from_7: tuple[Check, ...] = ()
    """What holds instead from Linux 7 on, where the two differ."""

    undo: tuple[Act, ...] = ()
    """What has to be taken back beside the functions' own state, succeed or not."""


def override(role: str, value: str) -> Write:
    """Store who may bind."""
    return Write(f"bus/pci/devices/{{{role}}}/driver_override", value)


def unbind(role: str, driver: str) -> Write:
    """Take a function from a driver."""
    return Write(f"bus/pci/drivers/{driver}/unbind", f"{{{role}}}")


def bind(role: str, driver: str) -> Write:
    """Give a function to a driver."""
    return Write(f"bus/pci/drivers/{driver}/bind", f"{{{role}}}")


def probe(role: str) -> Write:
    """Offer a function to every driver."""
    return Write("bus/pci/drivers_probe", f"{{{role}}}")


def attribute(role: str, name: str, value: str) -> Write:
    """Store something else of a function."""
    return Write(f"bus/pci/devices/{{{role}}}/{name}", value)


def on(role: str, driver: str | None) -> Leads:
    """Say who holds a function."""
    return Leads(f"bus/pci/devices/{{{role}}}/driver", driver)


def only(role: str, driver: str | None) -> Reads:
    """Say who alone may bind a function."""
    return Reads(f"bus/pci/devices/{{{role}}}/driver_override", driver or "(null)")


def to_vfio(role: str) -> tuple[Write, ...]:
    """Take a function from its host driver to vfio-pci."""
    home = HOME.get(role)
    leave = (unbind(role, home),) if home else ()
    return (override(role, "vfio-pci"), *leave, bind(role, "vfio-pci"))
