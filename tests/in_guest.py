"""An agent in the lab's guest: by hand, or as the daemon it is; and what the kernel shows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_gpu.act import executor
from kata_gpu.act.journal import Journal
from kata_gpu.agent import node
from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.model.plan import Plan, Step
from kata_gpu.model.report import Report
from kata_gpu.model.unit import UnitState
from kata_gpu.observe import client
from kata_gpu.settings import blueprint
from kata_gpu.settings.agent import Settings

DEVICES: Final = Path("/sys/bus/pci/devices")


class Agent:
    """One node's agent by hand, with its files in a folder of the test's own."""

    def __init__(self, folder: Path, pools: str) -> None:
        self.host = Host.at()
        self.settings = Settings(
            state_directory=str(folder / "state"),
            cdi_directory=str(folder / "cdi"),
            socket=str(folder / "socket"),
        )
        self.blueprint = blueprint.parse(f'schema = 1\nversion = "lab"\n{pools}')
        self.journal = Journal(Path(self.settings.ledger))

    def converge(self) -> node.Turn:
        return node.converge(self.host, self.settings, self.blueprint, self.journal)

    def states(self) -> dict[str, UnitState]:
        turn = self.converge()
        described = node.describe(
            turn,
            self.settings,
            self.blueprint,
            self.journal.ledger,
            number=1,
            last_report=turn.report,
        )
        return {unit.id: unit.state for unit in described.units}

    def take(self, *steps: Step) -> Report:
        plan = Plan(blueprint="by hand", steps=steps)
        return executor.execute(self.host, plan, self.journal)

    def release(self) -> Report:
        plan = node.make_release(self.host, self.settings, self.journal.ledger, None)
        return executor.execute(self.host, plan, self.journal)

    def offered(self) -> dict[str, list[str]]:
        found = {}
        for spec in Path(self.settings.cdi_directory).glob("*.json"):
            for device in json.loads(spec.read_text())["devices"]:
                nodes = device["containerEdits"]["deviceNodes"]
                found[device["name"]] = [entry["hostPath"] for entry in nodes]
        return found


def pool(*selectors: str) -> str:
    """Return a pool that passes through what it selects."""
    return (
        '[[pool]]\nname = "gpus"\nmode = "passthrough"\nresource = "example.com/gpu"\n'
        f"select = [{', '.join(selectors)}]\n"
    )


def host_pool(*selectors: str) -> str:
    """Return a pool that leaves to the host what it selects, or gives it back."""
    return f'[[pool]]\nname = "host"\nmode = "host"\nselect = [{", ".join(selectors)}]\n'


def at(address: str) -> str:
    """Return a selector."""
    return f'{{ address = "{address}" }}'


def driver(address: str) -> str | None:
    """Return who has a function, by the kernel's word."""
    link = DEVICES / address / "driver"
    return link.readlink().name if link.is_symlink() else None


def override(address: str) -> str:
    """Return the only driver that may take a function; ``(null)`` for any."""
    return (DEVICES / address / "driver_override").read_text().strip()


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon as a process of its own, with its files in one folder."""

    folder: Path
    process: "subprocess.Popen[bytes]"

    def ask(self) -> Any:
        """Return its status; HostError until it serves."""
        return client.get(self.folder / "socket", "/v1/status")

    def unit(self, address: str) -> Any:
        """Return the status of one unit."""
        return next(unit for unit in self.ask()["units"] if unit["id"] == address)

    def end(self) -> float:
        """Let SIGTERM end it, and return how long that took."""
        started = time.monotonic()
        self.process.terminate()
        assert self.process.wait(30) == 0
        return time.monotonic() - started


def write_files(folder: Path, pools: str, **settings: float) -> None:
    """Write the blueprint and the settings of a daemon whose files lie in *folder*."""
    folder.mkdir(exist_ok=True)
    (folder / "blueprint.toml").write_text(f'schema = 1\nversion = "lab"\n{pools}')
    (folder / "agent.toml").write_text(
        f'blueprint = "{folder}/blueprint.toml"\nstate_directory = "{folder}/state"\n'
        f'socket = "{folder}/socket"\ncdi_directory = "{folder}/cdi"\n'
        + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )


def command(verb: str, folder: Path, *words: str) -> tuple[str, ...]:
    """Return the arguments that start ``kata-gpu`` with the files in *folder*."""
    settings = ("--settings", f"{folder}/agent.toml")
    return (sys.executable, "-m", "kata_gpu", verb, *settings, *words)


@contextmanager
def running_daemon(folder: Path) -> Iterator[Daemon]:
    """Run the daemon; end it, if nobody did."""
    argv = command("run", folder)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        daemon = Daemon(folder, process)
        try:
            yield daemon
        finally:
            if process.poll() is None:
                daemon.end()


def wait_for(condition: Callable[[], bool], *, timeout_s: float) -> float:
    """Return how long it took; AssertionError when it never came."""
    started = time.monotonic()
    while time.monotonic() < started + timeout_s:
        with suppress(HostError, KeyError, IndexError, StopIteration):
            if condition():
                return time.monotonic() - started
        time.sleep(0.05)
    raise AssertionError(f"it did not come within {timeout_s} s")
