"""On a real kernel, the daemon hears within a second of what takes a device from it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import pyudev

from kata_gpu.host.uevents import Uevents
from tests.lab.inside import Machine

DEVICES: Final = Path("/sys/bus/pci/devices")
DRIVERS: Final = Path("/sys/bus/pci/drivers")
POOL: Final = """
schema = 1
version = "lab"
[[pool]]
name = "gpus"
mode = "passthrough"
resource = "example.com/gpu"
select = [{{ address = "{}" }}]
"""


class Daemon:
    """The agent as a process of its own, and what it logs."""

    def __init__(self, folder: Path, gpu: str) -> None:
        self._log, self.blueprint = folder / "log", folder / "blueprint.toml"
        self.blueprint.write_text(POOL.format(gpu))
        self._settings = folder / "agent.toml"
        self._settings.write_text(
            f'blueprint = "{self.blueprint}"\nstate_directory = "{folder}/state"\n'
            f'socket = "{folder}/socket"\ncdi_directory = "{folder}/cdi"\n'
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let it run, and give back what it took."""
        with self._log.open("w") as log:
            process = subprocess.Popen(self._argv("run", "--verbose"), stderr=log)
            try:
                yield
            finally:
                process.terminate()
                assert process.wait(30) == 0
                subprocess.run(self._argv("release", "--all", "--yes"), check=True)

    def looks(self) -> list[datetime]:
        """Return when turns began that a hint caused."""
        lines = self._log.read_text().splitlines()
        return [
            datetime.fromisoformat(line[:23].replace(",", "."))
            for line in lines
            if line.endswith(" DEBUG look again")
        ]

    def quiet(self) -> None:
        """Wait until the log does not grow any more."""
        wait_for(lambda: "is available" in self._log.read_text())
        length = -1
        while length != self._log.stat().st_size:
            length = self._log.stat().st_size
            time.sleep(5)

    @contextmanager
    def within_a_second(self) -> Iterator[None]:
        """Let what happens in the block be followed by a turn that begins within a second."""
        self.quiet()
        earlier, changed_at = len(self.looks()), datetime.now()
        yield
        wait_for(lambda: len(self.looks()) > earlier)
        assert self.looks()[earlier] - changed_at < timedelta(seconds=1)

    def _argv(self, *verb: str) -> list[str]:
        return [sys.executable, "-m", "kata_gpu", *verb, "--settings", str(self._settings)]


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


@pytest.mark.lab(timeout_s=300)
def test_what_takes_a_device_from_the_daemon_is_heard_within_a_second(
    machine: Machine, tmp_path: Path
) -> None:
    gpu = machine.address("gpu")
    override, driver = DEVICES / gpu / "driver_override", DEVICES / gpu / "driver"
    host_driver = driver.readlink().name
    daemon = Daemon(tmp_path, gpu)
    with daemon.running():
        with daemon.within_a_second():
            override.write_text("\n")
        wait_for(lambda: override.read_text() == "vfio-pci\n")
        with daemon.within_a_second():
            override.write_text("\n")
            (DRIVERS / "vfio-pci/unbind").write_text(gpu)
            (DRIVERS / host_driver / "bind").write_text(gpu)
        wait_for(lambda: driver.is_symlink() and driver.readlink().name == "vfio-pci")
        group = (DEVICES / gpu / "iommu_group").readlink().name
        with daemon.within_a_second():
            os.close(os.open(f"/dev/vfio/{group}", os.O_RDWR))
        with daemon.within_a_second():
            daemon.blueprint.touch()
    assert driver.readlink().name == host_driver


@pytest.mark.lab
def test_more_uevents_than_the_socket_holds_are_a_hint_that_some_were_lost(
    machine: Machine,
) -> None:
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    monitor.filter_by("pci")
    monitor.start()
    monitor.set_receive_buffer_size(4096)
    uevents = Uevents(monitor)
    for _ in range(100):
        (DEVICES / machine.address("gpu") / "uevent").write_text("change")
    first, *others = (hint.text for hint in (*uevents.drain(), *uevents.drain()))
    assert first == "events were lost: No buffer space available"
    assert 0 < len(others) < 100
    assert uevents.drain() == ()
