"""The service manager is told by datagram, if there is one."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import systemd


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A manager's socket, not bound yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(5)
        yield channel


def test_a_message_reaches_the_manager(manager: socket.socket, tmp_path: Path) -> None:
    manager.bind(str(tmp_path / "notify"))
    assert systemd.notify("READY=1\nSTATUS=1 available", address=str(tmp_path / "notify"))
    assert manager.recv(100) == b"READY=1\nSTATUS=1 available"


def test_an_abstract_socket_is_written_with_an_at_sign(manager: socket.socket) -> None:
    manager.bind(f"\0kata-gpu-test-{os.getpid()}")
    assert systemd.notify("STOPPING=1", address=f"@kata-gpu-test-{os.getpid()}")
    assert manager.recv(100) == b"STOPPING=1"


def test_without_a_manager_nothing_is_sent() -> None:
    code = "from kata_gpu.host import systemd; print(systemd.notify('READY=1'))"
    answer = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, check=True)
    assert answer.stdout == b"False\n"


def test_a_manager_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot notify the service manager: No such file"):
        systemd.notify("READY=1", address=str(tmp_path / "notify"))
