"""Whatever is wrong, it is told once with what to do, and nothing on the node is changed."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.agent import daemon, node
from kata_gpu.agent.hints import Sources
from kata_gpu.agent.node import Turn
from kata_gpu.errors import HeldError, InvalidBlueprint
from kata_gpu.host.hint import Hint
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.observe import server
from kata_gpu.settings import agent_file, blueprint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, TEXT, everything, journal_of


class NoHints:
    """A host that gives no hints: nobody gets as far as to listen to it."""

    def fileno(self) -> int:
        raise AssertionError("somebody listens for hints")

    def drain(self) -> tuple[Hint, ...]:
        raise AssertionError("somebody listens for hints")


def apply(kernel: FakeKernel, wanted: Blueprint = EVERY_GPU) -> Turn:
    return node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))


def refusal(kernel: FakeKernel, wanted: Blueprint = EVERY_GPU) -> Finding:
    """Return the one refusal of a blueprint that changes nothing."""
    before = everything(kernel.host.root)
    turn = apply(kernel, wanted)
    assert turn.report.outcomes == ()
    assert kernel.writes == []
    assert kernel.runs == []
    assert everything(kernel.host.root) == before
    (found,) = turn.plan.findings
    assert found.severity is Severity.REFUSED
    assert found.remedy
    return found


def failure(kernel: FakeKernel) -> str:
    """Return the one failure of a turn after which the node is as it was."""
    before = everything(kernel.root / "bus/pci/devices")
    turn = apply(kernel)
    (failed,) = turn.report.failures
    assert everything(kernel.root / "bus/pci/devices") == before
    assert journal_of(kernel.host).ledger == Ledger()
    assert not kernel.host.path(CDI).exists()
    return str(failed.detail)


def start(kernel: FakeKernel, text: str = TEXT) -> None:
    """Start the daemon with a blueprint of that text."""
    path = kernel.host.path(SETTINGS.blueprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    load = partial(blueprint.load, path)
    asyncio.run(
        daemon.run(
            kernel.host, SETTINGS, load, Sources(uevents=NoHints(), watches=None, configuration=())
        )
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TEXT + "[[pool", r"blueprint.toml: not TOML: Expected ']]' at the end of"),
        (
            TEXT + "model = 1\n",
            r"unknown key pool\[1\].select\[1\].model \(allowed here: address, class, device, ",
        ),
        (TEXT.replace('"03"', '"0x3"'), r"class is '0x3': expected 2 to 6 lower-case hex digits"),
    ],
    ids=["malformed", "unknown-key", "wrong-value"],
)
def test_a_blueprint_that_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    kernel = nodes.single_gpu(tmp_path)
    with pytest.raises(InvalidBlueprint, match=told) as caught:
        start(kernel, text)
    assert "\n" not in str(caught.value)
    assert kernel.writes == []
    assert not kernel.host.path(SETTINGS.ledger).exists()
    assert not kernel.host.path(CDI).exists()


def test_a_pool_that_selects_the_display_the_node_was_started_on(tmp_path: Path) -> None:
    found = refusal(nodes.boot_display(tmp_path))
    assert found.subject == "pool gpus"
    assert f"selects {nodes.GPU} " in found.reason
    assert "boot display" in found.reason
    assert "selectors" in found.remedy


STORAGE: Final = TEXT.replace('class = "03"', 'class = "0108"')


def test_a_pool_that_selects_a_storage_controller(tmp_path: Path) -> None:
    found = refusal(nodes.storage_in_group(tmp_path), blueprint.parse(STORAGE))
    assert found.subject == "pool gpus"
    assert f"selects {nodes.DISK} " in found.reason
    assert "storage controller" in found.reason


def test_a_gpu_that_shares_its_group_with_a_storage_controller(tmp_path: Path) -> None:
    found = refusal(nodes.storage_in_group(tmp_path))
    assert found.subject == nodes.GPU
    assert "storage controller" in found.reason
    assert nodes.DISK in found.reason


def test_a_node_without_an_iommu(tmp_path: Path) -> None:
    found = refusal(nodes.no_iommu(tmp_path))
    assert "IOMMU" in found.reason
    assert "iommu" in found.remedy


def test_a_kernel_without_vfio(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.add_driver("nvidia", ids=[(0x10DE, 0x2330)])
    kernel.add_device(nodes.GPU, vendor=0x10DE, device=0x2330, class_code=0x030200, driver="nvidia")
    before = everything(tmp_path)
    turn = apply(kernel)
    (failed,) = turn.report.failures
    assert failed.step == "load module vfio-pci"
    assert "Module vfio-pci not found" in str(failed.detail)
    assert kernel.writes == []
    assert everything(tmp_path) == before


def with_vfio(root: Path) -> FakeKernel:
    kernel = nodes.gpu_with_audio(root)
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    return kernel


def test_a_user_without_permission(tmp_path: Path) -> None:
    kernel = with_vfio(tmp_path)
    kernel.forbidden = True
    assert failure(kernel).endswith("driver_override: Permission denied")
    assert len(kernel.writes) == 1


def test_a_sysfs_that_is_mounted_read_only(tmp_path: Path) -> None:
    kernel = with_vfio(tmp_path)
    kernel.read_only = True
    assert failure(kernel).endswith("driver_override: Read-only file system")
    assert len(kernel.writes) == 1


@pytest.mark.parametrize("index", range(6))
def test_a_function_that_vanishes_half_way(tmp_path: Path, index: int) -> None:
    kernel = with_vfio(tmp_path)
    kernel.vanish_after_write(index, nodes.AUDIO)
    (failed, *_) = apply(kernel).report.failures
    assert f"cannot bind {nodes.AUDIO}: it vanished from the bus meanwhile" in str(failed.detail)
    assert kernel.link(f"bus/pci/devices/{nodes.GPU}/driver") == "nvidia"
    assert not kernel.host.path(CDI).exists()


def test_a_device_that_answers_nothing(tmp_path: Path) -> None:
    kernel = with_vfio(tmp_path)
    kernel.unreadable(nodes.GPU, "vendor")
    turn = apply(kernel)
    assert [problem.subject for problem in turn.inventory.problems] == [nodes.GPU]
    assert kernel.writes == []


def test_a_socket_path_that_is_too_long_for_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(f'socket = "/run/{"s" * 120}"\n')
    with pytest.raises(InvalidBlueprint, match=r"at most 107 bytes .* choose a shorter one"):
        agent_file.load(tmp_path / "agent.toml")


def test_a_socket_that_is_served_already(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    path = kernel.host.path(SETTINGS.socket)
    load = partial(blueprint.load, kernel.host.path(SETTINGS.blueprint))
    elsewhere = replace(SETTINGS, state_directory="/var/lib/another")
    kernel.host.path("/etc/kata-gpu").mkdir(parents=True)
    kernel.host.path(SETTINGS.blueprint).write_text(TEXT)

    async def main() -> None:
        async with server.serve(path, {}):
            with pytest.raises(
                HeldError, match="another process listens there; stop it, or choose"
            ):
                await daemon.run(
                    kernel.host,
                    elsewhere,
                    load,
                    Sources(uevents=NoHints(), watches=None, configuration=()),
                )
            assert path.is_socket()

    asyncio.run(main())
    assert kernel.writes == []
    assert not kernel.host.path(CDI).exists()
