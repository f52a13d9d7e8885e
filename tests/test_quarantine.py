"""Foreign CDI files that the blueprint names are moved away, and come back on release."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.host import files
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.plan import MoveFile, Severity
from kata_gpu.model.report import Report
from kata_gpu.settings import blueprint as parsing
from tests import memory
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, TEXT, journal_of

LEFT: Final = "/etc/cdi/nvidia.com-gpu.yaml"
RIVAL: Final = "/var/run/cdi/nvidia.com-pgpu.yaml"
KEPT: Final = f"{SETTINGS.quarantine}/%2Fetc%2Fcdi%2Fnvidia.com-gpu.yaml"
WANTED: Final = parsing.parse(TEXT + '[cdi]\nquarantine = ["nvidia.com-*.yaml"]\n')


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nodes.single_gpu(tmp_path)


def write(kernel: FakeKernel, path: str, **changes: Any) -> str:
    edits = {"env": ["A=b"]}
    devices = [{"name": "84", "containerEdits": edits}]
    spec = {"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu", "devices": devices, **changes}
    kernel.tree.text(path.removeprefix("/"), json.dumps(spec))
    return kernel.host.path(path).read_text()


def converged(kernel: FakeKernel, wanted: Blueprint = WANTED) -> node.Turn:
    return node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))


def release(kernel: FakeKernel) -> Report:
    journal = journal_of(kernel.host)
    plan = node.make_release(kernel.host, SETTINGS, journal.ledger, None)
    return executor.execute(kernel.host, plan, journal)


def test_what_the_blueprint_names_is_moved_away_and_everything_else_is_left(
    kernel: FakeKernel,
) -> None:
    text = write(kernel, LEFT)
    other = write(kernel, "/etc/cdi/amd.com-gpu.yaml")
    turn = converged(kernel)
    assert turn.plan.steps == ()
    assert not kernel.host.path(LEFT).exists()
    assert kernel.host.path(KEPT).read_text() == text
    assert kernel.host.path("/etc/cdi/amd.com-gpu.yaml").read_text() == other
    assert kernel.host.path(CDI).exists()


def test_nothing_is_moved_that_the_blueprint_does_not_name(kernel: FakeKernel) -> None:
    text = write(kernel, LEFT)
    converged(kernel, EVERY_GPU)
    assert kernel.host.path(LEFT).read_text() == text


def test_a_second_writer_that_is_moved_away_makes_room_for_ours(kernel: FakeKernel) -> None:
    write(kernel, RIVAL, kind="example.com/pgpu", cdiVersion="0.5.0")
    turn = converged(kernel)
    assert turn.plan.findings == ()
    assert not kernel.host.path(RIVAL).exists()
    assert kernel.host.path(CDI).exists()


def test_a_release_of_everything_brings_it_back(kernel: FakeKernel) -> None:
    text = write(kernel, LEFT)
    before = kernel.host.path(LEFT).stat()
    converged(kernel)
    assert release(kernel).failures == ()
    after = kernel.host.path(LEFT).stat()
    assert kernel.host.path(LEFT).read_text() == text
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert list(kernel.host.path(SETTINGS.quarantine).iterdir()) == []


def test_a_file_that_comes_back_is_told_and_not_fought(kernel: FakeKernel) -> None:
    write(kernel, LEFT)
    converged(kernel)
    again = write(kernel, LEFT, kind="nvidia.com/other")
    turn = converged(kernel)
    assert turn.taken == ()
    told = [f for f in turn.plan.findings if "somebody has written it again" in f.reason]
    assert [(f.subject, f.severity) for f in told] == [(LEFT, Severity.WARNING)]
    assert release(kernel).failures == ()
    assert kernel.host.path(LEFT).read_text() == again
    assert kernel.host.path(KEPT).exists()


def test_a_move_that_was_cut_short_is_finished(kernel: FakeKernel) -> None:
    """Both are there, and are the same: a kill between the copy and the removal."""
    text = write(kernel, LEFT)
    converged(kernel)
    kept, left = kernel.host.path(KEPT), kernel.host.path(LEFT)
    left.write_text(text)
    found = kept.stat()
    os.utime(left, ns=(found.st_atime_ns, found.st_mtime_ns))
    turn = converged(kernel)
    assert [type(step) for step, _ in turn.taken] == [MoveFile]
    assert not left.exists()
    assert kept.read_text() == text


def test_a_link_and_a_file_below_are_left(kernel: FakeKernel) -> None:
    write(kernel, "/opt/nvidia.yaml", cdiVersion="0.5.0")
    write(kernel, "/etc/cdi/below/nvidia.com-x.yaml", cdiVersion="0.5.0")
    kernel.host.path(LEFT).symlink_to("/opt/nvidia.yaml")
    turn = converged(kernel)
    assert kernel.host.path(LEFT).is_symlink()
    assert kernel.host.path("/etc/cdi/below/nvidia.com-x.yaml").exists()
    (failure,) = turn.report.failures
    assert failure.detail is not None
    assert "it is no regular file" in failure.detail


def test_our_own_files_are_nobody_elses(kernel: FakeKernel) -> None:
    wanted = replace(WANTED, cdi_quarantine=("kata-gpu-*",))
    converged(kernel, wanted)
    assert converged(kernel, wanted).taken == ()
    assert kernel.host.path(CDI).exists()


@pytest.mark.parametrize("pattern", ["", "*", "*.*", "a/b", "??", "a\\u001b"])
def test_a_pattern_that_means_anybody_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidBlueprint, match=r"cdi\.quarantine"):
        parsing.parse(TEXT + f'[cdi]\nquarantine = ["{pattern}"]\n')


# Moving


def other_file_system(tmp_path: Path) -> Path:
    """Return a folder on another file system than *tmp_path*."""
    for place in (memory.folder(), "/var/tmp", "/tmp"):  # noqa: S108 - to find two
        if place is not None and Path(place).stat().st_dev != tmp_path.stat().st_dev:
            return Path(place)
    pytest.skip("there is only one file system")


def test_a_file_moves_to_another_file_system_with_mode_and_age(tmp_path: Path) -> None:
    folder = other_file_system(tmp_path) / f"kata-gpu-test-{os.getpid()}"
    source, target = tmp_path / "a", folder / "b"
    source.write_text("text")
    source.chmod(0o640)
    before = source.stat()
    try:
        files.move(source, target)
        after = target.stat()
        assert not source.exists()
        assert target.read_text() == "text"
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
        assert list(folder.iterdir()) == [target]
    finally:
        target.unlink(missing_ok=True)
        folder.rmdir()


def test_a_move_takes_nothing_elses_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("other")
    with pytest.raises(HostError, match="something else is there"):
        files.move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_text() == "a"
    assert (tmp_path / "b").read_text() == "other"


def test_what_is_not_there_cannot_be_moved(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        files.move(tmp_path / "a", tmp_path / "b")
