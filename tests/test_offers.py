"""What is offered, beside everybody else's CDI files."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.agent import node
from kata_gpu.host.watches import Watches
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.model.plan import Finding, RemoveFile, Severity, WriteFile
from kata_gpu.settings import blueprint as parsing
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import CDI, EVERY_GPU, SETTINGS, TEXT, journal_of
from tests.running import Agent, Events, run, state_of
from tests.test_status_text import shown

KIND: Final = "example.com/pgpu"
RIVAL: Final = "/var/run/cdi/example.com-pgpu.yaml"
SNP: Final = """
[[kata.handler]]
name = "kata-qemu-nvidia-gpu-snp"
runtime = "go"
config = "/opt/kata/configuration.toml"
"""


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    found = nodes.single_gpu(tmp_path)
    found.tree.text(SETTINGS.blueprint.removeprefix("/"), TEXT)
    return found


@pytest.fixture
def events() -> Iterator[Events]:
    found = Events()
    yield found
    found.close()


def write(kernel: FakeKernel, path: str, **changes: Any) -> None:
    edits = {"deviceNodes": [{"path": "/dev/null"}]}
    devices = [{"name": "84", "containerEdits": edits}]
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices, **changes}
    kernel.tree.text(path.removeprefix("/"), json.dumps(spec))


def converged(kernel: FakeKernel, wanted: Blueprint = EVERY_GPU) -> node.Turn:
    return node.converge(kernel.host, SETTINGS, wanted, journal_of(kernel.host))


def about(found: node.Turn, subject: str) -> list[Finding]:
    return [finding for finding in found.plan.findings if finding.subject == subject]


def test_a_resource_that_somebody_else_writes_is_not_offered(kernel: FakeKernel) -> None:
    write(kernel, RIVAL, kind=KIND)
    turn = converged(kernel)
    assert not any(isinstance(step, WriteFile) for step, _ in turn.taken)
    assert not kernel.host.path(CDI).exists()
    (refused,) = about(turn, nodes.GPU)
    assert refused.severity is Severity.REFUSED
    assert RIVAL in refused.reason
    assert "remove the file" in refused.remedy
    assert kernel.host.path(RIVAL).exists()


def test_a_second_writer_that_comes_later_has_ours_withdrawn_and_no_other_harm(
    kernel: FakeKernel,
) -> None:
    converged(kernel)
    write(kernel, RIVAL, kind=KIND)
    turn = converged(kernel)
    assert [type(step) for step, _ in turn.taken] == [RemoveFile]
    assert not kernel.host.path(CDI).exists()
    kernel.host.path(RIVAL).unlink()
    converged(kernel)
    assert nodes.GPU in kernel.host.path(CDI).read_text()


@pytest.mark.parametrize(
    ("path", "kind"), [("/etc/cdi/example.com-pgpu.yaml", KIND), (RIVAL, "nvidia.com/gpu")]
)
def test_another_directory_or_kind_is_no_second_writer(
    path: str, kind: str, kernel: FakeKernel
) -> None:
    write(kernel, path, kind=kind)
    assert converged(kernel).plan.findings == ()
    assert kernel.host.path(CDI).exists()


def test_a_foreign_file_that_stops_every_pod_is_told_and_left_alone(kernel: FakeKernel) -> None:
    write(kernel, "/etc/cdi/nvidia.yaml", cdiVersion="0.7.0", comment="x")
    before = kernel.host.path("/etc/cdi/nvidia.yaml").read_text()
    (told,) = about(converged(kernel), "/etc/cdi/nvidia.yaml")
    assert told.severity is Severity.WARNING
    assert told.reason == (
        "cdiVersion: cdiVersion 0.7.0, and Kata's Go runtime knows none after 0.6.0 (and 1 more "
        "faults); it stops every pod of Kata's Go runtime that asks for a GPU"
    )
    assert kernel.host.path("/etc/cdi/nvidia.yaml").read_text() == before
    assert kernel.host.path(CDI).exists()


@pytest.mark.parametrize(("runtime", "is_told"), [("go", True), ("rust", False)])
def test_only_runtimes_of_the_blueprint_count(
    runtime: str, is_told: bool, kernel: FakeKernel
) -> None:
    write(kernel, "/etc/cdi/nvidia.yaml", cdiVersion="1.1.0")
    handler = SNP.replace("-snp", "").replace('"go"', f'"{runtime}"')
    turn = converged(kernel, parsing.parse(TEXT + handler))
    assert bool(about(turn, "/etc/cdi/nvidia.yaml")) is is_told


def test_the_status_tells_it(kernel: FakeKernel, events: Events) -> None:
    write(kernel, RIVAL, kind=KIND)
    write(kernel, "/etc/cdi/nvidia.yaml", cdiVersion="0.7.0")
    answers = []

    async def script(agent: Agent) -> None:
        answers.append(await agent.status())
        assert state_of(answers[0]) == "refused"

    run(kernel, events, script)
    text = shown(kernel, answers[0]).stdout
    assert f"0000:01:00.0 is refused: {RIVAL} has CDI kind {KIND} too" in text
    assert "warning: /etc/cdi/nvidia.yaml: cdiVersion: cdiVersion 0.7.0" in text


def test_a_foreign_file_is_heard_at_once_when_it_comes_and_goes(
    kernel: FakeKernel, events: Events
) -> None:
    kernel.host.path("/etc/cdi").mkdir(parents=True)

    async def script(agent: Agent) -> None:
        write(kernel, RIVAL, kind=KIND)
        await agent.until(lambda status: state_of(status) == "refused")
        kernel.host.path(RIVAL).unlink()
        await agent.until(lambda status: state_of(status) == "available")
        write(kernel, "/etc/cdi/nvidia.yaml", cdiVersion="0.7.0")
        await agent.until(
            lambda status: [f["subject"] for f in status["findings"]] == ["/etc/cdi/nvidia.yaml"]
        )

    with Watches.open() as watches:
        run(kernel, events, script, watches=watches)


def test_a_rival_is_seen_by_whatever_name_the_directory_has(kernel: FakeKernel) -> None:
    root = kernel.tree.root
    (root / "run/cdi").mkdir(parents=True)
    (root / "var").mkdir(exist_ok=True)
    (root / "var/run").symlink_to("/run")
    settings = replace(SETTINGS, cdi_directory="/run/cdi")
    journal = journal_of(kernel.host)
    ours = root / "run/cdi" / Path(CDI).name
    node.converge(kernel.host, settings, EVERY_GPU, journal)
    assert ours.exists()
    write(kernel, "/run/cdi/example.com-pgpu.yaml", kind=KIND)
    turn = node.converge(kernel.host, settings, EVERY_GPU, journal)
    assert "two writers of one kind" in about(turn, nodes.GPU)[0].reason
    assert not ours.exists()
