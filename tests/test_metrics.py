"""The node as metrics: every state has a series, and nothing that a node is called breaks one."""

import asyncio
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families
from prometheus_client.registry import CollectorRegistry

from kata_gpu.agent import daemon
from kata_gpu.errors import HostError
from kata_gpu.model.holder import Holder, How
from kata_gpu.model.inventory import KataBase, Problem
from kata_gpu.model.plan import Finding, Severity
from kata_gpu.model.report import NodeState, Outcome, Report, Result, UnitStatus
from kata_gpu.model.unit import UnitState
from kata_gpu.observe import client, metrics, server
from kata_gpu.observe.metrics import Measures
from kata_gpu.settings.agent import Endpoint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import SETTINGS, TEXT
from tests.running import QUICK, Agent, Events
from tests.running import run as run_daemon
from tests.serving import connected, rest, served
from tests.test_cli import complaint, run
from tests.values import PLATFORM

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


def unit(number: int, state: UnitState, **changes: Any) -> UnitStatus:
    found = UnitStatus(
        id=f"0000:{number:02x}:00.0",
        state=state,
        reason="",
        pool="gpus",
        resource="nvidia.com/pgpu",
        groups=(),
        numa_node=None,
        functions=(),
        nodes=(),
        holders=(),
        cleaned=None,
    )
    return replace(found, **changes)


def finding(severity: Severity, subject: str) -> Finding:
    return Finding(severity=severity, subject=subject, reason="", remedy="")


HOLDER: Final = Holder(pid=1, command="qemu", device="/dev/vfio/1", how=How.OPEN)
STATE: Final = NodeState(
    agent="1.0",
    blueprint="v1",
    pass_number=7,
    read_at=NOW,
    platform=PLATFORM,
    units=(
        unit(1, UnitState.AVAILABLE),
        unit(2, UnitState.IN_USE, holders=(HOLDER, HOLDER)),
        unit(3, UnitState.AVAILABLE, resource=None),
    ),
    kata=(
        KataBase(handler="kata-go", config="/a.toml", directory="/d", reason=None),
        KataBase(handler="kata-rs", config="/b.toml", directory=None, reason="not there"),
    ),
    files=("/var/run/cdi/x.json",),
    findings=(
        finding(Severity.WARNING, "/etc/cdi/bad.json"),
        finding(Severity.WARNING, "/etc/cdi/bad.json"),
        finding(Severity.REFUSED, "node"),
    ),
    problems=(Problem(subject="node", reason="why"),),
    last_report=Report(
        outcomes=(
            Outcome(
                step="", result=Result.DONE, unit=None, detail=None, elapsed_s=0.0, ended_at=NOW
            ),
        )
    ),
)
MEASURES: Final = Measures(
    version="1.0",
    state=STATE,
    turns=8,
    failed_turns=1,
    turn_s=0.25,
    operations=2,
    set_aside=3,
    answered={"kubelet": 5, "kept": 1},
    is_read_only=True,
)


def samples(measures: Measures) -> dict[tuple[str, ...], float]:
    """Return each series' value by its name and its labels' values, in the order of the labels'
    names; no two are the same.
    """
    found: dict[tuple[str, ...], float] = {}
    for family in families(metrics.render(measures).decode()):
        assert family.name.startswith("kata_gpu_")
        assert family.documentation.endswith((".", "1."))
        for sample in family.samples:
            key = (sample.name.removeprefix("kata_gpu_"), *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def test_the_agent_tells_how_it_is() -> None:
    found = samples(MEASURES)
    assert found["build_info", "1.0"] == 1
    assert found["blueprint_info", "v1"] == 1
    expected = {
        "ready": 1,
        "read_only": 1,
        "blueprint_outdated": 0,
        "turns_total": 8,
        "turn_failures_total": 1,
        "turn_duration_seconds": 0.25,
        "last_look_timestamp_seconds": NOW.timestamp(),
        "operations_stuck": 2,
        "quarantined_files": 3,
        "problems": 1,
        "owned_files": 1,
    }
    assert {name: found[name,] for name in expected} == expected
    assert found["pod_resources_answers_total", "kubelet"] == 5


def test_every_state_and_severity_and_result_has_a_series() -> None:
    found = samples(replace(MEASURES, state=replace(STATE, units=(), findings=())))
    assert {k[1] for k in found if k[0] == "units"} == {state.value for state in UnitState}
    assert {k[1] for k in found if k[0] == "findings"} == {s.value for s in Severity}
    assert {k[1] for k in found if k[0] == "last_steps"} == {result.value for result in Result}


def test_units_are_counted_and_each_has_its_state() -> None:
    found = samples(MEASURES)
    assert (found["units", "available"], found["units", "in-use"]) == (2, 1)
    assert found["unit_state", "gpus", "nvidia.com/pgpu", "in-use", "0000:02:00.0"] == 1
    assert found["unit_state", "gpus", "", "available", "0000:03:00.0"] == 1
    assert found["unit_holders", "0000:02:00.0"] == 2


def test_what_is_in_the_way_is_told_by_its_path() -> None:
    found = samples(MEASURES)
    assert (found["findings", "warning"], found["findings", "refused"]) == (2, 1)
    assert {k: v for k, v in found.items() if k[0] == "file_findings"} == {
        ("file_findings", "/etc/cdi/bad.json"): 2
    }
    assert (found["kata_handler_found", "kata-go"], found["kata_handler_found", "kata-rs"]) == (
        1,
        0,
    )


def test_before_the_first_turn_there_is_little_to_tell() -> None:
    found = samples(Measures(version="1.0", state=None))
    assert found["ready",] == 0
    assert not [key for key in found if key[0] in {"units", "turn_duration_seconds"}]


# What a node is called


@given(st.text(st.characters(exclude_categories=())))
def test_no_name_breaks_the_text(name: str) -> None:
    found = (finding(Severity.WARNING, f"/{name}"),)
    measures = replace(MEASURES, state=replace(STATE, findings=found))
    text = metrics.render(measures).decode("utf-8")
    (line,) = (line for line in text.split("\n") if line.startswith("kata_gpu_file_findings{"))
    assert line.isprintable()
    assert line.endswith('"} 1.0')
    assert len(line) < 500
    assert samples(measures)["findings", "warning"] == 1


@given(st.text(st.characters(exclude_categories=())))
def test_no_name_breaks_openmetrics(name: str) -> None:
    found = (finding(Severity.WARNING, f"/{name}"),)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics.collector(replace(MEASURES, state=replace(STATE, findings=found))))
    text = generate_latest(registry).decode("utf-8")  # type: ignore[no-untyped-call]
    parsed: list[Metric] = list(open_families(text))  # type: ignore[no-untyped-call]
    assert "kata_gpu_file_findings" in {family.name for family in parsed}


def test_a_name_says_what_cannot_be_printed() -> None:
    hostile = '/etc/cdi/"}\n\x1b[2J\udcff\\.json'
    measures = replace(
        MEASURES, state=replace(STATE, findings=(finding(Severity.WARNING, hostile),))
    )
    (key,) = (key for key in samples(measures) if key[0] == "file_findings")
    assert key[1] == r'/etc/cdi/"}\n\x1b[2J\udcff\\.json'


def test_a_flood_of_names_is_counted_and_not_told() -> None:
    flood = tuple(finding(Severity.WARNING, f"/etc/cdi/{n}") for n in range(5000))
    found = samples(replace(MEASURES, state=replace(STATE, findings=flood)))
    told = {key: value for key, value in found.items() if key[0] == "file_findings"}
    assert len(told) == 1001
    assert told["file_findings", "(more)"] == 4000


# On the socket


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = nodes.single_gpu(tmp_path)
    path = kernel.host.path(SETTINGS.blueprint)
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    return kernel


ROUTES: Final[server.Routes] = {
    daemon.METRICS: lambda: server.Text(content=metrics.render(MEASURES), kind=metrics.CONTENT_TYPE)
}


def test_prometheus_is_told_what_kind_of_text_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"

    def ask() -> bytes:
        with connected(path) as channel:
            channel.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            return rest(channel)

    head, _, body = served(path, ask, routes=ROUTES).partition(b"\r\n\r\n")
    assert b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n" in head
    assert body == metrics.render(MEASURES)


def test_the_daemon_answers_with_its_latest_state(kernel: FakeKernel, events: Events) -> None:
    async def script(agent: Agent) -> None:
        path = kernel.host.path(QUICK.socket)
        text = await agent.ask(client.get_text, path, daemon.METRICS)
        assert 'kata_gpu_units{state="available"} 1.0\n' in text
        assert "kata_gpu_turns_total 1.0\n" in text
        assert "kata_gpu_turn_duration_seconds " in text

    run_daemon(kernel, events, script)


def test_the_first_scrape_imports_what_it_needs_off_the_loop_and_nothing_does_before() -> None:
    argv = [sys.executable, "-m", "tests.scraped"]
    done = subprocess.run(
        argv, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[] ['worker']\n"


def test_anybody_may_read_them_where_the_settings_say_so(
    kernel: FakeKernel, events: Events
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = replace(QUICK, metrics=Endpoint(address="127.0.0.1", port=port))

    async def script(agent: Agent) -> None:
        found = await agent.ask(ask_tcp, port, "GET /metrics")
        assert 'kata_gpu_units{state="available"} 1.0' in found
        for request in ("GET /v1/status", "POST /v1/clear", "POST /metrics"):
            assert (await agent.ask(ask_tcp, port, request)).startswith("HTTP/1.1 40")

    run_daemon(kernel, events, script, settings)


def ask_tcp(port: int, request: str) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as channel:
        channel.sendall(f"{request} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return rest(channel).decode()


def test_a_port_that_is_taken_is_told() -> None:
    async def main(port: int) -> None:
        async with server.serve_all("127.0.0.1", port, {}):
            pass

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(HostError, match=r"cannot serve on 127.0.0.1 port \d+: "):
            asyncio.run(main(taken.getsockname()[1]))


def test_the_verb_prints_them(kernel: FakeKernel) -> None:
    path = kernel.host.path(SETTINGS.socket)
    done = served(path, lambda: run("metrics", "--root", kernel.host.root), routes=ROUTES)
    assert (done.returncode, done.stdout) == (0, metrics.render(MEASURES).decode())


def test_the_verb_replaces_a_file_that_anybody_may_read(kernel: FakeKernel, tmp_path: Path) -> None:
    served_at, path = kernel.host.path(SETTINGS.socket), tmp_path / "out/kata-gpu.prom"
    argv = ("metrics", "--root", kernel.host.root, "--output", path)
    done = served(served_at, lambda: run(*argv), routes=ROUTES)
    assert (done.returncode, done.stdout) == (0, "")
    assert path.read_bytes() == metrics.render(MEASURES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "nobody serves" in complaint(run(*argv))
    assert path.read_bytes() == metrics.render(MEASURES)


def test_an_answer_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    routes: server.Routes = {"/metrics": lambda: server.Text(content=b"\xff", kind="text/plain")}

    def ask() -> None:
        with pytest.raises(HostError, match="its answer is not UTF-8"):
            client.get_text(path, "/metrics")
        with pytest.raises(HostError, match="404"):
            client.get_text(path, "/other")

    served(path, ask, routes=routes)
