"""The main job once through, on a real kernel: host driver → pod VM → host driver.

Runs inside the lab's guest: ``scripts/demo`` shows it to people, ``test_walk.py`` to pytest.
Every stage checks what it says; the first that does not hold ends the walk.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.lab import pod_vm

_COMMAND: Final = (str(Path(sys.executable).parent / "kata-gpu"),)
_TIMEOUT_S: Final = 60.0
_DEVICES: Final = Path("/sys/bus/pci/devices")
_SOCKET: Final = Path("/run/kata-gpu/status.sock")
_CDI: Final = Path("/var/run/cdi/kata-gpu-nvidia.com_pgpu.json")
_BLUEPRINT: Final = Path("/etc/kata-gpu/blueprint.toml")
_KATA: Final = Path("/opt/kata/share/defaults/kata-containers")
_GO: Final = _KATA / "runtimes/qemu-nvidia-gpu"
_RUST: Final = _KATA / "runtime-rs/runtimes/qemu-nvidia-gpu-runtime-rs"
_BLUEPRINT_TEXT: Final = f"""\
schema = 1
version = "walk-1"

[[pool]]
name = "gpus"
mode = "passthrough"
resource = "nvidia.com/pgpu"
select = [{{ vendor = "10de", class = "03" }}]

[[kata.handler]]
name = "kata-qemu-nvidia-gpu"
runtime = "go"
config = "{_KATA}/configuration-qemu-nvidia-gpu.toml"

[[kata.handler]]
name = "kata-qemu-nvidia-gpu-runtime-rs"
runtime = "rust"
config = "{_RUST}/configuration-qemu-nvidia-gpu-runtime-rs.toml"
"""
_BASE_TEXT: Final = """\
[hypervisor.qemu]
cold_plug_vfio = "root-port"

[runtime]
name = "virt_container"
hypervisor_name = "qemu"
agent_name = "kata"
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that held, and how long it took."""

    title: str
    elapsed_s: float


class Walk:
    """One walk with one GPU; ``stages`` is what held so far."""

    def __init__(self, gpu: str, *, say: Callable[[str], None] = print) -> None:
        self.gpu = gpu
        self.stages: list[Stage] = []
        self._say = say
        self._before = _bindings(gpu)

    def run(self) -> None:
        """Take all stages; AssertionError or another error from the one that fails."""
        _install_kata()
        with self._stage(f"{self.gpu} is on its host driver"):
            self._inventory()
        with self._stage("the blueprint, and the plan it makes"):
            self._plan()
        with _daemon() as daemon:
            with self._stage("the daemon binds, publishes and says so"):
                _wait_until_ready(daemon)
                self._status()
            with self._stage("what pod VMs and Kata find: CDI spec and drop-ins"):
                nodes = self._published()
            with self._stage(f"a second VM boots with {' '.join(nodes)} and nothing else"):
                self._pod_vm(nodes)
            with self._stage("SIGTERM ends the daemon and unbinds nothing"):
                self._end(daemon)
        with self._stage("release gives it back"):
            self._release()
        with self._stage(f"{self.gpu} is on its host driver again, and no trace is left"):
            for address, (driver, override) in _bindings(self.gpu).items():
                self._say(f"    in sysfs: {address} driver {driver}, driver_override {override}")
            assert _bindings(self.gpu) == self._before
            assert not _CDI.exists()
            assert not list(_KATA.rglob("*kata-gpu.toml"))

    @contextmanager
    def _stage(self, title: str) -> Iterator[None]:
        started = time.monotonic()
        self._say(f"\n=== {len(self.stages) + 1}. {title}")
        yield
        elapsed_s = time.monotonic() - started
        self.stages.append(Stage(title, elapsed_s))
        self._say(f"    ok ({elapsed_s:.1f} s)")

    def _call(self, *arguments: str, expected: int = 0) -> str:
        """Run ``kata-gpu`` and show what it prints; AssertionError for another exit status."""
        self._say(f"$ kata-gpu {' '.join(arguments)}")
        done = subprocess.run(
            [*_COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        self._say(done.stdout.rstrip())
        assert done.returncode == expected, f"exit status {done.returncode}, not {expected}"
        return done.stdout

    def _inventory(self) -> None:
        shown = self._call("inventory")
        assert self.gpu in shown
        assert _bindings(self.gpu) == self._before
        assert all(driver not in {None, "vfio-pci"} for driver, _ in self._before.values())

    def _plan(self) -> None:
        _BLUEPRINT.parent.mkdir(parents=True, exist_ok=True)
        _BLUEPRINT.write_text(_BLUEPRINT_TEXT)
        self._say(_BLUEPRINT_TEXT)
        shown = self._call("plan", expected=2)
        assert f"bind unit {self.gpu}" in shown
        assert _bindings(self.gpu) == self._before, "a plan changes nothing"

    def _status(self) -> None:
        state = self._ask()
        unit = next(u for u in state["units"] if u["id"] == self.gpu)
        assert unit["state"] == "available", unit["reason"]
        assert {driver for driver, _ in _bindings(self.gpu).values()} == {"vfio-pci"}
        self._call("status", "-o", "wide")

    def _ask(self) -> Any:
        argv = ["curl", "-sS", "--unix-socket", str(_SOCKET), "http://localhost/v1/status"]
        self._say(f"$ {' '.join(argv)}")
        answer = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True
        )
        self._say(f"    {len(answer.stdout)} bytes of JSON")
        return json.loads(answer.stdout)

    def _published(self) -> tuple[str, ...]:
        for path in (_CDI, *sorted(_KATA.rglob("*kata-gpu.toml"))):
            self._say(f"$ cat {path}\n{path.read_text().rstrip()}")
        assert (_GO / "config.d/60-kata-gpu.toml").is_file()
        assert (_RUST / "config.d/60-kata-gpu.toml").is_file()
        spec = json.loads(_CDI.read_text())
        assert spec["kind"] == "nvidia.com/pgpu"
        device = next(d for d in spec["devices"] if d["name"] == self.gpu)
        return tuple(node["hostPath"] for node in device["containerEdits"]["deviceNodes"])

    def _pod_vm(self, nodes: tuple[str, ...]) -> None:
        report = pod_vm.boot(nodes)
        for seen in report.functions:
            self._say(
                f"    in its sysfs: {seen.address} {seen.vendor:04x}:{seen.device:04x} "
                f"class {seen.class_code:06x}"
            )
        self._say(f"    booted in {report.elapsed_s:.1f} s under {report.accelerator}")
        given = sorted(_identity(address) for address in self._before)
        assert sorted((s.vendor, s.device, s.class_code) for s in report.functions) == given

    def _end(self, daemon: "Daemon") -> None:
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(_TIMEOUT_S) == 0
        assert {driver for driver, _ in _bindings(self.gpu).values()} == {"vfio-pci"}
        assert _CDI.exists()
        assert not _SOCKET.exists()

    def _release(self) -> None:
        self._call("release", "--all", "--yes")


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running ``kata-gpu run`` and the socket on which it says how far it is."""

    process: "subprocess.Popen[bytes]"
    notify: socket.socket


@contextmanager
def _daemon() -> Iterator[Daemon]:
    """Start the daemon as its service would, and never leave it running."""
    address = f"\0kata-gpu-walk-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(_TIMEOUT_S)
        environment = {**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@")}
        process = subprocess.Popen([*_COMMAND, "run"], stdin=subprocess.DEVNULL, env=environment)
        try:
            yield Daemon(process, notify)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(_TIMEOUT_S)


def _wait_until_ready(daemon: Daemon) -> None:
    said = daemon.notify.recv(4096).decode()
    assert said.startswith("READY=1"), said


def _install_kata() -> None:
    """Lay out the handlers' base files as kata-deploy does: one behind a link."""
    for folder, name in (
        (_GO, "configuration-qemu-nvidia-gpu.toml"),
        (_RUST, "configuration-qemu-nvidia-gpu-runtime-rs.toml"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(_BASE_TEXT)
    link = _KATA / "configuration-qemu-nvidia-gpu.toml"
    link.unlink(missing_ok=True)
    link.symlink_to(_GO / link.name)


def _bindings(gpu: str) -> dict[str, tuple[str | None, str]]:
    """Return driver and override of every function in the GPU's group, from sysfs itself."""
    found = {}
    for member in sorted((_DEVICES / gpu / "iommu_group/devices").iterdir()):
        driver = member / "driver"
        found[member.name] = (
            driver.readlink().name if driver.is_symlink() else None,
            (member / "driver_override").read_text().strip(),
        )
    return found


def _identity(address: str) -> tuple[int, int, int]:
    vendor, device, class_code = (
        int((_DEVICES / address / name).read_text(), 16) for name in ("vendor", "device", "class")
    )
    return vendor, device, class_code


def main() -> int:
    """Walk with the first NVIDIA GPU of this machine and print a summary."""
    gpu = next(
        path.name
        for path in sorted(_DEVICES.iterdir())
        if (path / "vendor").read_text().strip() == "0x10de"
        and (path / "class").read_text().startswith("0x03")
    )
    walk = Walk(gpu, say=lambda text: print(text, flush=True))
    failure: Exception | None = None
    try:
        walk.run()
    except (AssertionError, OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
        failure = error
    print("\n=== summary")
    for number, stage in enumerate(walk.stages, 1):
        print(f"{number:3}  {stage.elapsed_s:5.1f} s  {stage.title}")
    if failure is None:
        return 0
    print(f"{len(walk.stages) + 1:3}  FAILED   {type(failure).__name__}: {failure}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
