"""What all tests share: the lab's plugin, which runs `lab` tests in a VM, and what a daemon hears.

The product is imported where it is used: a pytest in the VM starts slowly as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kata_gpu.host.watches import Watches
    from tests.running import Events

pytest_plugins = ["tests.lab.plugin"]


@pytest.fixture
def events() -> "Iterator[Events]":
    """Hints that the test gives."""
    from tests.running import Events  # noqa: PLC0415

    events = Events()
    yield events
    events.close()


@pytest.fixture
def watches() -> "Iterator[Watches]":
    """The kernel's own, of files."""
    from kata_gpu.host.watches import Watches  # noqa: PLC0415

    with Watches.open() as watches:
        yield watches


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's, which has at most 107 bytes."""
    from tests import memory  # noqa: PLC0415

    with TemporaryDirectory(prefix="k", dir=memory.folder()) as folder:
        yield Path(folder)
