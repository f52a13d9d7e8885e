"""``kata-gpu runtime``: what is wired to what, and the classes of the cluster."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from kata_gpu.plan.runtime import classes
from kata_gpu.settings import blueprint
from tests.passthrough import everything, put
from tests.test_cli import Done, loaded, run

ROOT: Final = Path(__file__).parent.parent
SHIPPED: Final = ROOT / "configs/blueprint.toml"
CORPUS: Final = Path(__file__).parent / "runtime_corpus"
CONFIG: Final = "/opt/kata/share/defaults/kata-containers/configuration.toml"
SHIM: Final = "/opt/kata/bin/containerd-shim-kata-v2"
MAIN: Final = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
TEXT: Final = f"""\
schema = 1
version = "2026.1"

[[kata.handler]]
name = "kata-qemu-nvidia-gpu"
runtime = "go"
config = "{CONFIG}"

[[runtime.handler]]
name = "kata-gpu"
base = "kata-qemu-nvidia-gpu"
"""


def wired(name: str, *, shim: str = SHIM, config: str = CONFIG) -> str:
    table = f"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}"
    return (
        f'{table}]\nruntime_type = "io.containerd.{name}.v2"\nruntime_path = "{shim}"\n'
        f'{table}.options]\nConfigPath = "{config}"\n'
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "/etc/containerd/config.toml", MAIN)
    put(tmp_path, CONFIG, "[hypervisor.qemu]\n")
    put(tmp_path, SHIM, "")
    (tmp_path / SHIM.lstrip("/")).chmod(0o755)
    put(tmp_path, "/etc/kata-gpu/blueprint.toml", TEXT)
    return tmp_path


def check(root: Path, *more: object) -> Done:
    return run("runtime", "check", "--root", root, *more)


def body(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(check(root, "-o", "json").stdout)
    return found


# check


def test_a_handler_that_is_not_wired_is_named_with_the_file_that_would_wire_it(root: Path) -> None:
    done = check(root)
    assert done.returncode == 3
    assert "kata-gpu apply writes /etc/containerd/conf.d/kata-gpu.toml" in done.stdout


def test_what_is_in_order_exits_with_0(root: Path) -> None:
    put(root, "/etc/containerd/conf.d/kata-gpu.toml", f"version = 3\n{wired('kata-gpu')}")
    done = check(root)
    assert done.returncode == 0, done.stdout
    assert ["kata-gpu", "yes", SHIM, CONFIG, "kata-gpu"] in [
        line.split() for line in done.stdout.splitlines()
    ]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (wired("kata-gpu", shim="/opt/none"), "its shim /opt/none does not exist"),
        (wired("kata-gpu", shim=CONFIG), f"its shim {CONFIG} is not executable"),
        (wired("kata-gpu", config="/opt/none"), "its base file /opt/none does not exist"),
        (wired("kata-gpu", config=SHIM), f"it reads {SHIM}, and the blueprint says {CONFIG}"),
    ],
    ids=["no shim", "shim that cannot run", "no base file", "another base file"],
)
def test_what_a_handler_leads_to_is_looked_at(root: Path, table: str, fault: str) -> None:
    put(root, "/etc/containerd/conf.d/x.toml", f"version = 3\n{table}")
    found = body(root)
    (wire,) = [w for w in found["handlers"] if w["handler"] == "kata-gpu"]
    assert fault in wire["faults"]
    assert check(root).returncode == 3


def test_a_base_file_behind_a_link_is_the_same(root: Path) -> None:
    (root / "opt/link.toml").symlink_to(CONFIG)
    table = wired("kata-gpu", config="/opt/link.toml")
    put(root, "/etc/containerd/conf.d/x.toml", f"version = 3\n{table}")
    assert check(root).returncode == 0


def test_the_file_with_the_last_word_hides_the_others(root: Path) -> None:
    put(root, "/etc/containerd/conf.d/10.toml", f"version = 3\n{wired('kata-gpu')}")
    put(root, "/etc/containerd/conf.d/20.toml", f"version = 3\n{wired('kata-gpu')}")
    first, second = body(root)["handlers"]
    assert (first["is_wired"], second["is_wired"]) == (False, True)
    assert first["faults"] == [
        "/etc/containerd/conf.d/20.toml takes it away: that file has the last word"
    ]


def test_a_handler_of_kata_deploy_that_nobody_wires_is_named(root: Path) -> None:
    put(root, "/etc/kata-gpu/blueprint.toml", TEXT[: TEXT.index("[[runtime")])
    (wire,) = body(root)["handlers"]
    assert wire["handler"] == "kata-qemu-nvidia-gpu"
    assert "containerd does not know it: have kata-deploy install it" in wire["faults"][0]


def test_without_a_blueprint_what_is_there_is_shown(root: Path) -> None:
    (root / "etc/kata-gpu/blueprint.toml").unlink()
    put(root, "/etc/containerd/conf.d/x.toml", f"version = 3\n{wired('kata-qemu')}")
    (wire,) = body(root)["handlers"]
    assert (wire["handler"], wire["is_wired"], wire["has_config"]) == ("kata-qemu", True, True)


def test_a_runtime_that_is_no_kata_is_none_of_our_business(root: Path) -> None:
    put(root, "/etc/containerd/conf.d/x.toml", f"version = 3\n{wired('runc', shim='/bin/runc')}")
    assert [wire["handler"] for wire in body(root)["handlers"]] == ["kata-gpu"]


def test_yaml_says_what_json_says(root: Path) -> None:
    assert yaml.safe_load(check(root, "-o", "yaml").stdout) == body(root)


def test_the_tables_of_our_handlers_are_shown_to_be_added_by_hand(tmp_path: Path) -> None:
    shutil.copytree(CORPUS / "containerd-1.7-with-imports/node", tmp_path, dirs_exist_ok=True)
    put(tmp_path, "/etc/kata-gpu/blueprint.toml", TEXT)
    shown = check(tmp_path, "-o", "wide").stdout
    assert '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-gpu]' in shown
    assert "add our tables to /etc/containerd/config.toml" in shown


def test_nothing_is_changed(root: Path) -> None:
    before = everything(root)
    check(root)
    assert everything(root) == before


@pytest.mark.parametrize(
    "text",
    [
        "version = [",
        "x = " + "[" * 20_000,
        f'x = "{"a" * (1 << 20)}"',
        "version = 3\nimports = 7\nplugins = 8\n",
        'version = "3"\nplugins = { "io.containerd.cri.v1.runtime" = [] }\n',
        'version = 3\nimports = ["\\u0000", "/etc/containerd/config.toml", "/*/*/*/*", 1]\n',
        "version = 3\n[plugins.cri.containerd.runtimes]\nkata = 5\n",
        "crio = 5\n",
        f"version = 3\n{wired('kata-x', shim=chr(27) + '[31m')}".replace(chr(27), "\\u001b"),
    ],
    ids=["cut off", "deep", "long", "types", "more types", "imports", "no table", "crio", "escape"],
)
@pytest.mark.parametrize("path", ["/etc/containerd/config.toml", "/etc/crio/crio.conf"])
def test_hostile_files_are_faults_and_no_errors(root: Path, path: str, text: str) -> None:
    put(root, path, text)
    done = check(root)
    assert done.returncode in {0, 3}
    assert done.stderr == ""
    assert "\033" not in done.stdout


def test_a_pipe_in_place_of_a_file_is_a_fault(root: Path) -> None:
    (root / "etc/containerd/conf.d").mkdir()
    os.mkfifo(root / "etc/containerd/conf.d/x.toml")
    assert "cannot read" in check(root).stdout


def test_check_loads_only_what_it_needs(root: Path) -> None:
    (root / "etc/kata-gpu/blueprint.toml").unlink()
    found = loaded("runtime", "check", "--root", root)
    assert "tomllib" in found
    assert not found & {"asyncio", "pydantic", "pyudev", "tomli_w", "yaml", "pynvml"}


# render


def test_what_is_shipped_is_what_is_rendered(tmp_path: Path) -> None:
    done = run("runtime", "render", "--blueprint", SHIPPED, "--directory", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    shipped = {path.name: path.read_text() for path in (ROOT / "runtimeclass").iterdir()}
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == shipped


def test_the_three_classes_are_shipped() -> None:
    found = {p.name: yaml.safe_load(p.read_text()) for p in (ROOT / "runtimeclass").iterdir()}
    selectors = {
        name: found[f"{name}.yaml"]["scheduling"]["nodeSelector"]
        for name in ("kata-gpu", "kata-gpu-snp", "kata-gpu-tdx")
    }
    assert selectors == {
        "kata-gpu": {"kata-gpu.io/ready": "true"},
        "kata-gpu-snp": {"kata-gpu.io/ready": "true", "kata-gpu.io/snp.ready": "true"},
        "kata-gpu-tdx": {"kata-gpu.io/ready": "true", "kata-gpu.io/tdx.ready": "true"},
    }
    assert {d["metadata"]["name"] for d in found.values() if d["kind"] == "DeviceClass"} == {
        "kata-gpu",
        "kata-gpu-bundle",
        "kata-gpu-confidential",
        "kata-fabric",
    }


def test_a_class_leads_to_our_handler_where_there_is_one(root: Path) -> None:
    done = run("runtime", "render", "--root", root)
    found = [d for d in yaml.safe_load_all(done.stdout) if d["kind"] == "RuntimeClass"]
    assert [(d["metadata"]["name"], d["handler"]) for d in found] == [("kata-gpu", "kata-gpu")]


def test_writing_again_writes_nothing(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run("runtime", "render", "--root", root, "--directory", out).stdout
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    second = run("runtime", "render", "--root", root, "--directory", out).stdout
    assert len(first.splitlines()) == len(times) == 5
    assert second == ""
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        ("kata-qemu-nvidia-gpu", "kata-gpu"),
        ("kata-qemu-nvidia-gpu-runtime-rs", "kata-gpu-runtime-rs"),
        ("kata-qemu-nvidia-gpu-snp-runtime-rs", "kata-gpu-snp-runtime-rs"),
        ("kata-clh", "kata-gpu-clh"),
        ("kata-gpu-x", "kata-gpu-x"),
        ("own", "kata-gpu-own"),
    ],
)
def test_a_class_is_named_after_its_handler(handler: str, name: str) -> None:
    assert classes.class_name(handler) == name


def test_two_handlers_never_share_a_class() -> None:
    handler = '[[kata.handler]]\nname = "{}"\nruntime = "go"\nconfig = "/{}"\n'
    names = ("kata-clh", "clh", "kata-gpu-clh")
    text = "".join(handler.format(name, name) for name in names)
    wanted = blueprint.parse(f'schema = 1\nversion = "x"\n{text}')
    found = classes.runtime_classes(wanted)
    assert sorted(c.handler for c in found) == sorted(names)
    assert len({c.name for c in found}) == len(names)
