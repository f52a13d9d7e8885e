"""The daemon hears within a second of what no uevent tells of, and is quiet afterwards."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.act import binding
from kata_gpu.errors import HostError
from kata_gpu.host.hint import Hint
from kata_gpu.host.watches import Watches
from kata_gpu.model.pci import Binding, PciAddress
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, SETTINGS, TEXT
from tests.running import PATIENCE_S, Agent, Events, run, state_of, write_blueprint

GPU: Final = PciAddress.parse(nodes.GPU)
VFIO: Final = Binding(driver="vfio-pci", override="vfio-pci")
OVERRIDE: Final = f"bus/pci/devices/{GPU}/driver_override"
NEXT: Final = TEXT.replace("2026.1", "2026.2")
HANDLER: Final = """
[[kata.handler]]
name = "kata-qemu"
runtime = "go"
config = "/opt/kata/configuration-qemu.toml"
"""
QUIET_S: Final = 0.5


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path)
    kernel.host.path(SETTINGS.blueprint).parent.mkdir(parents=True)
    write_blueprint(kernel, TEXT)
    return kernel


async def settled(agent: Agent) -> int:
    """Wait until the daemon takes no more turns; return their number."""
    number = -1
    async with asyncio.timeout(PATIENCE_S):
        async for status in agent.statuses(every_s=QUIET_S):
            if status["pass_number"] == number:
                break
            number = status["pass_number"]
    return number


@contextmanager
def within_a_second() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 1


Change = Callable[[Path], object]


def damage(path: Path) -> None:
    path.write_text("{}")


def swap(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("{}")
    other.rename(path)


@pytest.mark.parametrize("change", [damage, swap, Path.unlink])
def test_a_cdi_file_that_somebody_changed_is_repaired(
    kernel: FakeKernel, events: Events, watches: Watches, change: Change
) -> None:
    cdi = kernel.host.path(CDI)

    async def script(agent: Agent) -> None:
        await settled(agent)
        before = cdi.read_text()
        with within_a_second():
            change(cdi)
            await agent.until(lambda _: cdi.exists() and cdi.read_text() == before)

    run(kernel, events, script, SETTINGS, watches=watches)


def test_a_cdi_directory_that_somebody_removed_is_made_anew(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    cdi = kernel.host.path(CDI)

    async def script(agent: Agent) -> None:
        await settled(agent)
        with within_a_second():
            cdi.unlink()
            cdi.parent.rmdir()
            await agent.until(lambda _: cdi.exists())

    run(kernel, events, script, SETTINGS, watches=watches)


def test_an_override_that_somebody_cleared_is_put_back(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    async def script(agent: Agent) -> None:
        await settled(agent)
        with within_a_second():
            kernel.write(OVERRIDE, "\n")
            await agent.until(lambda _: binding.read(kernel, GPU) == VFIO)

    run(kernel, events, script, SETTINGS, watches=watches)


def test_a_node_that_somebody_opens_is_a_reason_to_look(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    async def script(agent: Agent) -> None:
        turns = await settled(agent)
        with within_a_second():
            os.close(os.open(kernel.host.path("/dev/vfio/1"), os.O_RDONLY))
            await agent.turn(turns + 1)

    run(kernel, events, script, SETTINGS, watches=watches)


def test_a_repair_is_followed_by_a_quiet_turn_and_then_by_none(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    async def script(agent: Agent) -> None:
        await settled(agent)
        node = kernel.host.path("/dev/vfio/1")
        node.unlink()
        node.touch()  # the fake's is a device of this machine, which others may open
        turns = await settled(agent)
        kernel.write(OVERRIDE, "\n")
        assert turns < await settled(agent) <= turns + 2

    run(kernel, events, script, SETTINGS, watches=watches)


def test_a_file_that_cannot_be_written_is_not_tried_for_ever(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    cdi = kernel.host.path(CDI)

    async def script(agent: Agent) -> None:
        await settled(agent)
        cdi.unlink()
        cdi.mkdir()
        (cdi / "in-the-way").touch()
        await settled(agent)
        assert (await agent.status())["last_report"]["outcomes"][0]["result"] == "failed"

    run(kernel, events, script, watches=watches)


def test_kata_that_is_installed_later_gets_its_drop_in(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    write_blueprint(kernel, TEXT + HANDLER)
    base = kernel.host.path("/opt/kata/configuration-qemu.toml")

    async def script(agent: Agent) -> None:
        await settled(agent)
        base.parent.mkdir(parents=True)
        base.write_text("[hypervisor.qemu]\n")
        await agent.until(lambda _: any((base.parent / "config.d").glob("*.toml")))

    run(kernel, events, script, watches=watches)


# The blueprint


def rename(kernel: FakeKernel, text: str) -> None:
    """Replace the blueprint as an editor does."""
    path = kernel.host.path(SETTINGS.blueprint)
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("replace", [write_blueprint, rename])
def test_a_blueprint_that_is_replaced_is_read(
    kernel: FakeKernel,
    events: Events,
    watches: Watches,
    replace: Callable[[FakeKernel, str], None],
) -> None:
    async def script(agent: Agent) -> None:
        with within_a_second():
            replace(kernel, NEXT)
            await agent.until(lambda status: status["blueprint"] == "2026.2")

    run(kernel, events, script, SETTINGS, watches=watches)


def is_at(version: str, status: dict[str, Any]) -> bool:
    return bool(status["blueprint"] == version)


def test_a_blueprint_from_a_config_map_is_read_at_each_swap_of_its_link(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    folder = kernel.host.path(SETTINGS.blueprint).parent

    def publish(version: str) -> None:
        (folder / f"..{version}").mkdir()
        (folder / f"..{version}/blueprint.toml").write_text(TEXT.replace("2026.1", version))
        (folder / "..data_tmp").symlink_to(f"..{version}")
        (folder / "..data_tmp").rename(folder / "..data")

    publish("first")
    (folder / "blueprint.toml").unlink()
    (folder / "blueprint.toml").symlink_to("..data/blueprint.toml")

    async def script(agent: Agent) -> None:
        for version in ("second", "third"):
            with within_a_second():
                publish(version)
                await agent.until(partial(is_at, version))

    run(kernel, events, script, SETTINGS, watches=watches)


def test_a_half_written_blueprint_is_complained_of_until_it_is_whole(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    async def script(agent: Agent) -> None:
        with kernel.host.path(SETTINGS.blueprint).open("w") as file:
            file.write(NEXT[: NEXT.index("resource")])
            file.flush()
            status = await agent.until(lambda status: "blueprint_error" in status)
            assert (status["blueprint"], state_of(status)) == ("2026.1", "available")
            file.write(NEXT[NEXT.index("resource") :])
        status = await agent.until(lambda status: status["blueprint"] == "2026.2")
        assert "blueprint_error" not in status

    run(kernel, events, script, watches=watches)


def test_a_blueprint_that_is_removed_leaves_the_old_one(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    async def script(agent: Agent) -> None:
        kernel.host.path(SETTINGS.blueprint).unlink()
        status = await agent.until(lambda status: "blueprint_error" in status)
        assert (status["blueprint"], state_of(status)) == ("2026.1", "available")
        write_blueprint(kernel, NEXT)
        await agent.until(lambda status: status["blueprint"] == "2026.2")

    run(kernel, events, script, watches=watches)


# What cannot be heard


class FullWatches:
    """Watches of a kernel that allows no more of them."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def fileno(self) -> int:
        return self._events.fileno()

    def drain(self) -> tuple[Hint, ...]:
        return self._events.drain()

    def watch(self, _paths: Iterable[Path]) -> bool:
        raise HostError("cannot watch /etc: No space left on device")


def test_what_cannot_be_watched_is_said_once_and_the_node_is_held(
    kernel: FakeKernel, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    full = Events()

    async def script(agent: Agent) -> None:
        for number in range(2, 5):
            agent.events.tell()
            await agent.turn(number)

    run(kernel, events, script, watches=FullWatches(full))
    full.close()
    assert [line for line in caplog.messages if "cannot watch" in line] == [
        "cannot watch /etc: No space left on device; until then the rescan finds what changes there"
    ]
    assert binding.read(kernel, GPU) == VFIO
