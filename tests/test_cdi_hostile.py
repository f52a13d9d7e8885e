"""CDI files that are made to do harm: each is a clear fault, and costs little."""

import itertools
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.discover.cdi import parse, read
from kata_gpu.errors import HostError
from kata_gpu.host import Host, files
from kata_gpu.model.cdi import CdiBroken, CdiFault, CdiFile, CdiUnjudged, Scope
from kata_gpu.plan import cdi

GOOD: Final = (
    '{"cdiVersion": "0.5.0", "kind": "a.b/c",'
    ' "devices": [{"name": "x", "containerEdits": {"env": ["A=b"]}}]}'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "etc/cdi"
    found.mkdir(parents=True)
    return found


def faults(folder: Path) -> tuple[CdiFault, ...]:
    return cdi.judge(read(Host.at(folder.parents[1]), "/var/run/cdi"))


def only(folder: Path) -> CdiFault:
    (fault,) = faults(folder)
    return fault


def test_a_file_of_ten_megabytes_is_not_read(folder: Path) -> None:
    (folder / "a.json").write_bytes(b" " * (10 << 20))
    assert only(folder).rule == "unjudged"
    assert "longer than 1048576 bytes" in only(folder).reason


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.json", b"\0" * 100, "syntax"),
        ("a.yaml", b"\0" * 100, "syntax"),
        ("a.json", b"\xff\xfe{\0}\0", "syntax"),
        ("a.json", b"[" * 200_000, "unjudged"),
        ("a.json", b"[" * 99 + b"]" * 99, "unjudged"),
        ("a.yaml", b"[" * 99 + b"]" * 99, "unjudged"),
        ("a.yaml", b"a: &a [x]\nb: *a\n", "unjudged"),
        ("a.yaml", b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "unjudged"),
        ("a.yaml", b"a: &a [*a]\n", "unjudged"),
        ("a.yaml", b"!!python/object/apply:os.system [id]", "form"),
        ("a.yaml", b"kind: !!python/name:os.system x", "syntax"),
        ("a.yaml", b"? [a]\n: b\n", "syntax"),
        ("a.json", b'{"cdiVersion": ' + b"9" * 5000 + b"}", "syntax"),
    ],
    ids=range(13),
)
def test_a_hostile_text_is_a_clear_fault(
    name: str, content: bytes, rule: str, folder: Path
) -> None:
    (folder / name).write_bytes(content)
    started_s = time.process_time()
    found = faults(folder)
    assert time.process_time() - started_s < 5
    assert rule in {fault.rule for fault in found}
    assert all(fault.reason.isprintable() and len(fault.reason) < 500 for fault in found)


def test_many_aliases_of_many_aliases_cost_no_memory() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(parse("a.yaml", "\n".join(lines).encode()), CdiUnjudged)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_nest_of_yaml_is_refused_by_its_depth() -> None:
    assert isinstance(parse("a.yaml", b"[" * 500_000), CdiBroken | CdiUnjudged)


def test_what_is_no_file_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "a.json")
    (folder / "b.json").symlink_to("/nowhere")
    (folder / "c.json").symlink_to("c.json")
    (folder / "d.json").symlink_to("/etc/cdi")
    found = {fault.file: fault for fault in faults(folder)}
    assert {fault.rule for fault in found.values()} == {"no-file", "unjudged"}
    assert found["/etc/cdi/a.json"].reason == "it is no file"
    assert found["/etc/cdi/b.json"].reason == "it is a link to nothing, or has gone"
    assert "too many levels" in found["/etc/cdi/c.json"].reason
    assert (found["/etc/cdi/d.json"].go, found["/etc/cdi/d.json"].rust) == (Scope.EVERY_POD, None)


def test_folders_that_lead_in_a_circle_are_left_after_some_levels(folder: Path) -> None:
    (folder / "again").symlink_to(".")
    (folder / "a.json").write_text(GOOD)
    specs = read(Host.at(folder.parents[1]), "/var/run/cdi")
    assert len(specs.files) == 9
    assert any("more than 8 deep" in problem for problem in specs.problems)


def test_circles_beside_each_other_are_left_after_some_steps(folder: Path) -> None:
    for number in range(10):
        (folder / f"again-{number}").symlink_to(".")
    specs = read(Host.at(folder.parents[1]), "/var/run/cdi")
    *others, last = specs.problems
    assert last.endswith("more than 2048 entries, or links that lead in a circle")
    assert len(others) == 16


def test_no_more_files_are_read_than_anybody_has(folder: Path) -> None:
    for number in range(1030):
        (folder / f"{number}.tmp").touch()
    specs = read(Host.at(folder.parents[1]), "/var/run/cdi")
    assert len(specs.leftovers) == 1024
    assert "more than 1024 files" in specs.problems[0]


def test_a_file_that_is_swapped_all_the_time_is_one_or_the_other(folder: Path) -> None:
    """A FIFO, a link and a file take turns: nothing hangs, and nothing is mixed up."""
    is_over = threading.Event()

    def swap() -> None:
        for number in itertools.count():
            if is_over.is_set():
                return
            new = folder / "new"
            match number % 3:
                case 0:
                    new.write_text(GOOD)
                case 1:
                    os.mkfifo(new)
                case _:
                    new.symlink_to("/nowhere")
            new.rename(folder / "a.json")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(200):
            assert {f.rule for f in faults(folder)} <= {"no-file", "unjudged"}
    finally:
        is_over.set()
        thread.join()


def test_a_file_that_grows_while_it_is_read_is_found_out(tmp_path: Path) -> None:
    """A writer appends without end; what is read is refused, and never longer than the bound."""
    path = tmp_path / "a.json"
    path.write_text("x")
    script = f"while True:\n open({str(path)!r}, 'a').write('x' * 4096)"
    writer = subprocess.Popen([sys.executable, "-c", script])
    try:
        while path.stat().st_size < 1 << 16:
            time.sleep(0.01)
        with pytest.raises(HostError, match=r"longer than 1048576 bytes|wrote to it meanwhile"):
            _read_a_thousand_times(path)
    finally:
        writer.kill()
        writer.wait()


def _read_a_thousand_times(path: Path) -> None:
    for _ in range(1000):
        files.read_plain(path, max_bytes=1 << 20)


def test_a_link_and_a_fifo_are_no_plain_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(HostError, match="no regular file"):
        files.read_plain(tmp_path / "fifo", max_bytes=1)
    with pytest.raises(HostError, match="symbolic links"):
        files.read_plain(tmp_path / "link", max_bytes=1)


keys = st.sampled_from(
    [
        *("cdiVersion", "kind", "devices", "name", "containerEdits", "deviceNodes", "path", "env"),
        *("hostPath", "hooks", "mounts", "intelRdt", "annotations", "type", "KIND", "?"),
    ]
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["0.5.0", "9", "a.b/c", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=30,
)


@given(trees, st.sampled_from(["a.json", "a.yaml"]))
@settings(max_examples=300, deadline=None)
def test_any_document_has_a_verdict(tree: object, name: str) -> None:
    file = CdiFile(path=name, directory="/", content=parse(name, json.dumps(tree).encode()))
    for fault in cdi.judge_file(file, {}):
        assert str(fault).isprintable()
        assert fault.scopes
    if not isinstance(tree, dict) or not {"cdiVersion", "kind"} <= tree.keys():
        assert cdi.judge_file(file, {})


@given(st.binary(max_size=200), st.sampled_from(["a.json", "a.yaml"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_have_a_verdict(content: bytes, name: str) -> None:
    file = CdiFile(path=name, directory="/", content=parse(name, content))
    assert cdi.judge_file(file, {})


def test_faults_of_one_kind_are_counted_after_some(folder: Path) -> None:
    devices = [
        {"name": f"{n}", "containerEdits": {"deviceNodes": [{"path": "/dev/vfio/404"}]}}
        for n in range(500)
    ]
    spec = {"cdiVersion": "0.5.0", "kind": "a.b/c", "devices": [*devices, {"name": "x"}]}
    (folder / "a.json").write_text(json.dumps(spec))
    found = faults(folder)
    missing = [fault for fault in found if fault.rule == "node-missing"]
    assert len(missing) == 20
    assert missing[-1].reason.endswith("(and 480 more of the kind)")
    assert {fault.rule for fault in found} == {"node-missing", "missing-field"}
