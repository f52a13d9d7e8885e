"""Reset a unit after its last user, and look whether it is again what it was.

A reset that returns has not worked yet: some devices answer nothing but ones afterwards,
until the host reboots. So what the kernel restores is compared with what was before.
"""

import logging
from datetime import UTC, datetime
from typing import Final

from kata_gpu.act import boot_state, cc_mode, waking
from kata_gpu.act.holders import Looks
from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, VerificationError
from kata_gpu.host import Host
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.ledger import Cleaning
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.plan import CleanUnit

log = logging.getLogger(__name__)

_HEADER_BYTES: Final = 64  # more takes CAP_SYS_ADMIN
_LINK: Final = ("current_link_speed", "current_link_width")
_PARTS: Final = {
    "vendor and device id": slice(0x00, 0x04),
    "class": slice(0x09, 0x0C),
    "header type": slice(0x0E, 0x0F),
    "BARs": slice(0x10, 0x28),
    "subsystem id": slice(0x2C, 0x30),
}


def clean(host: Host, step: CleanUnit, journal: Journal, looks: Looks) -> None:
    """Reset every function that can be, verify, and record; quarantine what is not as before.

    Raises:
        HeldError: somebody has it again; nothing was done.
        HostError, VerificationError: it is in quarantine now, and the ledger says why; or the
            ledger cannot be written.
        StuckError: a reset does not return.
    """
    looks.refuse_if_held([reset.address for reset in step.resets])
    gpus = boot_state.gpus(host.sysfs, (r.address for r in step.resets if r.methods))
    with waking.awake(host.sysfs, journal, step.unit, gpus):
        _clean(host, step, journal)
        cc_mode.remember(host.sysfs, step.unit, step.looks, journal)


def _clean(host: Host, step: CleanUnit, journal: Journal) -> None:
    found = ["ids, BARs and link are as before"]
    try:
        for reset in step.resets:
            if reset.methods:
                _reset(host.sysfs, reset.address)
                state = boot_state.verify(host.sysfs, reset.address, start_s=reset.start_s)
                found += [] if state is None else [f"{reset.address} {state}"]
    except (HostError, VerificationError) as failure:
        record = Cleaning(at=datetime.now(UTC), method=_methods(step), result=str(failure))
        journal.amend(step.unit, cleaned=record, quarantine=str(failure))
        raise
    record = Cleaning(at=datetime.now(UTC), method=_methods(step), result="; ".join(found))
    journal.amend(step.unit, cleaned=record, is_used=False)


def _reset(sysfs: Sysfs, address: PciAddress) -> None:
    device = f"bus/pci/devices/{address}"
    before = sysfs.head(f"{device}/config", _HEADER_BYTES)
    link = sysfs.attributes(device, _LINK, optional=frozenset(_LINK))
    sysfs.write(f"{device}/reset", "1")
    after = sysfs.head(f"{device}/config", _HEADER_BYTES)
    for part, place in _PARTS.items():
        if after[place] != before[place]:
            raise VerificationError(
                f"cannot clean {address}: after its reset its {part} reads {after[place].hex()}, "
                f"and before {before[place].hex()}"
            )
    now = sysfs.attributes(device, _LINK, optional=frozenset(_LINK))
    if now != link:
        raise VerificationError(
            f"cannot clean {address}: after its reset its link is {_text(now)}, and before "
            f"{_text(link)}"
        )
    log.info("reset %s", address)


def _text(link: dict[str, str]) -> str:
    return " x".join(link.get(name, "unknown") for name in _LINK)


def _methods(step: CleanUnit) -> str:
    return ", ".join(
        f"{reset.address} {'/'.join(reset.methods) or 'none'}" for reset in step.resets
    )
