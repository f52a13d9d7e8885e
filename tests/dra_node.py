"""A node for DRA tests: devices, an agent that takes turns, drivers, and kubelet."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError
from kata_gpu.host import locks
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER, Device, Door
from kata_gpu.publish.kubelet.checkpoint import Checkpoint
from kata_gpu.publish.kubelet.device_metadata import DeviceMetadata
from kata_gpu.publish.kubelet.dra import DraDriver, DriverSettings
from kata_gpu.publish.kubelet.news import News
from kata_gpu.publish.kubelet.prepared import ClaimName, Home
from kata_gpu.publish.kubelet.preparing import Agent, Patience, Preparer
from tests.kubelet.claims import NAMESPACE, POOL, ClaimStore
from tests.kubelet.dra_manager import DraManager

DEADLINE_S: Final = 30.0
PATIENCE: Final = Patience(call_s=20.0, settle_s=0.3)
BOOT: Final = "0f6d2e1c-1b8e-4f70-9d5b-0123456789ab"


def device(number: int, *, on_claim: bool = False, **more: Any) -> Device:
    """Return a GPU offered through DRA; one that is bound on claim is on its host driver."""
    unit = f"0000:{number:02x}:00.0"
    values: dict[str, Any] = {
        "id": unit,
        "name": f"0000-{number:02x}-00-0",
        "door": Door.DRA,
        "driver": GPU_DRIVER,
        "resource": "nvidia.com/pgpu",
        "units": (unit,),
        "is_healthy": True,
        "is_ready": not on_claim,
        "on_claim": on_claim,
        "reason": "on its host driver until a claim asks for it" if on_claim else "available",
        "attributes": {"confidential": False, "resetMethod": "flr"},
    }
    return Device(**{**values, **more})


def switch(number: int) -> Device:
    """Return an NVSwitch of the other driver."""
    return device(number, driver=FABRIC_DRIVER, resource="nvidia.com/nvswitch")


def without_metadata(home: Home) -> DeviceMetadata:
    """Return what writes no files for workloads."""
    return DeviceMetadata(home, home.directory / "cdi", is_wanted=False)


@dataclass
class Turns:
    """The agent, as it takes turns: what is claimed it has on VFIO, what is not it gives back."""

    devices: dict[str, Device]
    claimed: Callable[[], frozenset[str]] = frozenset
    broken: set[str] = field(default_factory=set)
    """Units that do not get to VFIO."""

    held: set[str] = field(default_factory=set)
    """Units that a VM still has."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Closed, a bring hangs."""

    brought: list[frozenset[str]] = field(default_factory=list)
    let_go: list[frozenset[str]] = field(default_factory=list)
    in_turn: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def bring(self, units: frozenset[str]) -> Mapping[str, Device]:
        assert units <= self.claimed(), "a turn brings only what the checkpoint names"
        self.brought.append(units)
        self.in_turn += 1
        try:
            await self.gate.wait()
        finally:
            self.in_turn -= 1
        self.turn()
        if bad := sorted(units & self.broken):
            raise HostError(f"cannot bind {bad[0]}: no such device")
        return self.devices

    async def give_back(self, units: frozenset[str]) -> None:
        self.let_go.append(units)
        self.turn()
        if held := sorted(units & self.held):
            raise HostError(f"cannot unbind {held[0]}: a VM has it")

    def turn(self) -> None:
        """Have on VFIO what is claimed, and nothing else of what is bound on claim."""
        claimed = self.claimed()
        for name, one in self.devices.items():
            units = set(one.units)
            is_ready = units <= claimed and not units & self.broken
            if one.on_claim:
                self.devices[name] = replace(one, is_ready=is_ready or bool(units & self.held))

    def change(self, name: str, **values: Any) -> None:
        self.devices[name] = replace(self.devices[name], **values)


@dataclass
class Node:
    """One node: what survives its agents and its kubelet."""

    root: Path
    turns: Turns
    claims: ClaimStore = field(default_factory=ClaimStore)

    def driver(
        self, agent: str = "a", *, patience: Patience = PATIENCE, boot: str = BOOT, **more: Any
    ) -> DraDriver:
        """Return a driver of a new agent, which takes the node's turns from now on."""
        settings = self.settings(agent, patience=patience, boot_id=boot, **more)
        driver = DraDriver(settings, self.agent)
        self.turns.claimed = driver.claimed_units
        return driver

    def settings(self, agent: str = "a", **more: Any) -> DriverSettings:
        """Return what the GPUs' driver of an agent is made with."""
        values = {
            "driver": GPU_DRIVER,
            "boot_id": BOOT,
            "patience": PATIENCE,
            "cdi_directory": self.root / "cdi",
            **more,
        }
        return DriverSettings(pool=POOL, agent=agent, kubelet=self.root, **values)

    @asynccontextmanager
    async def preparer(
        self,
        agent: str = "a",
        *,
        patience: Patience = PATIENCE,
        metadata: Callable[[Home], DeviceMetadata] | None = None,
    ) -> AsyncIterator[tuple[Preparer, Checkpoint]]:
        """Run what prepares claims, without a socket."""
        home = Home(driver=GPU_DRIVER, pool=POOL, agent=agent, directory=self.directory)
        checkpoint = Checkpoint(home.checkpoint, boot_id=BOOT)
        self.turns.claimed = lambda: frozenset(
            unit for claim in checkpoint.claims().values() for unit in claim.units
        )
        preparer = Preparer(
            home,
            checkpoint,
            self.agent,
            news=News(),
            patience=patience,
            metadata=without_metadata(home) if metadata is None else metadata(home),
        )
        with locks.exclusive(home.lock_of(agent)):
            try:
                yield preparer, checkpoint
            finally:
                await preparer.close()
                await checkpoint.close()

    @property
    def directory(self) -> Path:
        return self.root / "plugins" / GPU_DRIVER

    @property
    def agent(self) -> Agent:
        """What the rest of an agent does on this node."""
        return Agent(
            get_claim=self.claims.get,
            devices=lambda: self.turns.devices,
            bring=self.turns.bring,
            let_go=self.turns.give_back,
        )

    def named(self, claim: str) -> ClaimName:
        """Return a claim as kubelet names it."""
        uid = self.claims.objects[claim]["metadata"]["uid"]
        return ClaimName(namespace=NAMESPACE, name=claim, uid=uid)

    def kubelet(self, **more: Any) -> DraManager:
        """Return a new run of kubelet."""
        return DraManager(self.root, self.claims, **more)

    @asynccontextmanager
    async def running(
        self, *, patience: Patience = PATIENCE, **more: Any
    ) -> AsyncIterator[tuple[DraDriver, DraManager]]:
        """Run one agent and kubelet, registered with each other."""
        driver = self.driver(patience=patience, **more)
        async with driver.serve(), self.kubelet().run() as kubelet:
            await registered(kubelet)
            yield driver, kubelet


async def registered(kubelet: DraManager, plugins: int = 1) -> None:
    """Wait until kubelet knows so many plugins."""
    await until(lambda: len(kubelet.plugins) == plugins, f"{plugins} plugins registered")


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until *condition* holds."""
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.005)
