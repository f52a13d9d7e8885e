"""The image is built of what is in the repository and of locked wheels, and runs our command."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.cli import parser
from tests.api_server import ApiServer
from tests.objects import ROOT

_IMPORT_ALL: Final = """
import asyncio, importlib, pkgutil, sys
import kata_gpu
from kata_gpu.publish.kubernetes import client

for module in pkgutil.walk_packages(kata_gpu.__path__, "kata_gpu."):
    if module.name != "kata_gpu.__main__":
        importlib.import_module(module.name)

async def connect():
    async with client.connected(sys.argv[1], agent="tests"):
        pass

asyncio.run(connect())
assert "kubernetes.client" in sys.modules
found = set(sys.argv[2:]) & set(sys.modules)
assert not found, f"the image lacks {found}, which is imported"
"""
"""The arguments are a kubeconfig, and the modules that must not be needed."""

Instruction = tuple[str, str]


def instructions() -> tuple[Instruction, ...]:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Containerfile").read_text())
    lines = text.replace("\\\n", " ").splitlines()
    return tuple((line.split()[0], line.partition(" ")[2].strip()) for line in lines if line)


def of(name: str) -> tuple[str, ...]:
    return tuple(words for found, words in instructions() if found == name)


def commands() -> tuple[tuple[str, ...], ...]:
    joined = " && ".join(of("RUN"))
    return tuple(tuple(shlex.split(one)) for one in joined.split("&&"))


def options(command: tuple[str, ...]) -> set[str]:
    return {word for word in command if word.startswith("-")}


COPIED: Final = tuple(
    source
    for words in of("COPY")
    if not words.startswith("--from=")
    for source in words.split()[:-1]
)


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_is_there_and_is_not_kept_from_the_builder(source: str) -> None:
    passed = (ROOT / ".dockerignore").read_text().splitlines()
    assert (ROOT / source).exists()
    assert passed[0] == "*"
    assert f"!{source}" in passed


if (ROOT / ".git").exists():

    @pytest.mark.parametrize("source", COPIED)
    def test_what_is_copied_is_what_anybody_has_who_clones(source: str) -> None:
        argv = ["git", "ls-files", "--error-unmatch", "--", source]
        subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)


def test_both_stages_have_the_same_python() -> None:
    build, image = (words.split()[0] for words in of("FROM"))
    assert build == image


def test_all_that_is_not_ours_is_locked_by_its_hash() -> None:
    installs = [one for one in commands() if one[0].endswith("/pip") and one[1] == "install"]
    (ours,) = (one for one in installs if "-r" not in one)
    assert ours[-1] == "/wheels/*.whl"
    assert {one[-1] for one in installs if one != ours} == {
        "requirements.txt",
        "requirements-build.txt",
    }
    assert all(options(one) >= {"--require-hashes", "--no-deps"} for one in installs if one != ours)
    assert options(ours) >= {"--no-deps"}
    assert "PIP_ONLY_BINARY=:all:" in of("ENV")[0].split()


def test_all_that_builds_the_wheel_is_installed() -> None:
    text = (ROOT / "Containerfile").read_text()
    (listed,) = re.findall(r"keep = /\^\(([a-z|-]+)\)==/", text)
    needed = {
        re.split(r"[^\w.-]", r)[0] for r in metadata.requires("hatchling") or () if ";" not in r
    }
    locked = (ROOT / "requirements-dev.txt").read_text()
    assert set(listed.split("|")) == {"hatchling", *needed}
    assert all(f"\n{name}==" in locked for name in listed.split("|"))


def test_all_is_compiled_after_it_is_installed_and_whatever_times_its_files_get() -> None:
    found = commands()
    (command,) = (one for one in found if "compileall" in one)
    installing = [n for n, one in enumerate(found) if one[0].endswith("/pip")]
    assert found.index(command) > max(installing)
    assert command[-3:] == ("--invalidation-mode", "unchecked-hash", "/opt/kata-gpu")
    assert "-f" in command  # pip has compiled what it imported itself, by time


def test_what_is_left_out_is_never_imported(tmp_path: Path) -> None:
    (left_out,) = (one[2:] for one in commands() if one[:2] == ("rm", "-rf") and "*" not in one[2])
    kubeconfig = ApiServer(url="https://127.0.0.1:1").kubeconfig(tmp_path / "kubeconfig")
    modules = [path.replace("/", ".") for path in left_out]
    subprocess.run([sys.executable, "-c", _IMPORT_ALL, kubeconfig, *modules], check=True)


def test_it_runs_the_console_script() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    entry, default = (json.loads(of(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == list(scripts)
    assert parser.build(default[0]).parse_args(default).verb  # else it exits
    assert of("ENV")[-1].startswith("PATH=/opt/kata-gpu/bin:")
    assert not of("USER")
