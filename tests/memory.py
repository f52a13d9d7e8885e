"""Where tests that make thousands of nodes put them: nothing of them is worth a disk."""

import os


def folder() -> str | None:
    """Return a folder in memory, as sysfs is; None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - its own folder
