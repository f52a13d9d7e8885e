"""``kata-gpu explain``, as a shell runs it, with an agent and without."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kata_gpu.agent import node
from kata_gpu.model.blueprint import Selector
from kata_gpu.model.explanation import Said, Unsaid
from kata_gpu.model.unit import UnitState
from kata_gpu.observe import said
from kata_gpu.observe.document import document
from kata_gpu.plan.explanation.selection import first_miss
from tests.kernel import nodes
from tests.kernel.fake import ROOT_PORT, FakeKernel
from tests.passthrough import EVERY_GPU, SETTINGS, TEXT, everything, journal_of
from tests.serving import served
from tests.test_cli import Done, complaint, run, written
from tests.values import AUDIO_CLASS, GPU_CLASS, address, function

README: Final = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A node whose GPU and audio function are bound and published."""
    kernel = nodes.gpu_with_audio(tmp_path)
    written(kernel)
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))
    return kernel


def explain(kernel: FakeKernel, *argv: str) -> Done:
    return run("explain", *argv, "--root", kernel.host.root)


def status(kernel: FakeKernel) -> dict[str, Any]:
    """Return what the agent's status would be."""
    journal = journal_of(kernel.host)
    turn = node.converge(kernel.host, SETTINGS, EVERY_GPU, journal)
    state = node.describe(
        turn, SETTINGS, EVERY_GPU, journal.ledger, number=3, last_report=turn.report
    )
    answer: dict[str, Any] = json.loads(json.dumps({"ready": True, **document(state)}))
    return answer


def explained_by(kernel: FakeKernel, answer: Any, *argv: str) -> Done:
    """Let *answer* be the agent's meanwhile."""
    socket = kernel.host.path(SETTINGS.socket)
    return served(socket, lambda: explain(kernel, *argv), routes={"/v1/status": lambda: answer})


# What it answers


@pytest.mark.parametrize("asked", [nodes.GPU, nodes.AUDIO])
def test_an_available_unit_is_explained_by_each_of_its_functions(
    kernel: FakeKernel, asked: str
) -> None:
    done = explain(kernel, asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{nodes.GPU} is available: ")
    assert "before, 0000:01:00.1 had snd_hda_intel and no override" in done.stdout
    assert "a pod that asks for resource example.com/pgpu" in done.stdout


def test_without_an_agent_it_looks_itself_and_says_so(kernel: FakeKernel) -> None:
    assert "; no agent runs)" in explain(kernel, nodes.GPU).stdout.splitlines()[1]


def test_what_is_not_available_exits_with_3(tmp_path: Path) -> None:
    done = explain(kernel_of(nodes.storage_in_group(tmp_path)), nodes.GPU)
    assert done.returncode == 3
    assert done.stdout.startswith(f"{nodes.GPU} is refused: ")
    assert "it is a storage controller" in done.stdout


def kernel_of(kernel: FakeKernel, text: str = TEXT) -> FakeKernel:
    written(kernel, text)
    return kernel


@pytest.mark.parametrize(("mode", "state"), [("host", "host"), ("ignore", "ignored")])
def test_what_is_where_the_blueprint_wants_it_exits_with_0(
    tmp_path: Path, mode: str, state: str
) -> None:
    text = TEXT.replace("passthrough", mode).replace('resource = "example.com/pgpu"\n', "")
    done = explain(kernel_of(nodes.single_gpu(tmp_path), text), nodes.GPU)
    assert (done.returncode, done.stdout.split(": ")[0]) == (0, f"{nodes.GPU} is {state}")


def test_a_bridge_stays_and_that_is_in_order(kernel: FakeKernel) -> None:
    done = explain(kernel, ROOT_PORT)
    assert done.returncode == 0
    assert f"below it: {nodes.GPU}" in done.stdout


def test_a_device_that_no_pool_selects_exits_with_3(tmp_path: Path) -> None:
    done = explain(kernel_of(nodes.single_gpu(tmp_path), TEXT.replace("03", "12")), nodes.GPU)
    assert done.returncode == 3
    assert "its class is 030200, which does not begin with 12" in done.stdout


def test_an_unknown_address_names_the_known_ones(kernel: FakeKernel) -> None:
    message = complaint(explain(kernel, "0000:09:00.0"))
    assert "cannot explain 0000:09:00.0: nothing is there" in message
    assert nodes.GPU in message
    assert nodes.AUDIO in message


@pytest.mark.parametrize("nonsense", ["gpu0", "\x1b[2J", "0000:01:00", ""])
def test_what_is_no_address_is_wrong_usage(kernel: FakeKernel, nonsense: str) -> None:
    done = explain(kernel, nonsense)
    assert done.returncode == 64
    assert "not a PCI address" in done.stderr
    assert "\x1b" not in done.stderr


def test_programs_get_the_same_in_both_forms(kernel: FakeKernel) -> None:
    found = json.loads(explain(kernel, nodes.GPU, "-o", "json").stdout)
    again = yaml.safe_load(explain(kernel, nodes.GPU, "-o", "yaml").stdout)
    assert found.keys() == again.keys()
    assert found["facts"] == again["facts"]
    assert (found["unit"], found["state"], found["is_in_order"]) == (nodes.GPU, "available", True)
    assert found["facts"]["nodes"] == ["/dev/vfio/1"]
    assert found["facts"]["entry"]["functions"][0]["original"]["driver"] == "nvidia"
    assert found["actions"]


def test_looking_changes_nothing(kernel: FakeKernel) -> None:
    before = everything(kernel.host.root)
    explain(kernel, nodes.GPU)
    assert everything(kernel.host.root) == before


# The agent's word


def test_the_agents_word_counts_for_it_knows_what_it_tried(kernel: FakeKernel) -> None:
    answer = status(kernel)
    answer["units"][0] |= {"state": "failed", "reason": "it would not bind"}
    done = explained_by(kernel, answer, nodes.GPU)
    assert done.returncode == 3
    assert done.stdout.startswith(f"{nodes.GPU} is failed: it would not bind\n(by the word of")


def test_its_troubles_are_told(kernel: FakeKernel) -> None:
    answer = {**status(kernel), "turn_error": "cannot list /proc"}
    assert "this is old: cannot list /proc" in explained_by(kernel, answer, nodes.GPU).stdout


def test_what_it_says_cannot_steer_the_terminal(kernel: FakeKernel) -> None:
    answer = status(kernel)
    answer["units"][0] |= {"state": "failed", "reason": "\x1b[2J\x9b31m\u202e\nroot# "}
    done = explained_by(kernel, answer, nodes.GPU)
    assert done.stdout.startswith(f"{nodes.GPU} is failed: ?[2J?31m??root# \n")
    document = explained_by(kernel, answer, nodes.GPU, "-o", "json").stdout
    assert all(c.isprintable() or c == "\n" for c in done.stdout + document)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"ready": False}, "the agent takes its first turn"),
        ({"ready": True}, "the agent's answer is of another version"),
        ([], "the agent's answer is of another version"),
        ({"ready": True, "agent": "9", "units": [{"id": 7}]}, "of another version"),
    ],
    ids=["starting", "empty", "list", "newer"],
)
def test_an_agent_that_says_nothing_usable_is_no_failure(
    kernel: FakeKernel, answer: Any, reason: str
) -> None:
    done = explained_by(kernel, answer, nodes.GPU)
    assert done.returncode == 0
    assert reason in done.stdout.splitlines()[1]


def test_what_it_says_comes_back_as_values(kernel: FakeKernel) -> None:
    word = said.parse(status(kernel))
    assert isinstance(word, Said)
    assert word.states[nodes.GPU][0] is UnitState.AVAILABLE


@pytest.mark.parametrize("key", ["agent", "read_at", "units", "findings", "last_report"])
def test_every_part_of_its_word_is_needed(kernel: FakeKernel, key: str) -> None:
    answer = status(kernel)
    del answer[key]
    assert isinstance(said.parse(answer), Unsaid)


@pytest.mark.parametrize("elapsed", [10**400, "1e999", [[]], None, "\x1b"], ids=repr)
def test_a_time_that_is_none_is_of_another_version(kernel: FakeKernel, elapsed: object) -> None:
    answer = status(kernel)
    answer["last_report"]["outcomes"] = [
        {
            "step": "bind",
            "result": "done",
            "unit": None,
            "detail": None,
            "elapsed_s": elapsed,
            "ended_at": answer["read_at"],
        }
    ]
    word = said.parse(answer)
    assert isinstance(word, Said if elapsed == "1e999" else Unsaid)


# Selection


SELECTORS: Final = st.builds(
    Selector,
    vendor=st.sampled_from([None, 0x10DE, 0x1002]),
    device=st.sampled_from([None, 0x2330, 0x74A1]),
    class_prefix=st.sampled_from([None, "03", "0302", "0403"]),
    address=st.sampled_from([None, address("01:00.0"), address("02:00.0")]),
    numa_node=st.sampled_from([None, 0, 1]),
    product=st.sampled_from([None, "*H100*", "*"]),
)


@given(
    selector=SELECTORS,
    class_code=st.sampled_from([GPU_CLASS, AUDIO_CLASS]),
    numa_node=st.sampled_from([None, 0, 1]),
    name=st.sampled_from([None, "GH100 [H100 SXM5]"]),
)
def test_a_selector_misses_a_condition_exactly_when_it_does_not_match(
    selector: Selector, class_code: int, numa_node: int | None, name: str | None
) -> None:
    found = function("01:00.0", class_code, numa_node=numa_node, product_name=name)
    assert (first_miss(selector, found) is None) is selector.matches(found)


# The README


def test_the_readme_says_what_each_state_means() -> None:
    section = README.read_text().partition("## Why is this GPU not available?")[2]
    table = section.partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == [s.value for s in UnitState]
