"""What can go wrong in the lab, by what the caller does about it."""


class LabError(Exception):
    """The lab cannot do what was asked; the text says what, why and what to do."""


class SetupNeededError(LabError):
    """Something must be installed or downloaded, and nobody agreed to it yet."""


class GuestError(LabError):
    """The guest did not boot, died or hung; a fresh one may do better."""


class EmulatorError(GuestError):
    """The emulator aborted, or its guest is deaf as a whole: it says nothing of what ran in it."""
