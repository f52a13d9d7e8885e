"""The daemon hears within a second of what changes in Kata's folders, and writes no more than that.

What stops pods is in the status as long as it does, and the files of others stay as they are.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.agent import node
from kata_gpu.host.files import TEMPORARY
from kata_gpu.host.watches import Watches
from kata_gpu.model.inventory import DROP_IN_NAME
from kata_gpu.settings import blueprint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import SETTINGS, TEXT, everything, journal_of
from tests.running import Agent, Events, run, write_blueprint
from tests.test_hints import settled, within_a_second
from tests.test_kata_effective import base_text
from tests.test_kata_installed import GO, RUST, link, put

BLUEPRINT: Final = f"""{TEXT}
[[kata.handler]]
name = "kata-go"
runtime = "go"
config = "/etc/kata.toml"

[[kata.handler]]
name = "kata-rust"
runtime = "rust"
config = "{RUST}"
kernel_params = ["a=b"]
"""


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path)
    put(tmp_path, GO, base_text("qemu-nvidia-gpu"))
    put(tmp_path, RUST, base_text("qemu-nvidia-gpu-runtime-rs"))
    link(tmp_path, "/etc/kata.toml", f"..{GO}")
    kernel.host.path(SETTINGS.blueprint).parent.mkdir(parents=True, exist_ok=True)
    write_blueprint(kernel, BLUEPRINT)
    return kernel


def beside(kernel: FakeKernel, base: str = GO) -> Path:
    return kernel.host.path(base).parent / "config.d"


def told(status: dict[str, Any], words: str) -> list[str]:
    """Return the severities of the findings on handlers that hold such words."""
    return [
        finding["severity"]
        for finding in status["findings"]
        if finding["subject"].startswith("handler ") and words in finding["reason"]
    ]


def test_a_foreign_drop_in_is_heard_told_and_left(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    other = beside(kernel) / "90-x.toml"

    async def script(agent: Agent) -> None:
        await settled(agent)
        with within_a_second():
            other.write_text("[hypervisor.qemu]\npcie_root_port = 2\n")
            await agent.until(lambda status: told(status, "90-x.toml sets") == ["warning"])
        with within_a_second():
            other.write_text("no TOML")
            await agent.until(lambda status: told(status, "90-x.toml: not TOML") == ["refused"])
        assert (beside(kernel) / DROP_IN_NAME).is_file()
        assert other.read_text() == "no TOML"
        with within_a_second():
            other.unlink()
            await agent.until(lambda status: not told(status, "90-x.toml"))

    run(kernel, events, script, SETTINGS, watches=watches)


def test_ours_goes_when_others_do_not_go_with_it_and_comes_back(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    other, ours = beside(kernel) / "90-x.toml", beside(kernel) / DROP_IN_NAME
    text = base_text("qemu-nvidia-gpu").replace('cold_plug_vfio = "root-port"\n', "")

    async def script(agent: Agent) -> None:
        kernel.host.path(GO).write_text(text)
        await settled(agent)
        before = ours.read_text()
        with within_a_second():
            other.write_text('[hypervisor.qemu]\nhot_plug_vfio = "root-port"\n')
            await agent.until(lambda status: not ours.exists() and told(status, "90-x.toml") != [])
        with within_a_second():
            other.unlink()
            await agent.until(lambda _: ours.exists() and ours.read_text() == before)

    run(kernel, events, script, SETTINGS, watches=watches)


def test_a_folder_that_an_upgrade_makes_anew_gets_ours_again(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    async def script(agent: Agent) -> None:
        await settled(agent)
        folder, base = beside(kernel, RUST).parent, kernel.host.path(RUST)
        before, text = (beside(kernel, RUST) / DROP_IN_NAME).read_text(), base.read_text()
        with within_a_second():
            shutil.rmtree(folder)
            folder.mkdir()
            base.write_text(text)
            ours = beside(kernel, RUST) / DROP_IN_NAME
            await agent.until(lambda _: ours.exists() and ours.read_text() == before)

    run(kernel, events, script, SETTINGS, watches=watches)


def test_a_changed_base_file_has_its_lists_appended_to_anew(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    async def script(agent: Agent) -> None:
        await settled(agent)
        base, ours = kernel.host.path(RUST), beside(kernel, RUST) / DROP_IN_NAME
        assert 'pci=assign-busses a=b"' in ours.read_text()
        with within_a_second():
            base.write_text(base.read_text().replace("pci=assign-busses", "quiet"))
            await agent.until(lambda _: 'pci=nocrs quiet a=b"' in ours.read_text())

    run(kernel, events, script, SETTINGS, watches=watches)


def test_what_a_killed_agent_left_beside_a_base_file_is_removed(
    kernel: FakeKernel, events: Events, watches: Watches
) -> None:
    node.converge(kernel.host, SETTINGS, blueprint.parse(BLUEPRINT), journal_of(kernel.host))
    left = beside(kernel).parent / f"{TEMPORARY}0123456789abcdef"
    left.write_text("[hyper")

    async def script(agent: Agent) -> None:
        await settled(agent)
        assert not left.exists()
        assert kernel.host.path(GO).exists()

    run(kernel, events, script, SETTINGS, watches=watches)


def test_nothing_is_written_while_nothing_differs(kernel: FakeKernel) -> None:
    put(kernel.host.root, f"{GO.rpartition('/')[0]}/config.d/90-x.toml", "[runtime]\nx = 1\n")
    put(kernel.host.root, f"{GO.rpartition('/')[0]}/config.d/.x.swp", "")
    wanted = blueprint.parse(BLUEPRINT)

    def turn() -> node.Turn:
        return node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))

    def times() -> dict[str, tuple[int, int]]:
        found = (Path(name) for name in everything(kernel.host.root / "opt"))
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in found}

    first = turn()
    assert first.report.failures == ()
    before, tree = times(), everything(kernel.host.root)
    assert sum(DROP_IN_NAME in path for path in before) == 2
    for _ in range(5):
        assert turn().taken == ()
    assert (times(), everything(kernel.host.root)) == (before, tree)


def test_a_fifo_in_a_folder_holds_no_turn(kernel: FakeKernel) -> None:
    beside(kernel).mkdir()
    os.mkfifo(beside(kernel) / "10-x.toml")
    wanted = blueprint.parse(BLUEPRINT)
    turn = node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))
    assert not (beside(kernel) / DROP_IN_NAME).exists()
    assert (beside(kernel, RUST) / DROP_IN_NAME).exists()
    assert [f.reason for f in turn.plan.refusals] == [
        f"the go runtime starts no pod with it: {GO.rpartition('/')[0]}/config.d/10-x.toml: it is "
        f"no regular file"
    ]
