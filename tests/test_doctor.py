"""``kata-gpu doctor``, as a shell runs it, and on a real kernel."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from kata_gpu.plan.doctor import CHECKS
from tests.fit_node import dress
from tests.kernel import nodes
from tests.lab.inside import Machine
from tests.passthrough import SETTINGS, TEXT, everything, journal_of
from tests.test_cli import Done, run, written

README: Final = Path(__file__).parents[1] / "README.md"
OURS: Final = frozenset({"state-directory", "cdi-directory"})
"""These hold for folders of root's, which a test's own are not when its user is another."""

REST: Final = ",".join(CHECKS.keys() - OURS)


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    """A node that has all it needs; its folders belong to whoever runs the tests."""
    return dress(nodes.single_gpu(tmp_path))


def checks(done: Done) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for check in json.loads(done.stdout)["checks"]:
        found.setdefault(check["id"], []).append(check)
    return found


def grades(done: Done) -> dict[str, set[str]]:
    return {name: {check["grade"] for check in rows} for name, rows in checks(done).items()}


def test_a_fit_node_has_no_error_and_exits_with_0(fit: Path) -> None:
    done = run("doctor", "-o", "json", "--only", REST, "--root", fit)
    assert (done.returncode, done.stderr) == (0, "")
    assert grades(done).keys() == CHECKS.keys() - OURS
    assert {grade for found in grades(done).values() for grade in found} <= {"ok", "info"}
    assert json.loads(done.stdout)["count"]["error"] == 0


def test_an_unfit_node_exits_with_3_and_says_what_to_do(tmp_path: Path) -> None:
    root = dress(nodes.no_iommu(tmp_path))
    done = run("doctor", "--root", root, "--only", "iommu,noiommu-mode,hugepages")
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert lines[0] == "error    iommu         no IOMMU is in use (0 groups)"
    assert lines[1].strip().startswith("because without one a device could read and write")
    assert lines[2].strip().startswith("to do: enable VT-d, AMD-Vi or SMMU in the firmware")
    assert lines[3].startswith("info     hugepages     none reserved")
    assert lines[4] == "ok       noiommu-mode  vfio is not loaded, or built without it"
    assert lines[5:] == ["1 error, 0 warnings, 1 info, 1 ok"]


def test_warnings_do_not_change_the_exit_status(fit: Path) -> None:
    (fit / "proc/cmdline").write_text("nomodule\n")
    done = run("doctor", "--root", fit, "--only", "kernel-command-line")
    assert done.returncode == 0
    assert done.stdout.endswith("\n0 errors, 1 warning, 0 info, 0 ok\n")


def test_the_worst_comes_first(tmp_path: Path) -> None:
    root = dress(nodes.no_iommu(tmp_path))
    (root / "proc/cmdline").write_text("nomodule\n")
    done = run(
        "doctor", "--root", root, "--only", "noiommu-mode,hugepages,kernel-command-line,iommu"
    )
    first = [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "]
    assert first[:4] == ["error", "warning", "info", "ok"]


def test_the_wide_form_has_a_line_for_each_check(fit: Path) -> None:
    done = run("doctor", "-o", "wide", "--only", REST, "--root", fit)
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["GRADE", "CHECK", "FOUND", "WHY", "WHAT", "TO", "DO"]
    assert sorted(line.split()[1] for line in lines) == sorted(CHECKS.keys() - OURS)


def test_programs_get_the_same_in_both_forms(fit: Path) -> None:
    asked = ("doctor", "--root", fit, "--only", "iommu,sysfs")
    found = json.loads(run(*asked, "-o", "json").stdout)
    assert found == yaml.safe_load(run(*asked, "-o", "yaml").stdout)
    assert [check["id"] for check in found["checks"]] == ["iommu", "sysfs"]
    assert found["checks"][0].keys() == {"id", "grade", "found", "why", "remedy"}
    assert found["count"] == {"error": 0, "warning": 0, "info": 0, "ok": 2}


def test_an_unknown_check_is_wrong_usage(fit: Path) -> None:
    done = run("doctor", "--only", "iommu,\x1bwarts", "--root", fit)
    assert done.returncode == 64
    assert done.stdout == ""
    assert done.stderr.startswith("kata-gpu: cannot check ?warts: there is no such check (there")


def test_looking_changes_nothing(fit: Path) -> None:
    before = everything(fit)
    run("doctor", "--root", fit)
    assert everything(fit) == before


def test_a_folder_that_is_no_host_is_unknown_and_not_fit(tmp_path: Path) -> None:
    done = run("doctor", "-o", "json", "--root", tmp_path)
    assert done.returncode == 3
    found = grades(done)
    assert found["iommu"] == {"error"}
    for name in ("kernel-command-line", "kernel-taint", "root-user", "sysfs", "memory-lock"):
        assert found[name] == {"warning"}, name


# The agent's own parts


def test_a_blueprint_and_a_ledger_are_read_where_there_are_any(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    root = written(kernel)
    journal = journal_of(kernel.host)
    journal.update(lambda ledger: ledger.with_file("/etc/x"))
    found = checks(run("doctor", "-o", "json", "--root", root))
    assert found["agent-blueprint"][0]["found"] == "version 2026.1, pools: gpus"
    assert found["agent-ledger"][0]["found"] == "units: 0, files: 1"
    assert "no agent runs" in found["agent-socket"][0]["found"]


@pytest.mark.parametrize(
    ("path", "content", "check", "grade"),
    [
        ("etc/kata-gpu/agent.toml", "cdi = 1\n", "agent-settings", "error"),
        (SETTINGS.blueprint[1:], TEXT + "x = 1", "agent-blueprint", "error"),
        (SETTINGS.ledger[1:], "{}", "agent-ledger", "error"),
        (SETTINGS.socket[1:], "no socket", "agent-socket", "warning"),
    ],
)  # fmt: skip
def test_a_part_of_the_agent_that_is_broken_is_told(
    path: str, content: str, check: str, grade: str, fit: Path
) -> None:
    (fit / path).parent.mkdir(parents=True, exist_ok=True)
    (fit / path).write_text(content)
    (found,) = checks(run("doctor", "-o", "json", "--root", fit))[check]
    assert found["grade"] == grade
    assert found["found"].startswith("cannot ")


# Hostile nodes


def test_nothing_that_a_node_says_reaches_the_terminal_as_it_is(fit: Path) -> None:
    (fit / "etc/cdi").mkdir(parents=True)
    (fit / "etc/cdi/\x1b[2J.json").write_text("{")
    (fit / "etc/driverctl.d").mkdir()
    (fit / "etc/driverctl.d/\u202eevil").touch()
    (fit / "proc/cmdline").write_text(f"vfio-pci.ids=\x1b[31m{'9' * 3000}\n")
    for form in ("table", "wide", "json"):
        done = run("doctor", "-o", form, "--root", fit)
        assert "/etc/cdi/?[2J.json" in done.stdout
        assert "/etc/driverctl.d has ?evil" in done.stdout
        assert "9" * 500 not in done.stdout
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", done.stdout)


def test_names_that_are_no_text_can_be_printed(fit: Path) -> None:
    (fit / "etc/driverctl.d").mkdir(parents=True)
    (fit / "etc/driverctl.d/a\udcff").touch()
    done = run("doctor", "-o", "json", "--only", "other-managers", "--root", fit)
    assert checks(done)["other-managers"][0]["found"] == "/etc/driverctl.d has a?"


def test_every_check_is_in_the_readme() -> None:
    rows = README.read_text().partition("## Is this node fit?")[2].partition("\n## ")[0]
    documented = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (.*?) \|", rows, re.M)))
    assert sorted(documented) == sorted(CHECKS)


def test_help_tells_the_exit_statuses() -> None:
    told = " ".join(run("doctor", "--help").stdout.split())
    assert "Exits 0 when no check is an error, 3 when one is" in told


# On a real kernel


def here(tmp_path: Path) -> dict[str, set[str]]:
    (tmp_path / "agent.toml").write_text(
        f'state_directory = "{tmp_path}/state"\nsocket = "{tmp_path}/socket"\n'
    )
    argv = (sys.executable, "-m", "kata_gpu", "doctor", "-o", "json")
    done = subprocess.run(
        (*argv, "--settings", str(tmp_path / "agent.toml")),
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return grades(done)


@pytest.mark.lab
def test_a_node_with_all_it_needs_has_no_error(machine: Machine, tmp_path: Path) -> None:
    assert machine.topology.iommu
    found = here(tmp_path)
    assert [name for name, grade in found.items() if "error" in grade] == []
    for name in ("iommu", "interrupt-remapping", "vfio-modules", "sysfs", "process-visibility"):
        assert found[name] == {"ok"}, name


@pytest.mark.lab("no-iommu")
def test_a_node_without_an_iommu_is_not_fit(machine: Machine, tmp_path: Path) -> None:
    assert not machine.topology.iommu
    assert here(tmp_path)["iommu"] == {"error"}
