"""``kata-gpu uninstall``: afterwards the node is what it was, to the byte."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import asking, node
from kata_gpu.cli import uninstall
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.host import files, locks
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.model.ledger import Ledger
from kata_gpu.publish.kubelet.device_metadata import FOLDER
from kata_gpu.settings import blueprint
from kata_gpu.settings.agent import Kubernetes
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.kernel.systemd import Systemd
from tests.passthrough import CDI, SETTINGS, TEXT, everything, journal_of, put
from tests.test_cli import complaint, run

CONFIG: Final = "/opt/kata/share/defaults/kata-containers/configuration.toml"
DROP_IN: Final = "/etc/containerd/conf.d/kata-gpu.toml"
WANTED: Final[Blueprint] = blueprint.parse(
    f"""{TEXT}
[[kata.handler]]
name = "kata-go"
runtime = "go"
config = "{CONFIG}"

[[runtime.handler]]
name = "kata-gpu"
base = "kata-go"
"""
)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.gpu_with_audio(tmp_path)
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    kernel.on_run = Systemd(kernel).run
    root = kernel.host.root
    for folder in ("var/lib", "var/run", "run", "etc/containerd"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    main = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
    (root / "etc/containerd/config.toml").write_text(main)
    config = kernel.host.path(CONFIG)
    config.parent.mkdir(parents=True)
    config.write_text("[hypervisor.qemu]\n")
    return kernel


def tree(root: Path) -> dict[str, str]:
    """Return all that is below *root*, but for folders in which the kernel shows VFIO's groups."""
    shown = {str(root / "sys/class/vfio"), str(root / "sys/devices/virtual/vfio")}
    return {path: content for path, content in everything(root).items() if path not in shown}


def converge(kernel: FakeKernel) -> None:
    turn = node.converge(kernel.host, SETTINGS, WANTED, journal_of(kernel.host))
    assert not turn.report.failures
    assert {CDI, DROP_IN, f"{Path(CONFIG).parent}/config.d/60-kata-gpu.toml"} == set(
        journal_of(kernel.host).ledger.files
    )


def finish(kernel: FakeKernel) -> int:
    with locks.exclusive(kernel.host.path(SETTINGS.lock)):
        return uninstall.carry_out(kernel.host, SETTINGS)


def test_afterwards_the_node_is_what_it_was_to_the_byte(kernel: FakeKernel) -> None:
    before = tree(kernel.host.root)
    converge(kernel)
    assert tree(kernel.host.root) != before
    assert finish(kernel) == ExitCode.OK
    assert tree(kernel.host.root) == before


def test_it_can_be_done_twice(kernel: FakeKernel) -> None:
    before = tree(kernel.host.root)
    converge(kernel)
    assert [finish(kernel), finish(kernel)] == [ExitCode.OK, ExitCode.OK]
    assert tree(kernel.host.root) == before


def test_what_a_killed_agent_left_goes_too(kernel: FakeKernel) -> None:
    before = tree(kernel.host.root)
    converge(kernel)
    left = [
        kernel.host.path(folder) / f"{files.TEMPORARY}0123456789abcdef"
        for folder in (
            *("/var/run/cdi", "/var/lib/kata-gpu", "/etc/containerd"),
            CONFIG.rpartition("/")[0],
        )
    ]
    for path in left:
        path.write_text("half")
    socket = kernel.host.path(SETTINGS.socket)
    socket.parent.mkdir()
    socket.touch()
    (socket.parent / "pod-resources-0123abcd.sock").touch()
    asking.settle(kernel.host, replace(SETTINGS, kubernetes=Kubernetes()))
    assert kernel.host.path(SETTINGS.pod_resources_link).is_symlink()
    assert finish(kernel) == ExitCode.OK
    assert tree(kernel.host.root) == before


def test_what_agents_left_in_kubelets_folders_goes_and_others_files_stay(
    kernel: FakeKernel,
) -> None:
    root, kubelet = kernel.host.root, "/var/lib/kubelet"
    foreign = [
        put(root, f"{kubelet}/device-plugins/{name}")
        for name in ("kubelet.sock", "kubelet_internal_checkpoint", "nvidia-gpu.sock")
    ]
    foreign += [put(root, f"{kubelet}/plugins_registry/gpu.nvidia.com-1-reg.sock")]
    foreign += [put(root, f"{kubelet}/plugins/gpu.nvidia.com/checkpoint.json")]
    before = tree(root)
    converge(kernel)
    for name in ("checkpoint.json", "serialize.lock", "agent-0123.lock", "dra-0123.sock"):
        put(root, f"{kubelet}/plugins/{GPU_DRIVER}/{name}")
    put(root, f"{kubelet}/plugins/{FABRIC_DRIVER}/agent-0123.lock")
    put(root, f"{kubelet}/plugins/{GPU_DRIVER}/{FOLDER}/0123-uid/gpu/metadata.json")
    put(root, f"{kubelet}/plugins/{FABRIC_DRIVER}/{FOLDER}/0123-uid/nvs/metadata.json")
    put(root, f"/var/run/cdi/{GPU_DRIVER}_metadata_0123-uid_gpu.json")
    put(root, f"{kubelet}/plugins_registry/{GPU_DRIVER}-0123-reg.sock")
    put(root, f"{kubelet}/device-plugins/kata-gpu-nvidia.com_pgpu-0123abcd.sock")
    done = run("uninstall", "--dry-run", "--root", root)
    assert f"then remove {kubelet}/plugins/{GPU_DRIVER}/checkpoint.json\n" in done.stdout
    assert f"then remove {kubelet}/plugins/{GPU_DRIVER}, if it is empty\n" in done.stdout
    assert f"then remove {kubelet}/plugins/{GPU_DRIVER}/{FOLDER}\n" in done.stdout
    assert f"then remove /var/run/cdi/{GPU_DRIVER}_metadata_0123-uid_gpu.json\n" in done.stdout
    assert finish(kernel) == ExitCode.OK
    assert tree(root) == before
    assert all(path.exists() for path in foreign)


def test_a_folder_that_somebody_else_uses_stays(kernel: FakeKernel) -> None:
    converge(kernel)
    foreign = kernel.host.path("/var/run/cdi/vendor.json")
    foreign.write_text("{}")
    assert finish(kernel) == ExitCode.OK
    assert foreign.read_text() == "{}"
    assert not kernel.host.path("/var/lib/kata-gpu").exists()


def test_a_folder_that_was_there_before_stays(kernel: FakeKernel) -> None:
    kernel.host.path("/etc/containerd/conf.d").mkdir()
    before = tree(kernel.host.root)
    converge(kernel)
    finish(kernel)
    assert tree(kernel.host.root) == before


def test_while_a_unit_is_held_nothing_is_changed(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    converge(kernel)
    with kernel.vm_holds(nodes.GPU, command="qemu-kvm"):
        before = {p: c for p, c in tree(kernel.host.root).items() if "agent.lock" not in p}
        assert finish(kernel) == ExitCode.REFUSED
        after = {p: c for p, c in tree(kernel.host.root).items() if "agent.lock" not in p}
    assert after == before
    shown = capsys.readouterr().out
    assert "qemu-kvm" in shown
    assert "nothing was changed" in shown


@pytest.mark.parametrize("at", range(12))
def test_one_that_is_killed_is_finished_by_the_next(kernel: FakeKernel, at: int) -> None:
    before = tree(kernel.host.root)
    converge(kernel)

    class Killed(BaseException):
        pass

    count = 0

    def maybe_kill(path: str, _value: str) -> None:
        nonlocal count
        count += 1
        if count > at:
            raise Killed(path)

    kernel.on_write = maybe_kill
    try:
        finish(kernel)
    except Killed:
        pass
    finally:
        kernel.on_write = None
    assert finish(kernel) == ExitCode.OK
    assert tree(kernel.host.root) == before


def test_after_a_release_of_all_the_made_folders_are_gone_and_forgotten(
    kernel: FakeKernel,
) -> None:
    converge(kernel)
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    assert not executor.execute(kernel.host, plan, journal).failures
    assert journal_of(kernel.host).ledger == Ledger()
    assert not kernel.host.path("/etc/containerd/conf.d").exists()


# The command line


def test_dry_run_shows_all_that_would_go_and_changes_nothing(kernel: FakeKernel) -> None:
    converge(kernel)
    before = tree(kernel.host.root)
    done = run("uninstall", "--dry-run", "--root", kernel.host.root)
    assert done.returncode == 0, done.stderr
    for line in (
        f"release unit {nodes.GPU}",
        f"remove {CDI}",
        f"remove {DROP_IN}",
        "then remove /var/lib/kata-gpu/ledger.json",
        "then remove /etc/containerd/conf.d, if it is empty",
        "then remove /var/lib/kata-gpu, if it is empty",
    ):
        assert line in done.stdout
    folders = re.findall(r"then remove (\S+), if it is empty", done.stdout)
    assert folders == sorted(folders, reverse=True), "as they go: the deepest first"
    assert tree(kernel.host.root) == before


def test_without_consent_nothing_is_changed(kernel: FakeKernel) -> None:
    converge(kernel)
    before = tree(kernel.host.root)
    done = run("uninstall", "--root", kernel.host.root)
    assert "cannot ask for consent" in complaint(done)
    assert tree(kernel.host.root) == before


def test_where_nothing_of_ours_is_there_is_nothing_to_do(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    before = everything(tmp_path)
    done = run("uninstall", "--root", kernel.host.root)
    assert (done.returncode, done.stdout) == (0, "nothing of kata-gpu is on this node\n")
    assert everything(tmp_path) == before


def test_while_an_agent_runs_it_is_refused(kernel: FakeKernel) -> None:
    converge(kernel)
    with locks.exclusive(kernel.host.path(SETTINGS.lock)):
        before = tree(kernel.host.root)
        done = run("uninstall", "--yes", "--root", kernel.host.root)
        assert "a running agent does" in complaint(done)
        assert tree(kernel.host.root) == before


def test_without_the_ledger_nothing_is_guessed(kernel: FakeKernel) -> None:
    converge(kernel)
    kernel.host.path(SETTINGS.ledger).unlink()
    done = run("uninstall", "--yes", "--root", kernel.host.root)
    assert "cannot find the ledger" in complaint(done)
    assert kernel.host.path(CDI).exists()
