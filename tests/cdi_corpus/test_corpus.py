"""Each case of the corpus gets the verdict that the runtimes are known to give."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.discover.cdi import read
from kata_gpu.host import Host
from kata_gpu.model.cdi import CdiFault, Scope
from kata_gpu.plan import cdi
from kata_gpu.plan.cdi.rules import RULES

CASES: Final[list[dict[str, Any]]] = tomllib.loads(
    Path(__file__).with_name("cases.toml").read_text(encoding="utf-8")
)["case"]
_DEVICES: Final = (
    *("dev/vfio/7", "dev/vfio/noiommu-7", "dev/vfio/vfio", "dev/vfio/devices/vfio0"),
)
_NO_DEVICE: Final = "dev/vfio/8"


@dataclass(frozen=True, slots=True)
class _Verdict:
    go: str
    rust: str
    rules: list[str]


def node_with(root: Path, files: dict[str, str]) -> Path:
    (root / "dev/vfio/devices").mkdir(parents=True)
    for device in _DEVICES:
        (root / device).symlink_to("/dev/null")
    (root / _NO_DEVICE).touch()
    for name, text in files.items():
        path = root / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def judged(root: Path) -> tuple[CdiFault, ...]:
    specs = read(Host.at(root), "/var/run/cdi")
    assert specs.problems == ()
    return cdi.judge(specs)


def worst(scopes: list[Scope | None]) -> str:
    return next((scope.value for scope in Scope if scope in scopes), "fine")


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_each_runtime_gives_the_verdict_that_is_known(case: dict[str, Any], tmp_path: Path) -> None:
    found = judged(node_with(tmp_path, case.get("files", {})))
    verdict = _Verdict(
        worst([fault.go for fault in found]),
        worst([fault.rust for fault in found]),
        sorted(fault.rule for fault in found),
    )
    assert verdict == _Verdict(case["go"], case["rust"], sorted(case["rules"]))
    assert set(case["basis"]) <= {"ran", "read"}
    for fault in found:
        assert str(fault).startswith(fault.file)
        assert fault.remedy
        assert fault.file in case["files"]


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    assert len(CASES) >= 40
    assert len({case["name"] for case in CASES}) == len(CASES)


def test_every_rule_has_a_case() -> None:
    told = {rule for case in CASES for rule in case["rules"]}
    assert RULES.keys() - told == {"no-file", "unjudged"}  # test_cdi_hostile.py has them


def test_a_fault_has_its_place_in_the_document(tmp_path: Path) -> None:
    devices = [
        {"name": f"gpu{n}", "containerEdits": {"deviceNodes": [{"path": "/dev/vfio/7"}]}}
        for n in range(4)
    ]
    devices[3]["containerEdits"] = {"deviceNodes": [{"path": "/dev/vfio/404"}]}
    spec = {"cdiVersion": "0.5.0", "kind": "a.b/c", "devices": devices}
    root = node_with(tmp_path, {"/etc/cdi/a.json": json.dumps(spec)})
    (fault,) = judged(root)
    assert fault.where == "devices[3].containerEdits.deviceNodes[0].path"
    assert str(fault) == f"/etc/cdi/a.json: {fault.where}: nothing is at /dev/vfio/404"


def test_a_link_to_a_good_file_is_followed_below_the_root(tmp_path: Path) -> None:
    good = next(case["files"] for case in CASES if case["name"] == "yaml")
    root = node_with(tmp_path, {"/opt/cdi/a.yaml": next(iter(good.values()))})
    (root / "etc/cdi").mkdir(parents=True)
    (root / "etc/cdi/a.yaml").symlink_to("/opt/cdi/a.yaml")
    assert judged(root) == ()
    (root / "opt/cdi/a.yaml").unlink()
    assert [fault.rule for fault in judged(root)] == ["no-file"]
