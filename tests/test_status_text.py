"""``kata-gpu status`` tells who has a unit, what was done after its last user, and in colour."""

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.cli import output
from kata_gpu.model.unit import UnitState
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import SETTINGS
from tests.serving import served
from tests.test_cli import COMMAND, ENVIRONMENT, Done, complaint, run
from tests.test_explain import kernel_of
from tests.test_explain import status as status_of


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return kernel_of(nodes.single_gpu(tmp_path))


def shown(kernel: FakeKernel, answer: Any, *argv: str) -> Done:
    return served(
        kernel.host.path(SETTINGS.socket),
        lambda: run("status", *argv, "--root", kernel.host.root),
        routes={"/v1/status": lambda: answer},
    )


def test_who_has_a_unit_is_told_in_a_line_for_each(kernel: FakeKernel) -> None:
    status_of(kernel)
    node = kernel.tree.node(1)
    with kernel.process("qemu-system-x86", node), kernel.process("strace", node):
        answer = status_of(kernel)
    _, about = shown(kernel, answer).stdout.split(f"{nodes.GPU} is ")
    assert about.splitlines()[0] == "in-use:"
    lines = about.splitlines()[1:3]
    assert [line.split(" (")[0] for line in lines] == ["  qemu-system-x86", "  strace"]
    assert all(line.endswith(" has /dev/vfio/1 open") for line in lines)


def test_the_wide_form_tells_the_last_cleaning(kernel: FakeKernel) -> None:
    status_of(kernel)
    with kernel.vm_holds(nodes.GPU):
        status_of(kernel)
    done = shown(kernel, status_of(kernel), "-o", "wide")
    header = next(line for line in done.stdout.splitlines() if line.startswith("UNIT"))
    row = next(line for line in done.stdout.splitlines() if line.startswith(nodes.GPU))
    assert header.split()[-1] == "CLEANED"
    assert row.endswith(
        f" {nodes.GPU} flr/bus: ids, BARs and link are as before; {nodes.GPU} boot state 0x180000a1"
    )


def test_the_wide_form_tells_how_a_unit_is_offered(kernel: FakeKernel) -> None:
    answer = status_of(kernel)
    assert (answer["units"][0]["offer"], answer["units"][0]["bundle"]) == ("device-plugin", None)
    answer["units"][0] |= {"offer": "dra", "bundle": "hgx"}
    assert "  dra, hgx  " in shown(kernel, answer, "-o", "wide").stdout


def test_an_agent_of_before_kubernetes_is_understood(kernel: FakeKernel) -> None:
    answer = status_of(kernel)
    del answer["units"][0]["offer"], answer["units"][0]["bundle"]
    assert nodes.GPU in shown(kernel, answer, "-o", "wide").stdout


@pytest.mark.parametrize("is_held", [False, True])
def test_of_an_unclaimed_unit_only_whom_a_claim_waits_for_is_told(
    kernel: FakeKernel, is_held: bool
) -> None:
    answer = status_of(kernel)
    holder = {"pid": 1, "command": "a", "device": "b", "how": "open"}
    answer["units"][0] |= {
        "state": "unclaimed",
        "reason": "so it is",
        "holders": [holder] * is_held,
    }
    told = f"{nodes.GPU} is unclaimed: so it is" in shown(kernel, answer).stdout
    assert told == is_held


def test_a_unit_that_never_had_a_user_has_no_cleaning(kernel: FakeKernel) -> None:
    done = shown(kernel, status_of(kernel), "-o", "wide")
    row = next(line for line in done.stdout.splitlines() if line.startswith(nodes.GPU))
    assert row.split()[-1] == "-"


def test_what_a_node_says_cannot_steer_the_terminal(kernel: FakeKernel) -> None:
    answer = status_of(kernel)
    answer["units"][0] |= {"state": "failed", "reason": "\x1b[2J\nall is well"}
    for form in ("table", "wide", "json"):
        said = shown(kernel, answer, "-o", form).stdout
        assert "?[2J?all is well" in said
        assert "\x1b" not in said


def test_a_holder_of_another_version_is_an_answer_of_another_version(kernel: FakeKernel) -> None:
    answer = status_of(kernel)
    holder = {"pid": 1, "command": "a", "device": "b", "how": "dreams"}
    answer["units"][0] |= {"state": "in-use", "holders": [holder]}
    assert "it is of another version" in complaint(shown(kernel, answer))


def test_what_keeps_kubernetes_from_hearing_of_the_node_is_told(kernel: FakeKernel) -> None:
    told = {
        "node": "n",
        "device_plugins": [
            {"resource": "a.io/b", "registered_at": None, "problem": "kubelet does not serve"},
            {"resource": "a.io/c", "registered_at": "2026-01-01T00:00:00+00:00", "problem": None},
        ],
        "dra_drivers": [{"driver": "d.io", "standing": "refused", "problem": "no such version"}],
        "troubles": {"API server": "cannot reach it"},
    }
    done = shown(kernel, {**status_of(kernel), "kubernetes": told})
    assert [line for line in done.stdout.splitlines() if line.startswith("kubernetes: ")] == [
        "kubernetes: a.io/b: kubelet does not serve",
        "kubernetes: d.io: no such version",
        "kubernetes: API server: cannot reach it",
    ]


def test_every_state_has_a_colour() -> None:
    assert set(output.STATES) == set(UnitState)


@pytest.mark.parametrize(
    ("state", "colour"),
    [("in-use", "32"), ("waiting", "33"), *((s, "31") for s in ("stuck", "foreign", "refused"))],
)
def test_on_a_terminal_each_state_has_its_colour(
    kernel: FakeKernel, state: str, colour: str
) -> None:
    answer = status_of(kernel)
    answer["units"][0] |= {"state": state, "reason": "so it is"}
    ours, theirs = pty.openpty()

    def ask() -> str:
        subprocess.run(
            [*COMMAND, "status", "--root", str(kernel.host.root)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            env=ENVIRONMENT,
            timeout=30,
        )
        os.close(theirs)
        return os.read(ours, 65536).decode()

    said = served(kernel.host.path(SETTINGS.socket), ask, routes={"/v1/status": lambda: answer})
    os.close(ours)
    assert f"\033[{colour}m{state:{len(state)}}\033[0m" in said
    assert f"\033[{colour}m{nodes.GPU} is {state}: so it is\033[0m" in said


def test_a_coloured_cell_does_not_shift_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print(output.table(("A", "B"), [[output.Tinted("in-use", "good"), 1], ["x", 2]]))  # noqa: T201
    assert capsys.readouterr().out.splitlines() == ["A       B", "in-use  1", "x       2"]


def test_the_answer_is_for_programs_too(kernel: FakeKernel) -> None:
    answer = status_of(kernel)
    assert json.loads(shown(kernel, answer, "-o", "json").stdout) == answer
