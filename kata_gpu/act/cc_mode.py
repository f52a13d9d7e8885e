"""Ask NVIDIA GPUs that are ours and idle which confidential mode they are in, and remember it.

The mode is in a register of the GPU's memory, and means something once the chip has started: a
reset or a bind may have been a moment ago. What cannot be read is no failure: the ledger has
the reason in place of the mode.

Source: as for `kata_gpu.model.confidential`; NV_THERM_I2CS_SCRATCH_FSP_BOOT_COMPLETE in NVIDIA
open-gpu-kernel-modules, dev_therm.h.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Final

from kata_gpu.act import boot_state, waking
from kata_gpu.act.holders import Looks
from kata_gpu.act.journal import Journal
from kata_gpu.errors import HeldError, HostError
from kata_gpu.host import Host
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model import confidential
from kata_gpu.model.confidential import CcMode, ModeLook
from kata_gpu.model.pci import PciAddress
from kata_gpu.model.plan import ReadMode

log = logging.getLogger(__name__)

_STARTED_AT: Final = 0x200BC
_STARTED: Final = 0xFF
_STEP_S: Final = 0.1

Word = CcMode | str
"""A mode, or why there is none."""


def take(host: Host, step: ReadMode, journal: Journal, looks: Looks) -> None:
    """Read the mode of a unit that nobody has; one that somebody has by now is left alone.

    What was left awake sleeps again, also where there is nothing to be read.

    Raises:
        HostError: nobody can say who has it, or the ledger cannot be written.
        StuckError: a store or a read does not return.
    """
    try:
        looks.refuse_if_held(step.addresses)
    except HeldError:  # it is read when it is cleaned after them
        return
    entry = journal.ledger.entry(step.unit)
    left_awake = () if entry is None else entry.woken
    _look(host, step.unit, step.looks, journal, left_awake)


def look(host: Host, unit: str, looks: Sequence[ModeLook], journal: Journal) -> None:
    """Wake the GPUs of a unit that is ours, read and remember; nothing without any.

    Nobody may have the unit.

    Raises:
        HostError: the ledger cannot be written.
        StuckError: a store or a read does not return.
    """
    if looks:
        _look(host, unit, looks, journal)


def _look(
    host: Host,
    unit: str,
    looks: Sequence[ModeLook],
    journal: Journal,
    left_awake: Iterable[PciAddress] = (),
) -> None:
    addresses = dict.fromkeys((*(found.address for found in looks), *left_awake))
    with waking.awake(host.sysfs, journal, unit, addresses):
        remember(host.sysfs, unit, looks, journal)


def remember(sysfs: Sysfs, unit: str, looks: Sequence[ModeLook], journal: Journal) -> None:
    """Read GPUs that are kept awake, and note what all of them are in; nothing without any.

    Raises:
        HostError, StuckError: as for `look`.
    """
    if not looks:
        return
    words = [_read(sysfs, found) for found in looks]
    mode = words[0]
    if isinstance(mode, CcMode) and len(set(words)) == 1:
        journal.amend(unit, cc_mode=mode, cc_unread=None)
        log.info("read the confidential mode of %s: %s", unit, mode)
        return
    each = (f"{f.address} is in {w}" for f, w in zip(looks, words, strict=True))
    unread = (word for word in words if not isinstance(word, CcMode))
    reason = next(unread, f"its GPUs differ: {', '.join(each)}")
    journal.amend(unit, cc_mode=None, cc_unread=reason)
    log.warning("cannot tell the confidential mode of %s: %s", unit, reason)


def _read(sysfs: Sysfs, look: ModeLook) -> Word:
    try:
        reason = _why_it_has_not_started(sysfs, look)
        if reason is not None:
            return f"{look.address}: {reason}"
        value = sysfs.peek(_memory(look), look.register.offset)
    except HostError as error:
        return str(error)
    mode = confidential.mode(look.register, int(value, 16))
    if mode is None or not boot_state.is_sound(int(value, 16)):
        return f"{look.address}: its register reads {value}, which is no mode"
    return mode


def _why_it_has_not_started(sysfs: Sysfs, look: ModeLook) -> str | None:
    """Wait for it; return None when its registers mean something."""
    deadline = time.monotonic() + look.register.start_s
    while True:
        reason = boot_state.why_it_means_nothing(sysfs, look.address)
        if reason is not None:
            return reason
        chip = int(sysfs.peek(_memory(look)), 16)
        if not chip:
            return "its first register names no chip"
        started = sysfs.peek(_memory(look), _STARTED_AT)
        if boot_state.is_sound(chip) and int(started, 16) == _STARTED:
            return None
        if time.monotonic() > deadline:
            return f"it has not started: its start reads {started}"
        time.sleep(_STEP_S)


def _memory(look: ModeLook) -> str:
    return f"bus/pci/devices/{look.address}/resource0"
