"""Kata is installed, upgraded and removed under a running agent; at the end nothing is left."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.in_guest import Daemon, at, command, driver, pool, running_daemon, wait_for, write_files
from tests.lab.inside import Machine
from tests.passthrough import everything

_SHIM: Final = "qemu-nvidia-gpu"
_HANDLER: Final = f"kata-{_SHIM}"
_TIMEOUT_S: Final = 60.0
_PARAMETERS: Final = "cgroup_no_v1=all"


class Tree:
    """A Kata installation as kata-deploy leaves it: the real base file behind a link."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._defaults = prefix / "share/defaults/kata-containers"
        self.config = self._defaults / f"configuration-{_SHIM}.toml"
        self._folder = self._defaults / "runtimes" / _SHIM
        self._files = {name: prefix / name for name in ("qemu", "vmlinux", "guest.img", "OVMF.fd")}

    @property
    def drop_in(self) -> Path:
        """Ours, beside the real file."""
        return self._folder / "config.d/60-kata-gpu.toml"

    def install(self, version: str, root_ports: int) -> None:
        """Copy everything afresh, as an upgrade does too; other people's drop-ins stay."""
        (self._folder / "config.d").mkdir(parents=True, exist_ok=True)
        for path in self._files.values():
            path.touch()
        (self.prefix / "VERSION").write_text(f"{version}\n")
        real = self._folder / self.config.name
        real.write_text(
            f'[hypervisor.qemu]\npath = "{self._files["qemu"]}"\n'
            f'kernel = "{self._files["vmlinux"]}"\nimage = "{self._files["guest.img"]}"\n'
            f'firmware = "{self._files["OVMF.fd"]}"\nmachine_type = "q35"\n'
            f'kernel_params = "{_PARAMETERS}"\npcie_root_port = {root_ports}\n\n'
            '[agent.kata]\n\n[runtime]\nvfio_mode = "guest-kernel"\n'
        )
        self.config.unlink(missing_ok=True)
        self.config.symlink_to(real)

    def uninstall(self) -> None:
        """Empty the prefix, whatever lies there."""
        shutil.rmtree(self.prefix)


@pytest.mark.lab("single", timeout_s=420)
def test_kata_comes_is_upgraded_and_goes_under_a_running_agent(
    machine: Machine, tmp_path: Path
) -> None:
    gpu, tree = machine.address("gpu"), Tree(tmp_path / "opt/kata")
    (tmp_path / "opt").mkdir()
    home = driver(gpu)
    handler = f'[[kata.handler]]\nname = "{_HANDLER}"\nruntime = "go"\nconfig = "{tree.config}"\n'
    agent = tmp_path / "agent"
    write_files(agent, pool(at(gpu)) + handler + 'kernel_params = ["pci=realloc"]\n')
    with running_daemon(agent) as daemon:
        _until(daemon, lambda _: driver(gpu) == "vfio-pci")
        _until(daemon, lambda status: "does not exist" in _told(status))
        tree.install("4.0.0", root_ports=2)
        _until(daemon, lambda _: tree.drop_in.exists())
        assert f'kernel_params = "{_PARAMETERS} pci=realloc"' in tree.drop_in.read_text()
        assert "pcie_root_port = 2\n" in tree.drop_in.read_text()
        tree.install("4.1.0", root_ports=8)
        _until(daemon, lambda _: "pcie_root_port = 8\n" in tree.drop_in.read_text())
        tree.uninstall()
        _until(daemon, lambda status: "does not exist" in _told(status))
        assert not tree.prefix.exists()
        tree.install("4.1.0", root_ports=8)
        pristine = everything(tree.prefix)
        _until(daemon, lambda _: tree.drop_in.exists())
    subprocess.run(command("uninstall", agent, "--yes"), check=True)
    assert driver(gpu) == home
    assert everything(tree.prefix) == pristine
    assert sorted(path.name for path in agent.iterdir()) == ["agent.toml", "blueprint.toml"]


def _told(status: dict[str, Any]) -> str:
    """Return what is said of the handler."""
    subject = f"handler {_HANDLER}"
    return " ".join(f["reason"] for f in status["findings"] if f["subject"] == subject)


def _until(daemon: Daemon, holds: Callable[[dict[str, Any]], bool]) -> None:
    wait_for(lambda: holds(daemon.ask()), timeout_s=_TIMEOUT_S)
