"""Each drop-in of the corpus gets the verdict that each of Kata's runtimes gives it."""

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.discover import kata as discover
from kata_gpu.host import Host
from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.kata import Effective
from kata_gpu.plan.kata import effective
from kata_gpu.plan.kata.dialect import DIALECTS

CORPUS: Final = Path(__file__).parent / "kata_corpus"
BASES: Final = {
    ("gpu", "go"): "qemu-nvidia-gpu",
    ("gpu", "rust"): "qemu-nvidia-gpu-runtime-rs",
    ("snp", "go"): "qemu-nvidia-gpu-snp",
    ("snp", "rust"): "qemu-nvidia-gpu-snp-runtime-rs",
}
CONFIG: Final = "/opt/kata/configuration.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case, by the keys that the corpus' README explains."""

    name: str
    go: str
    rust: str
    files: dict[str, str] = field(default_factory=dict)
    base: str = ""
    bases: str = "gpu"
    go_notes: list[str] = field(default_factory=list)
    rust_notes: list[str] = field(default_factory=list)
    go_mark: str = "read"
    rust_mark: str = "read"


CASES: Final = [Case(**case) for case in tomllib.loads((CORPUS / "cases.toml").read_text())["case"]]


_NAMED: Final = re.compile(r'^(?:path|kernel|image|firmware|initrd) = "(/[^"]+)"$', re.MULTILINE)


def make_files(root: Path, text: str) -> None:
    """Make the kernel, the image and so on that a base file names."""
    for match in _NAMED.finditer(text):
        at = root / match[1].removeprefix("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.touch()


def lay_out(root: Path, case: Case, runtime: str) -> None:
    """Make the base file, and in ``config.d`` what the case has there."""
    base = root / CONFIG.removeprefix("/")
    drop_ins = base.parent / "config.d"
    drop_ins.mkdir(parents=True)
    text = (CORPUS / "bases" / f"{BASES[case.bases, runtime]}.toml").read_text()
    base.write_text(text + case.base)
    make_files(root, f'{text}\ninitrd = "/opt/kata/initrd"\n')
    for name, text in case.files.items():
        at = drop_ins / name
        if name.endswith("/"):
            at.mkdir()
        elif text == "|":
            os.mkfifo(at)
        elif text.startswith("*"):
            at.write_text("#" * int(text[1:]))
        elif text.startswith("@"):
            if text != "@":
                (base.parent / f"target-{name}").write_text(text[1:])
            at.symlink_to(f"../target-{name}")
        else:
            at.write_text(text)


def judged(root: Path, case: Case, runtime: str) -> Effective:
    lay_out(root, case, runtime)
    found = discover.configuration(Host.at(root), CONFIG)
    return effective.merge(found, DIALECTS[Runtime(runtime)])


@pytest.mark.parametrize("runtime", ["go", "rust"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_runtime_gives_its_verdict(case: Case, runtime: str, tmp_path: Path) -> None:
    found = judged(tmp_path, case, runtime)
    expected = {"go": case.go, "rust": case.rust}[runtime]
    notes = {"go": case.go_notes, "rust": case.rust_notes}[runtime]
    assert {f.rule for f in found.fatal} == ({expected} - {"ok"}), found.faults
    assert {f.rule for f in found.faults if not f.is_fatal} == set(notes), found.faults


def test_the_corpus_has_both_good_and_bad_and_says_what_was_run() -> None:
    assert len(CASES) >= 35
    assert len({case.name for case in CASES}) == len(CASES)
    for runtime in ("go", "rust"):
        verdicts = {getattr(case, runtime) == "ok" for case in CASES}
        assert verdicts == {True, False}
    assert {case.go_mark for case in CASES} == {"ran", "read"}
    assert {case.rust_mark for case in CASES} == {"read"}, "runtime-rs was never run"
