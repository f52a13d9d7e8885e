"""The command line, as a shell runs it: words in, text and exit status out."""

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Final

import pytest
import yaml

from kata_gpu import __version__
from kata_gpu.agent import node
from kata_gpu.cli.log_lines import OneLine
from tests.kernel import nodes
from tests.kernel.fake import RELEASE, FakeKernel
from tests.passthrough import EVERY_GPU, SETTINGS, TEXT, everything, journal_of

Done = subprocess.CompletedProcess[str]

VERBS: Final = (
    *("inventory", "doctor", "status", "explain", "cdi", "kata", "runtime"),
    *("metrics", "plan", "apply", "release", "clear", "run", "uninstall", "simulate"),
    "completion",
)
COMMAND: Final = (sys.executable, "-m", "kata_gpu")
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def run(*argv: object) -> Done:
    return subprocess.run(
        [*COMMAND, *map(str, argv)],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
        timeout=30,
    )


def complaint(done: Done, status: int = 1) -> str:
    """Return the one line that a failed command says."""
    assert done.returncode == status
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kata-gpu: cannot ")
    return done.stderr


def written(kernel: FakeKernel, text: str = TEXT) -> Path:
    """Give the node a blueprint, and return the node's root."""
    path = kernel.host.path(SETTINGS.blueprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return kernel.host.root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node with a GPU and its audio function on their host drivers; to be looked at only."""
    return written(nodes.gpu_with_audio(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node whose GPU is bound and published; to be looked at only."""
    kernel = nodes.single_gpu(tmp_path_factory.mktemp("bound"))
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    return written(kernel)


# Usage


def test_every_verb_has_help() -> None:
    summary = [line.split()[0] for line in run("--help").stdout.splitlines() if line.strip()]
    assert set(VERBS) <= set(summary)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_no_failure(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: kata-gpu {verb} ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "argv", [[], ["bind"], ["plan", "--no-such"], ["plan", "-o", "xml"], ["completion", "ksh"]]
)
def test_wrong_usage_has_a_status_of_its_own(argv: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == 64
    assert done.stderr.startswith("usage: kata-gpu")
    assert "cannot understand this: " in done.stderr
    assert done.stdout == ""


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"kata-gpu {__version__}\n"


def test_bash_accepts_the_completion_script() -> None:
    script = run("completion", "bash").stdout
    assert "inventory" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("zsh", "#compdef kata-gpu\n"),
        ("fish", "complete -c kata-gpu -f\n"),
        ("tcsh", "complete kata-gpu "),
    ],
)
def test_other_shells_get_a_completion_script(shell: str, line: str) -> None:
    assert line in run("completion", shell).stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("cdi", "validate", ""), {"a.json", "folder"}),
        (("simulate", "a.json", "--inventory", "a"), {"a.json"}),
        (("plan", "--blueprint", ""), {"a.json", "folder"}),
        (("runtime", "render", "--directory", ""), {"folder"}),
        (("plan", "-o", "w"), {"wide"}),
    ],
)
def test_bash_completes_files_and_folders(
    words: tuple[str, ...], completed: set[str], tmp_path: Path
) -> None:
    (tmp_path / "a.json").touch()
    (tmp_path / "folder").mkdir()
    script = (
        f'{run("completion", "bash").stdout}\nCOMP_WORDS=(kata-gpu "$@"); COMP_CWORD=$#\n'
        '_shtab_kata_gpu; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == completed


# Looking


def test_the_inventory_is_a_table(home: Path) -> None:
    lines = run("inventory", "--root", home).stdout.splitlines()
    assert lines[0].split() == [
        "ADDRESS", "DEVICE", "CLASS", "DRIVER", "GROUP", "NUMA", "PASSTHROUGH",
    ]  # fmt: skip
    gpu = next(line for line in lines if line.startswith(nodes.GPU))
    assert gpu.split() == [nodes.GPU, "[10de:1e04]", "0300", "nvidia", "1", "-", "yes"]


def test_the_wide_inventory_has_more_columns(home: Path) -> None:
    header, *rows = run("inventory", "-o", "wide", "--root", home).stdout.splitlines()
    columns = ["OVERRIDE", "ROOT", "BARS", "LINK", "RESET", "SR-IOV", "POWER", "VFIO"]
    assert header.split()[-8:] == columns
    assert "16M+256M+32M" in next(row for row in rows if row.startswith(nodes.GPU))


@pytest.mark.parametrize(
    ("loaded", "shown"), [(True, "nvgrace-gpu-vfio-pci"), (False, "nvgrace_gpu_vfio_pci")]
)
def test_the_wide_inventory_shows_the_driver_that_suits_or_its_module(
    loaded: bool, shown: str, tmp_path: Path
) -> None:
    kernel = nodes.grace(tmp_path, loaded=loaded)
    lines = run("inventory", "-o", "wide", "--root", kernel.host.root).stdout.splitlines()
    suited = {line.split()[0]: line.split()[-1] for line in lines}
    assert suited == {"ADDRESS": "VFIO", "0000:00:01.0": "-", nodes.GPU: shown}


@pytest.mark.parametrize(("form", "reads"), [("table", False), ("wide", True)])
def test_the_table_does_not_pay_for_what_it_does_not_show(
    form: str, reads: bool, tmp_path: Path
) -> None:
    kernel = nodes.grace(tmp_path)
    (tmp_path / f"lib/modules/{RELEASE}/modules.alias").write_bytes(b"\xff")
    shown = run("inventory", "-o", form, "--root", kernel.host.root).stdout
    assert ("problem: modules.alias: cannot read" in shown) is reads


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_the_inventory_is_for_programs_too(home: Path, form: str, load: Any) -> None:
    found = load(run("inventory", "-o", form, "--root", home).stdout)
    assert [f["address"] for f in found["functions"]][-2:] == [nodes.GPU, nodes.AUDIO]
    assert found["functions"][-1]["binding"] == {"driver": "snd_hda_intel", "override": None}
    assert found["problems"] == []


def test_an_empty_node_has_an_empty_inventory(tmp_path: Path) -> None:
    done = run("inventory", "--root", tmp_path)
    assert (done.returncode, done.stdout.count("ADDRESS")) == (0, 1)


def test_a_plan_says_every_step_and_exits_with_2(home: Path) -> None:
    done = run("plan", "--root", home)
    assert done.returncode == 2
    assert done.stdout.startswith("blueprint 2026.1: 3 steps\n  1  load module vfio-pci\n")
    assert f"{nodes.AUDIO}  snd_hda_intel → vfio-pci" in done.stdout
    assert done.stderr == ""


def test_a_plan_is_for_programs_too(home: Path) -> None:
    done = run("plan", "-o", "json", "--root", home)
    found = json.loads(done.stdout)
    assert done.returncode == 2
    assert [step["kind"] for step in found["steps"]] == ["LoadModule", "MoveGroup", "WriteFile"]
    assert [move["address"] for move in found["steps"][1]["moves"]] == [nodes.GPU, nodes.AUDIO]


def test_a_node_in_order_has_nothing_to_do_and_exits_with_0(bound: Path) -> None:
    done = run("plan", "--root", bound)
    assert (done.returncode, done.stdout) == (0, "blueprint 2026.1: nothing to do\n")


def test_a_refusal_is_told_and_exits_with_3(tmp_path: Path) -> None:
    done = run("plan", "--root", written(nodes.no_iommu(tmp_path)))
    assert done.returncode == 3
    assert f"\nrefused: {nodes.GPU}: " in done.stdout


def test_another_blueprint_can_be_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('schema = 1\nversion = "other"\n')
    done = run("plan", "--root", home, "--blueprint", tmp_path / "b.toml")
    assert (done.returncode, done.stdout) == (0, "blueprint other: nothing to do\n")


def test_looking_changes_nothing(home: Path) -> None:
    before = everything(home)
    for argv in (["inventory", "--all"], ["plan"], ["apply", "--dry-run"], ["status"]):
        run(*argv, "--root", home)
    assert everything(home) == before


def test_a_status_without_a_daemon_says_so(home: Path) -> None:
    assert "nobody serves" in complaint(run("status", "--root", home))


# Changing


def test_a_dry_run_prints_the_plan_and_exits_as_plan_does(home: Path) -> None:
    done = run("apply", "--dry-run", "--root", home)
    assert (done.returncode, done.stdout) == (2, run("plan", "--root", home).stdout)


def sysfs_of(root: Path) -> dict[str, str]:
    return everything(root / "sys")


def test_without_a_terminal_and_without_yes_nothing_is_applied(tmp_path: Path) -> None:
    root = written(nodes.single_gpu(tmp_path))
    before = sysfs_of(root)
    done = run("apply", "--root", root)
    assert "standard input is no terminal; say --yes" in complaint(done)
    assert "3 steps" in done.stdout
    assert sysfs_of(root) == before
    assert not (root / "var/run/cdi").exists()


@pytest.mark.parametrize("answer", ["n\n", "\n", "yesterday\n", "\x04"], ids=repr)
def test_on_a_terminal_anything_but_yes_changes_nothing(tmp_path: Path, answer: str) -> None:
    root = written(nodes.single_gpu(tmp_path))
    before = sysfs_of(root)
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = subprocess.run(
        [*COMMAND, "apply", "--root", str(root)],
        check=False,
        capture_output=True,
        text=True,
        stdin=theirs,
        env=ENVIRONMENT,
        timeout=30,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 1
    assert " ".join(done.stdout.split()[-7:]) == "take 3 steps? [y/N] nothing was changed"
    assert done.stderr == ""
    assert sysfs_of(root) == before


def test_a_node_in_order_needs_no_consent(bound: Path) -> None:
    done = run("apply", "--root", bound)
    assert (done.returncode, done.stdout) == (0, "blueprint 2026.1: nothing to do\n")


def test_a_failed_step_is_told_and_exits_with_1(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    kernel.run(("modprobe", "--", "vfio-pci"), timeout_s=3)
    done = run("apply", "--yes", "--root", written(kernel))  # plain files: no driver answers
    assert done.returncode == 1
    assert f"kata-gpu: 1 step failed, first: bind unit {nodes.GPU}" in done.stderr
    assert f"  failed  bind unit {nodes.GPU}" in done.stdout
    assert "skipped" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_release_of_a_stranger_names_those_that_are_ours(bound: Path) -> None:
    done = run("release", "0000:09:00.0", "--yes", "--root", bound)
    assert f"cannot release 0000:09:00.0: not ours (ours: {nodes.GPU})" in complaint(done)


def test_a_release_of_no_address_is_refused(bound: Path) -> None:
    done = run("release", "gpu0", "--yes", "--root", bound)
    assert "not a PCI address: 'gpu0'" in complaint(done)


@pytest.mark.parametrize("argv", [[], ["--all", nodes.GPU]])
def test_a_release_must_say_either_which_or_all(bound: Path, argv: list[str]) -> None:
    done = run("release", *argv, "--root", bound)
    assert done.returncode in {1, 64}
    assert "name units, or say --all" in done.stderr


def test_a_release_can_be_tried_dry(bound: Path) -> None:
    before = sysfs_of(bound)
    done = run("release", nodes.GPU, "--dry-run", "--root", bound)
    assert f"release unit {nodes.GPU} (IOMMU group 1)" in done.stdout
    assert f"{nodes.GPU}  vfio-pci → nvidia" in done.stdout
    assert sysfs_of(bound) == before


# Failures


def test_a_malformed_blueprint_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    root = written(nodes.bare(tmp_path), "schema = \n")
    for verb in (["plan"], ["apply", "--yes"], ["run"]):
        assert "not TOML" in complaint(run(*verb, "--root", root))


if not os.geteuid():  # only root can be somebody else

    def test_who_may_not_read_is_told_to_be_root(tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        done = subprocess.run(
            (
                *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
                *(*COMMAND, "plan", "--root", str(tmp_path / "node")),
            ),
            check=False,
            capture_output=True,
            text=True,
            env={**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1])},
            timeout=30,
        )
        assert complaint(done).endswith("Permission denied; run it as root\n")


def test_who_has_no_blueprint_is_told_what_to_do(tmp_path: Path) -> None:
    for verb in (["plan"], ["apply", "--yes"], ["explain", nodes.GPU]):
        said = complaint(run(*verb, "--root", tmp_path))
        assert "blueprint.toml: it does not exist; write it (configs/blueprint.toml is" in said


@pytest.mark.parametrize("verb", [["inventory"], ["doctor"], ["cdi", "list"], ["release", "--all"]])
def test_a_root_that_is_not_there_is_no_node_with_nothing(verb: list[str], tmp_path: Path) -> None:
    said = complaint(run(*verb, "--root", tmp_path / "none"))
    assert "there is no such folder; --root is where the host's file system is mounted" in said


def test_settings_that_were_named_must_be_there(tmp_path: Path) -> None:
    done = run("status", "--settings", tmp_path / "none.toml", "--root", tmp_path)
    assert "none.toml: it does not exist" in complaint(done)


def printed_to(stdout: IO[bytes], home: Path, form: str) -> tuple[int, bytes]:
    """Return status and complaint of an inventory whose reader is *stdout*."""
    done = subprocess.run(
        [*COMMAND, "inventory", "-o", form, "--root", str(home)],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_reader_that_has_seen_enough_is_no_trouble(home: Path, form: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as broken:  # noqa: PTH123 - a descriptor
        assert printed_to(broken, home, form) == (1, b"")


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_full_disk_for_what_is_printed_is_one_line(home: Path, form: str) -> None:
    said = b"kata-gpu: cannot write all that it has to say: No space left on device\n"
    with Path("/dev/full").open("wb") as full:
        assert printed_to(full, home, form) == (1, said)


# What a verb does not pay for


def loaded(*argv: object) -> set[str]:
    """Return the top-level packages that a verb imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *map(str, argv)],
        check=False,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_status_loads_only_what_it_needs(home: Path) -> None:
    found = loaded("status", "--root", home)
    assert "kata_gpu" in found
    assert not found & {"grpc", "kubernetes", "pyudev", "pydantic", "asyncio", "tomli_w", "yaml"}


def test_inventory_loads_only_what_it_needs(home: Path) -> None:
    found = loaded("inventory", "--root", home)
    assert "kata_gpu" in found
    assert not found & {"grpc", "kubernetes", "pyudev", "pydantic", "asyncio", "tomli_w", "yaml"}


def test_an_error_does_not_steer_the_terminal(tmp_path: Path) -> None:
    assert "/a?[2J?b.toml" in complaint(run("plan", "--settings", tmp_path / "a\x1b[2J\x9bb.toml"))


def test_what_is_logged_is_one_line_and_a_traceback_looks_like_none() -> None:
    def formatted(*words: object, **more: object) -> str:
        record = logging.makeLogRecord({"levelname": "INFO", "msg": "%s", "args": words, **more})
        return OneLine("%(levelname)s %(message)s").format(record)

    assert formatted("Grüße\nINFO \x1b[2J\udcff") == "INFO Grüße\\nINFO \\x1b[2J\\udcff"
    assert len(formatted("x" * 100_000)) < 10_000
    error = ValueError("a\nINFO bound\x1b")
    traced = formatted("failed", exc_info=(ValueError, error, None)).split("\n")
    assert traced == ["INFO failed", "| ValueError: a", "| INFO bound\\x1b"]


def test_a_daemon_logs_in_lines(tmp_path: Path) -> None:
    code = (
        "import logging; from kata_gpu import cli; cli._log_to_stderr('INFO')\n"
        "logging.info('a%sb', chr(10))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr.endswith(r"INFO a\nb" + "\n")


def test_no_folder_is_everybody_s_to_write_to(tmp_path: Path) -> None:
    kernel = nodes.single_gpu(tmp_path)
    code = "import os, sys; os.umask(0); from kata_gpu import cli; cli.main(sys.argv[1:])"
    argv = [sys.executable, "-c", code, "apply", "--yes", "--root", str(written(kernel))]
    subprocess.run(argv, capture_output=True, check=False)  # no kernel stands behind its files
    made = kernel.host.path(SETTINGS.lock).parent
    assert made.stat().st_mode & 0o777 == 0o755
