"""Each configuration of the corpus, and to the letter what becomes of our handlers with it.

``node`` is the node's files and ``version`` what its program says. ``expected.txt`` holds the
findings, the drop-in, and the handlers as they are once it is written; ``python -m
tests.runtime_corpus.test_corpus --write`` writes it anew, to be reviewed as a diff.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.discover import runtimes as discover
from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model.runtime import ContainerRuntime
from kata_gpu.plan.runtime import check, handlers, tables, wiring
from kata_gpu.settings import blueprint

_CORPUS: Final = Path(__file__).parent
CASES: Final = sorted(path.name for path in _CORPUS.iterdir() if (path / "node").is_dir())
BASE: Final = (
    "/opt/kata/share/defaults/kata-containers/runtimes/qemu-nvidia-gpu/"
    "configuration-qemu-nvidia-gpu.toml"
)
TEXT: Final = f"""\
schema = 1
version = "corpus"

[[kata.handler]]
name = "kata-qemu-nvidia-gpu"
runtime = "go"
config = "{BASE}"

[[kata.handler]]
name = "kata-qemu-nvidia-gpu-snp-runtime-rs"
runtime = "rust"
config = "/opt/kata/share/defaults/kata-containers/runtime-rs/runtimes/snp/configuration.toml"

[[runtime.handler]]
name = "kata-gpu"
base = "kata-qemu-nvidia-gpu"

[[runtime.handler]]
name = "kata-gpu-snp"
base = "kata-qemu-nvidia-gpu-snp-runtime-rs"
snapshotter = "nydus"
guest_pull = true
"""
WANTED: Final = blueprint.parse(TEXT)
_PROGRAMS: Final = {
    "k3s": "var/lib/rancher/k3s/data/current/bin/containerd",
    "rke2": "var/lib/rancher/rke2/bin/containerd",
    "k0s": "var/lib/k0s/bin/containerd",
    "microk8s": "snap/microk8s/current/bin/containerd",
    "crio": "usr/bin/crio",
    "containerd": "usr/bin/containerd",
}


def node(case: str, root: Path) -> Host:
    """Return the node of a case, copied to *root*, with what both base files need."""
    shutil.copytree(_CORPUS / case / "node", root, dirs_exist_ok=True)
    told = _CORPUS / case / "version"
    for handler, base in wiring.pairs(WANTED):
        for path, mode in ((tables.shim(handler, base), 0o755), (base.config, 0o644)):
            at = root / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.touch()
            at.chmod(mode)
    if told.exists():
        program = root / next(_PROGRAMS[kind] for kind in _PROGRAMS if case.startswith(kind))
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch()

    def run(argv: Sequence[str], *, timeout_s: float) -> str:
        if argv[-1] != "--version" or not told.exists():
            raise HostError(f"cannot run {argv[0]} within {timeout_s:g} s: it is not there")
        return f"containerd containerd.io v{told.read_text().strip()} 7c3aca7a\n"

    return Host(root=root, sysfs=Sysfs(root / "sys"), run=run)


def story(host: Host) -> str:
    """Return what is planned for a node, and what is wired once that is done."""
    found = discover.find(host)
    files, findings = wiring.drop_ins(WANTED, found)
    lines = [f"{finding.severity}: {finding}" for finding in findings]
    for file in files:
        assert file.content is not None
        lines += [f"--- {file.path} (by way of {file.staging})", file.content.rstrip("\n"), "---"]
        at = host.path(file.path)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(file.content)
    after = discover.find(host)
    targets = discover.targets(host, check.named_paths(WANTED, after))
    for wire in check.wires(WANTED, after, targets):
        state = f"wired by {wire.file}" if wire.is_wired else "not wired"
        lines.append(f"{wire.handler}: {state}, class {wire.runtime_class}")
        lines += [f"  {fault}" for fault in wire.faults]
    lines += [f"fault: {fault}" for fault in check.faults(WANTED, after, targets)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_what_becomes_of_our_handlers_is_as_reviewed(case: str, tmp_path: Path) -> None:
    expected = (_CORPUS / case / "expected.txt").read_text(encoding="utf-8")
    assert story(node(case, tmp_path)) == expected


@pytest.mark.parametrize("case", CASES)
def test_nothing_that_was_wired_is_taken_away(case: str, tmp_path: Path) -> None:
    host = node(case, tmp_path)
    before = _in_force(discover.find(host))
    story(host)
    assert before <= _in_force(discover.find(host))


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_wanted_again_and_nowhere_else(case: str, tmp_path: Path) -> None:
    host = node(case, tmp_path)
    first, _ = wiring.drop_ins(WANTED, discover.find(host))
    story(host)
    second, _ = wiring.drop_ins(WANTED, discover.find(host))
    assert second == first


def _in_force(runtimes: Sequence[ContainerRuntime]) -> set[tuple[str, str, str]]:
    return {
        (runtime.kind, handler.file, handler.name)
        for runtime in runtimes
        for handler in handlers.found(runtime)
        if handler.shadowed_by is None
    }


def _write() -> None:
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="kata-gpu-") as folder:
            text = story(node(case, Path(folder)))
        (_CORPUS / case / "expected.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        _write()
