"""``kata-gpu simulate``, as a shell runs it."""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.kernel import nodes
from tests.plans.blueprints import blueprint as text_of
from tests.plans.bundles import BOARD
from tests.simulations.objects import (
    GPU,
    Tree,
    claim,
    class_,
    deployment,
    device,
    exactly,
    gpus,
    pod,
    slice_,
    spec,
    template,
    tree,
)
from tests.test_cli import COMMAND, ENVIRONMENT, Done, complaint, run

ONE: Final = (class_(), template("one", exactly()))


def written(path: Path, *trees: Tree) -> Path:
    path.write_text("---\n".join(yaml.safe_dump(found) for found in trees))
    return path


def simulate(*argv: object) -> Done:
    return run("simulate", *argv)


def told(done: Done) -> Any:
    return json.loads(done.stdout)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return written(tmp_path / "pod.yaml", *ONE, pod("train", "one"))


def snapshot(tmp_path: Path, kernel: Any, name: str) -> Path:
    """Return what the inventory of a node prints, as a file."""
    path = tmp_path / f"{name}.json"
    done = run("inventory", "-o", "json", "--root", kernel.host.root)
    assert done.returncode == 0, done.stderr
    path.write_text(done.stdout)
    return path


def test_all_that_is_placed_exits_with_0(tmp_path: Path, asked: Path) -> None:
    done = simulate(asked, "--inventory", written(tmp_path / "slices.yaml", slice_("n1", gpus(1))))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "POD            VERDICT  NODE  DEVICES",
        "default/train  placed   n1    gpu-0",
    ]


def test_what_is_refused_exits_with_3_and_names_each_condition(tmp_path: Path, asked: Path) -> None:
    nodes_ = written(tmp_path / "slices.yaml", slice_("n1", gpus(0)), slice_("n2", gpus(0)))
    done = simulate(asked, nodes_)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines()[-1] == (
        "  n1, n2: claim one, request gpu needs 1 device, and the node has none"
    )


def test_a_claim_has_no_more_users_than_its_status_can_name(tmp_path: Path) -> None:
    crowd = deployment("crowd", 258, spec(shared=("common",)))
    path = written(
        tmp_path / "a.yaml", class_(), slice_("n1", gpus(1)), claim("common", exactly()), crowd
    )
    done = simulate(path, "-o", "json")
    assert done.returncode == 3
    pods = told(done)["pods"]
    assert [one["verdict"] for one in pods] == ["placed"] * 256 + ["refused"] * 2
    assert pods[-2]["reason"] == (
        "claim default/common is in use by 256 pods, and no more may use it"
    )


def test_what_a_claim_is_reserved_for_already_counts_once(tmp_path: Path) -> None:
    common = claim("common", exactly(), has=(("n1", "gpu-0"),))
    names = ["running", *(f"other-{number}" for number in range(254))]
    common["status"]["reservedFor"] = [
        {"resource": "pods", "name": name, "uid": name} for name in names
    ]
    pods = [pod(name, shared=("common",)) for name in ("running", "first", "second")]
    pods[0]["spec"]["nodeName"] = "n1"
    path = written(tmp_path / "a.yaml", class_(), slice_("n1", gpus(1)), common, *pods)
    found = {one["pod"]: one["verdict"] for one in told(simulate(path, "-o", "json"))["pods"]}
    assert found == {"default/first": "placed", "default/second": "refused"}


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_the_answer_is_for_programs_too(tmp_path: Path, form: str, load: Any) -> None:
    path = written(
        tmp_path / "a.yaml", *ONE, slice_("n1", gpus(1)), deployment("d", 3, spec("one"))
    )
    done = simulate(path, "-o", form)
    assert done.returncode == 3
    placed, refused, again = load(done.stdout)["pods"]
    assert placed["devices"] == [
        {
            "claim": "one",
            "request": "gpu",
            "device": {"driver": GPU, "pool": "n1", "name": "gpu-0"},
        }
    ]
    (refusal,) = refused["refusals"][0]["requests"]
    assert refusal["devices"][0]["reason"] == {
        "condition": "allocated",
        "text": "allocated to default/d-0 (claim one)",
    }
    assert (again["refusals"], again["same_as"]) == ([], "default/d-1")


def test_wide_names_request_and_driver(tmp_path: Path, asked: Path) -> None:
    done = simulate(asked, written(tmp_path / "slices.yaml", slice_("n1", gpus(1))), "-o", "wide")
    assert f"gpu={GPU}/gpu-0" in done.stdout


def test_an_inventory_is_a_node_called_as_its_file_is(tmp_path: Path, asked: Path) -> None:
    path = snapshot(tmp_path, nodes.single_gpu(tmp_path / "root"), "worker-7")
    found = told(simulate(asked, "--inventory", path, "-o", "json"))
    assert found["pods"][0]["node"] == "worker-7"
    assert found["pods"][0]["devices"][0]["device"]["name"] == "0000-01-00-0"


def test_the_gpus_of_an_inventory_have_the_attributes_that_are_published(tmp_path: Path) -> None:
    wanted = " && ".join(
        [
            f"device.attributes['{GPU}'].vendor == 'nvidia'",
            f"device.attributes['{GPU}'].device == '2330'",
            f"device.attributes['{GPU}'].gpuCount == 1",
            f"device.attributes['{GPU}'].linkWidth == 16",
            f"device.attributes['{GPU}'].linkGeneration == 5",
            f"device.attributes['{GPU}'].resetMethod == 'flr'",
            f"device.attributes['{GPU}'].iommuGroup == 1",
            "device.attributes['resource.kubernetes.io'].pciBusID == '0000:01:00.0'",
            f"device.capacity['{GPU}'].barSize.compareTo(quantity('128Gi')) == 0",
        ]
    )
    request = exactly("gpu", "kata-gpu", wanted)
    path = written(tmp_path / "pod.yaml", class_(), template("one", request), pod("a", "one"))
    node = snapshot(tmp_path, nodes.single_gpu(tmp_path / "root"), "n1")
    done = simulate(path, "--inventory", node)
    assert done.returncode == 0, done.stdout


def test_a_gpu_whose_group_may_not_be_given_away_is_no_device(tmp_path: Path, asked: Path) -> None:
    path = snapshot(tmp_path, nodes.storage_in_group(tmp_path / "root"), "n1")
    assert simulate(asked, "--inventory", path).returncode == 3


def test_a_blueprint_says_which_door_an_inventory_has(tmp_path: Path) -> None:
    blueprint = tmp_path / "blueprint.toml"
    blueprint.write_text(
        'schema = 1\nversion = "1"\n[[pool]]\nname = "gpus"\nmode = "passthrough"\n'
        'resource = "nvidia.com/pgpu"\n[[pool.select]]\nvendor = "10de"\n'
    )
    node = snapshot(tmp_path, nodes.eight_gpus(tmp_path / "root"), "n1")
    many = spec(resources={"nvidia.com/pgpu": 5})
    path = written(tmp_path / "pods.yaml", deployment("d", 2, many), *ONE, pod("dra", "one"))
    done = simulate(path, "--inventory", node, "--blueprint", blueprint, "-o", "json")
    verdicts = [found["verdict"] for found in told(done)["pods"]]
    assert verdicts == ["placed", "refused", "refused"]


def test_a_board_of_an_inventory_is_not_had_beside_its_gpus(tmp_path: Path) -> None:
    blueprint = tmp_path / "blueprint.toml"
    blueprint.write_text(text_of(BOARD + 'offer = "dra"\n'))
    claims = (
        template("gpu", exactly("gpu", "kata-gpu")),
        template("board", exactly("board", "kata-gpu-bundle")),
        *(pod(name, name) for name in ("gpu", "board")),
    )
    shipped = sorted(Path("runtimeclass").glob("*.yaml"))
    node = snapshot(tmp_path, nodes.hgx(tmp_path / "root"), "n1")
    path = written(tmp_path / "pods.yaml", *claims)
    done = simulate(path, *shipped, "--inventory", node, "--blueprint", blueprint)
    assert done.returncode == 3
    assert "hgx: takes 1 of counter counters-0/fn-0000-43-00-0, of which 0 is left" in done.stdout


def test_why_a_gpu_of_an_inventory_is_refused_is_a_note(tmp_path: Path, asked: Path) -> None:
    path = snapshot(tmp_path, nodes.storage_in_group(tmp_path / "root"), "n1")
    shown = simulate(asked, "--inventory", path).stdout
    assert "0000-01-00-0: taint gpu.kata-passthrough.io/refused=true:NoSchedule" in shown
    assert "note: n1: 0000:01:00.0: pool gpus passes it through, but 0000:" in shown
    assert "it is a storage controller, which the host may run on" in shown


def test_the_classes_that_are_shipped_select_what_an_inventory_has(tmp_path: Path) -> None:
    shipped = sorted(Path("runtimeclass").glob("*.yaml"))
    claims = (
        template("gpu", exactly("gpu", "kata-gpu")),
        template("switch", exactly("switch", "kata-fabric")),
        template("secret", exactly("gpu", "kata-gpu-confidential")),
        *(pod(name, name) for name in ("gpu", "switch", "secret")),
    )
    node = snapshot(tmp_path, nodes.hgx(tmp_path / "root"), "n1")
    path = written(tmp_path / "pods.yaml", *claims)
    found = told(simulate(path, *shipped, "--inventory", node, "-o", "json"))
    assert [each["verdict"] for each in found["pods"]] == ["placed", "placed", "refused"]


def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "pod.yaml", pod("a"), template("t", exactly(count=-1)))
    said = complaint(simulate(path))
    assert f"cannot use {path}: document 2: spec.spec.devices.requests[0].exactly.count" in said


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "does not exist" in complaint(simulate(tmp_path / "none.yaml"))


def test_a_hostile_expression_cannot_take_all_memory(tmp_path: Path) -> None:
    grow = "".join(f".replace('a', '{'a' * 3000}')" for _ in range(3))
    request = exactly("gpu", "kata-gpu", f"'a'{grow} == 'b'")
    path = written(
        tmp_path / "pod.yaml",
        class_(),
        template("one", request),
        pod("a", "one"),
        slice_("n1", gpus(1)),
    )
    done = simulate(path)
    assert done.returncode == 3
    assert "it takes more memory than this process may have" in done.stdout


def test_a_hostile_claim_cannot_take_all_time(tmp_path: Path) -> None:
    sides = [device(f"g{n}", side=f"s{n % 3}") for n in range(128)]
    apart = {"distinctAttribute": f"{GPU}/side", "requests": ["b"]}
    asked = template(
        "one", exactly("a", count=28), exactly("b", count=4), constraints=(apart,) * 32
    )
    path = written(tmp_path / "pod.yaml", class_(), asked, pod("a", "one"), slice_("n1", sides))
    limited = ["bash", "-c", 'ulimit -St 2; exec "$@"', "bash", *COMMAND, "simulate", str(path)]
    done = subprocess.run(
        limited, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("kata-gpu: cannot simulate: it takes more than 2 seconds of CPU")


def test_names_from_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    odd = tree("v1\x1b[2J", "Odd\x1b[2J", "x")
    path = written(tmp_path / "pod.yaml", odd, pod("a"), slice_("n1", gpus(1)))
    done = simulate(path)
    assert "\x1b" not in done.stdout + done.stderr
    assert "is not simulated" in done.stdout


def test_nothing_to_place_is_said(tmp_path: Path) -> None:
    done = simulate(written(tmp_path / "slices.yaml", slice_("n1", gpus(1))))
    assert done.returncode == 0
    assert done.stdout.startswith("nothing to place")


def test_help_has_examples() -> None:
    shown = simulate("--help").stdout
    assert "  kata-gpu simulate gang.yaml --cluster\n" in shown
