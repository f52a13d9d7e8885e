"""Foreign files that the blueprint names are moved away, and come back on release."""

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_gpu.act import executor
from kata_gpu.agent import node
from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.host import files
from kata_gpu.model.blueprint import Blueprint, KataHandler, Runtime
from kata_gpu.model.inventory import DROP_IN_NAME, quarantine_name, quarantined_path
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
DROP_INS: Final = "/opt/kata/config.d"
BROKEN: Final = f"{DROP_INS}/90-oldvendor.toml"
BROKEN_KEPT: Final = f"{SETTINGS.quarantine}/%2Fopt%2Fkata%2Fconfig.d%2F90-oldvendor.toml"
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


def drop_ins(*patterns: str, params: tuple[str, ...] = ()) -> Blueprint:
    """Return a blueprint with a handler, and these patterns in quarantine."""
    config = "/opt/kata/configuration-go.toml"
    handler = KataHandler(name="kata", runtime=Runtime.GO, config=config, kernel_params=params)
    kept = patterns or ("*-oldvendor*",)
    return replace(EVERY_GPU, handlers=(handler,), kata_quarantine=kept)


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


# Kata's drop-ins


@pytest.fixture
def deployed(kernel: FakeKernel) -> FakeKernel:
    """Return a node with Kata's Go runtime, and what an owner who is gone left beside it."""
    kernel.tree.text("opt/kata/configuration-go.toml", "[hypervisor.qemu]\n")
    kernel.tree.text(BROKEN.removeprefix("/"), "[hypervisor.qemu]\nno_such_key = 1\n")
    return kernel


def test_a_drop_in_that_stops_every_pod_is_moved_and_ours_is_written(deployed: FakeKernel) -> None:
    text = deployed.host.path(BROKEN).read_text()
    deployed.tree.text(f"{DROP_INS}/90-mine.toml".removeprefix("/"), "[runtime]\n")
    turn = converged(deployed, drop_ins())
    assert turn.plan.steps == ()
    assert turn.plan.refusals == ()
    names = [path.name for path in deployed.host.path(DROP_INS).iterdir()]
    assert sorted(names) == [DROP_IN_NAME, "90-mine.toml"]
    assert deployed.host.path(BROKEN_KEPT).read_text() == text


def test_without_the_blueprints_word_a_drop_in_stays(deployed: FakeKernel) -> None:
    turn = converged(deployed, replace(drop_ins(), kata_quarantine=()))
    assert files.names(deployed.host.path(DROP_INS)) == ["90-oldvendor.toml"]
    assert len(turn.plan.refusals) == 1


def test_ours_is_made_of_what_is_left(deployed: FakeKernel) -> None:
    """A parameter of the file that goes is not taken over."""
    early = f"{DROP_INS}/15-oldvendor.toml"
    deployed.tree.text(early[1:], '[hypervisor.qemu]\nkernel_params = "old=1"\n')
    converged(deployed, drop_ins(params=("new=1",)))
    ours = tomllib.loads(deployed.host.path(f"{DROP_INS}/{DROP_IN_NAME}").read_text())
    assert ours["hypervisor"]["qemu"]["kernel_params"] == "new=1"


def test_a_release_brings_a_drop_in_back(deployed: FakeKernel) -> None:
    left = deployed.host.path(BROKEN)
    text, before = left.read_text(), left.stat()
    converged(deployed, drop_ins())
    assert release(deployed).failures == ()
    after = left.stat()
    assert left.read_text() == text
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert files.names(deployed.host.path(DROP_INS)) == ["90-oldvendor.toml"]
    assert list(deployed.host.path(SETTINGS.quarantine).iterdir()) == []


def test_a_drop_in_that_comes_back_is_told_and_stays_on_release(deployed: FakeKernel) -> None:
    converged(deployed, drop_ins())
    deployed.host.path(BROKEN).write_text("[runtime]\n")
    turn = converged(deployed, drop_ins())
    told = [f.subject for f in turn.plan.findings if "somebody has written it again" in f.reason]
    assert told == [BROKEN]
    assert release(deployed).failures == ()
    assert deployed.host.path(BROKEN).read_text() == "[runtime]\n"
    assert deployed.host.path(BROKEN_KEPT).exists()


def test_a_move_of_a_drop_in_that_was_cut_short_is_finished(deployed: FakeKernel) -> None:
    converged(deployed, drop_ins())
    kept, left = deployed.host.path(BROKEN_KEPT), deployed.host.path(BROKEN)
    left.write_text(kept.read_text())
    os.utime(left, ns=(kept.stat().st_atime_ns, kept.stat().st_mtime_ns))
    turn = converged(deployed, drop_ins())
    assert MoveFile in {type(step) for step, _ in turn.taken}
    assert not left.exists()
    assert kept.exists()


def test_only_regular_files_are_moved_and_never_ours_or_a_base(deployed: FakeKernel) -> None:
    folder = deployed.host.path(DROP_INS)
    (folder / "91-oldvendor.toml").symlink_to(BROKEN)
    (folder / "92-oldvendor.toml").mkdir()
    base = "95-oldvendor-base.toml"
    deployed.tree.text(f"{DROP_INS}/{base}"[1:], "[hypervisor.qemu]\n")
    wanted = drop_ins("*oldvendor*", "*kata-gpu*")
    other = KataHandler(name="kata-too", runtime=Runtime.GO, config=f"{DROP_INS}/{base}")
    wanted = replace(wanted, handlers=(*wanted.handlers, other))
    for _ in range(2):
        turn = converged(deployed, wanted)
        moved = {step.path for step, _ in turn.taken if isinstance(step, MoveFile)}
        assert moved <= {BROKEN}
    left = {"91-oldvendor.toml", "92-oldvendor.toml", base}
    assert left <= set(files.names(folder))
    assert files.names(deployed.host.path(SETTINGS.quarantine)) == [BROKEN_KEPT.rpartition("/")[2]]


@pytest.mark.parametrize("number", ["10", "20", "22", "25", "30", "50"])
@pytest.mark.parametrize(("exact", "is_moved"), [(False, False), (True, True)])
def test_a_name_of_kata_deploys_must_be_meant_exactly(
    deployed: FakeKernel, number: str, *, exact: bool, is_moved: bool
) -> None:
    path = f"{DROP_INS}/{number}-oldvendor.toml"
    deployed.tree.text(path[1:], "[runtime]\n")
    converged(deployed, drop_ins(path.rpartition("/")[2] if exact else "*-oldvendor*"))
    assert deployed.host.path(path).exists() is not is_moved


@pytest.mark.parametrize("name", ["90-oldvendor\x1b.toml", f"90-oldvendor{'x' * 225}.toml"])
def test_what_cannot_be_kept_by_its_name_is_told(deployed: FakeKernel, name: str) -> None:
    deployed.tree.text(f"{DROP_INS}/{name}"[1:], "[runtime]\n")
    turn = converged(deployed, drop_ins())
    told = [f for f in turn.plan.findings if "not moved away" in f.reason]
    assert len(told) == 1
    assert told[0].subject.isprintable()
    assert deployed.host.path(f"{DROP_INS}/{name}").exists()


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "*.toml", "[0-9]*-*.toml", "90-*", "90-*.toml", "a/b", "a\\u001b", DROP_IN_NAME],
)
def test_a_pattern_that_means_anybodys_drop_ins_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidBlueprint, match=r"kata\.quarantine"):
        parsing.parse(TEXT + f'[kata]\nquarantine = ["{pattern}"]\n')


@pytest.mark.parametrize("pattern", ["99.toml", "*-oldvendor*", "30-debug.toml"])
def test_a_pattern_that_means_somebodys_drop_ins_is_taken(pattern: str) -> None:
    wanted = parsing.parse(TEXT + f'[kata]\nquarantine = ["{pattern}"]\n')
    assert wanted.kata_quarantine == (pattern,)


@given(st.lists(st.text(min_size=1).filter(lambda part: "/" not in part), min_size=1))
def test_a_kept_name_says_where_the_file_goes_back_to(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    name = quarantine_name(path)
    assert "/" not in name
    assert quarantined_path(name) == path


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


def test_a_copy_is_made_where_nobody_reads(tmp_path: Path) -> None:
    """Kata reads whatever is in config.d, so nothing half-written may be there."""
    folder = other_file_system(tmp_path) / f"kata-gpu-test-{os.getpid()}"
    folder.mkdir()
    source, target = folder / "a", tmp_path / "config.d" / "a"
    source.write_text("text")
    try:
        with pytest.raises(HostError, match="No such file"):
            files.move(source, target, staging=tmp_path / "absent")
        assert source.read_text() == "text"
        assert list(target.parent.iterdir()) == []
        files.move(source, target, staging=tmp_path)
        assert target.read_text() == "text"
        assert list(tmp_path.iterdir()) == [target.parent]
    finally:
        source.unlink(missing_ok=True)
        folder.rmdir()


def test_a_drop_ins_copy_is_staged_beside_the_folder(deployed: FakeKernel) -> None:
    converged(deployed, drop_ins())
    journal = journal_of(deployed.host)
    plan = node.make_release(deployed.host, SETTINGS, journal.ledger, None)
    (back,) = (step for step in plan.steps if isinstance(step, MoveFile))
    assert (back.target, back.staging) == (BROKEN, "/opt/kata")


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
