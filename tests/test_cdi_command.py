"""``kata-gpu cdi validate`` and ``list``, as a shell runs them."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from kata_gpu.agent import node
from tests.kernel import nodes
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, everything, journal_of
from tests.test_cli import Done, loaded, run, written

NEWER: Final = """\
cdiVersion: 0.7.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    env: [A=b]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node whose GPU is published, with the node that leads to it."""
    kernel = nodes.single_gpu(tmp_path)
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    (tmp_path / "dev/vfio").mkdir(parents=True, exist_ok=True)
    (tmp_path / "dev/vfio/1").unlink(missing_ok=True)
    (tmp_path / "dev/vfio/1").symlink_to("/dev/null")
    (tmp_path / "etc/cdi").mkdir(parents=True)
    return written(kernel)


def cdi(root: Path, *argv: object) -> Done:
    return run("cdi", *argv, "--root", root)


def told(done: Done) -> Any:
    return json.loads(done.stdout)


def test_what_we_publish_is_valid_for_both_runtimes(root: Path) -> None:
    done = cdi(root, "validate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 file, all valid for the runtimes asked about\n"


def test_a_file_that_one_runtime_refuses_is_told_with_what_it_breaks(root: Path) -> None:
    (root / "etc/cdi/nvidia.yaml").write_text(NEWER)
    done = cdi(root, "validate")
    assert done.returncode == 3
    assert done.stdout.splitlines() == [
        "/etc/cdi/nvidia.yaml: cdiVersion: cdiVersion 0.7.0, and Kata's Go runtime knows none "
        "after 0.6.0 [newer-version]",
        "    Go runtime: stops every pod; runtime-rs: fine",
        "    to do: have it written in version 0.5.0 or 0.6.0, or move it away",
        "2 files, 1 with faults",
    ]


@pytest.mark.parametrize(("runtime", "status"), [("go", 3), ("rust", 0)])
def test_one_runtime_can_be_asked_about(runtime: str, status: int, root: Path) -> None:
    (root / "etc/cdi/nvidia.yaml").write_text(NEWER)
    assert cdi(root, "validate", "--runtime", runtime).returncode == status


def test_one_file_can_be_asked_about_wherever_it_is(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(NEWER)
    done = run("cdi", "validate", path, "-o", "json")
    assert done.returncode == 3
    found = told(done)
    assert found["files"] == [str(path)]
    assert found["faults"][0].keys() == {
        *("file", "where", "rule", "reason", "go", "rust", "remedy"),
    }
    assert (found["faults"][0]["go"], found["faults"][0]["rust"]) == ("every-pod", None)


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    done = run("cdi", "validate", tmp_path / "none.json")
    assert done.returncode == 3
    assert "has gone [no-file]" in done.stdout


def test_the_wide_form_has_a_line_for_each_fault(root: Path) -> None:
    (root / "etc/cdi/nvidia.yaml").write_text(NEWER)
    header, row = cdi(root, "validate", "-o", "wide").stdout.splitlines()
    assert header.split()[:5] == ["FILE", "WHERE", "RULE", "GO", "RUST"]
    assert row.split()[:5] == [
        *("/etc/cdi/nvidia.yaml", "cdiVersion", "newer-version", "every-pod", "-"),
    ]


def test_the_list_tells_who_wins_for_each_runtime(root: Path) -> None:
    spec = (root / CDI.removeprefix("/")).read_text()
    (root / "etc/cdi/old.json").write_text(spec)
    done = cdi(root, "list")
    assert done.returncode == 0
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["DEVICE", "FILE", "OURS", "GO", "RUST", "NODES", "MISSING"]
    name = f"example.com/pgpu={nodes.GPU}"
    assert [row.split() for row in rows] == [
        [name, "/etc/cdi/old.json", "no", "no", "yes", "/dev/vfio/1", "-"],
        [name, CDI, "yes", "yes", "no", "/dev/vfio/1", "-"],
    ]


def test_the_list_names_what_stops_every_pod(root: Path) -> None:
    (root / "etc/cdi/nvidia.yaml").write_text(NEWER)
    (root / "dev/vfio/1").unlink()
    done = cdi(root, "list", "-o", "json")
    assert done.returncode == 3
    found = told(done)
    assert found == yaml.safe_load(cdi(root, "list", "-o", "yaml").stdout)
    assert [device["missing"] for device in found["devices"]] == [["/dev/vfio/1"], []]
    assert [fault["file"] for fault in found["stopped_by"]] == ["/etc/cdi/nvidia.yaml"]
    assert "Kata's Go runtime resolve none: /etc/cdi/nvidia.yaml" in cdi(root, "list").stdout


def test_a_node_without_files_is_in_order(tmp_path: Path) -> None:
    assert (cdi(tmp_path, "list").returncode, cdi(tmp_path, "validate").returncode) == (0, 0)
    assert cdi(tmp_path, "list").stdout == "no devices\n"


def test_names_cannot_steer_a_terminal(root: Path) -> None:
    (root / "etc/cdi/\x1b[2J.json").write_text('{"\x1b[31m": 1, "kind": "\\u001b[2J"}')
    for verb, form in (("validate", "table"), ("validate", "wide"), ("list", "table")):
        assert "\x1b" not in cdi(root, verb, "-o", form).stdout


def test_looking_changes_nothing(root: Path) -> None:
    before = everything(root)
    cdi(root, "validate")
    cdi(root, "list")
    assert everything(root) == before


def test_wrong_usage_has_its_status() -> None:
    for argv in ((), ("mend",), ("validate", "--runtime", "java")):
        done = run("cdi", *argv)
        assert done.returncode == 64
        assert "cannot understand this: " in done.stderr


def test_help_teaches_by_example() -> None:
    assert "kata-gpu cdi validate ./nvidia.yaml" in run("cdi", "--help").stdout
    assert "Exits 0 when all is fine" in " ".join(run("cdi", "validate", "--help").stdout.split())


def test_the_verbs_load_only_what_they_need(root: Path) -> None:
    found = loaded("cdi", "validate", "--root", root)
    assert "kata_gpu" in found
    assert not found & {"grpc", "pyudev", "pydantic", "asyncio", "tomli_w", "yaml", "http"}
