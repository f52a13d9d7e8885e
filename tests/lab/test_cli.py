"""The lab's command line explains itself, and refuses what it cannot do."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab import setup
from tests.lab.errors import LabError
from tests.lab.machine import CHECKOUT
from tests.lab.topologies import TOPOLOGIES


def _lab(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        (str(CHECKOUT / "scripts/lab"), *arguments),
        env={**inherited, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_verb() -> None:
    result = _lab("--help")
    assert result.returncode == 0
    for verb in ("setup", "shell", "run", "topology", "clean"):
        assert f"scripts/lab {verb}" in result.stdout or f"\n    {verb}" in result.stdout


def test_topologies_are_listed_one_a_line() -> None:
    lines = _lab("topology").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(TOPOLOGIES)


def test_an_unknown_topology_is_wrong_usage() -> None:
    result = _lab("topology", "toaster")
    assert result.returncode == 2
    assert "invalid choice: 'toaster'" in result.stderr


def test_a_shell_needs_a_terminal() -> None:
    result = _lab("shell")
    assert result.returncode == 1
    assert "this is no terminal; use: scripts/lab run -- CMD" in result.stderr


def test_nothing_is_downloaded_without_an_agreement(tmp_path: Path) -> None:
    result = _lab("run", "--", "true", KATA_GPU_LAB_CACHE=str(tmp_path))
    assert result.returncode == 125
    assert "scripts/lab setup --yes" in result.stderr or "apt-get install" in result.stderr
    assert not (tmp_path / "kernels").exists()


def test_an_empty_cache_can_be_cleaned_and_so_can_a_full_one(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "kernels/one").mkdir(parents=True)
    for _ in range(2):
        assert _lab("clean", KATA_GPU_LAB_CACHE=str(cache)).returncode == 0
        assert not cache.exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04 LTS"\n', "Ubuntu 24.04 LTS"),
        ('ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian 11"\n', "Debian 11"),
        ("", "an unknown system"),
    ],
)
def test_another_distribution_is_told_what_is_needed(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "os-release").write_text(text)
    with pytest.raises(LabError, match=f"this is {name}.*qemu-system-x86"):
        setup.check_distribution(tmp_path / "os-release")


@pytest.mark.parametrize("text", ['ID=debian\nVERSION_ID="12"\n', "ID=debian\n"])
def test_debian_12_and_the_unreleased_one_are_known(tmp_path: Path, text: str) -> None:
    (tmp_path / "os-release").write_text(text)
    setup.check_distribution(tmp_path / "os-release")
