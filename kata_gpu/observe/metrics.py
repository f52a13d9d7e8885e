"""The node as Prometheus metrics: names ``kata_gpu_*``, base units, ``_total`` for what only grows.

What always holds:

- there is one series for each combination of labels, and so many of them that a hostile node
  cannot make more: files and units past a limit are counted, not named;
- a label's value is printable, whatever a file's name holds.

Source: the Prometheus text format, version 0.0.4, as prometheus-client writes it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kata_gpu.model.plan import Severity
from kata_gpu.model.report import NodeState, Result
from kata_gpu.model.unit import UnitState

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_VALUE_MAX: Final = 200
_SERIES_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What metrics are made of."""

    version: str
    state: NodeState | None
    """None before the first turn has ended."""

    turns: int = 0
    failed_turns: int = 0
    """Those that were skipped, for the node could not be looked at."""

    turn_s: float | None = None
    """How long the last one took that was not."""

    operations: int = 0
    """What hangs in the kernel."""

    set_aside: int = 0
    """Foreign files in the quarantine."""

    answered: Mapping[str, int] = field(default_factory=dict)
    """Answers to Kata by whose they were; empty where Kata asks kubelet."""

    is_read_only: bool = False
    is_outdated: bool = False
    """Whether the blueprint in force is not the one in its file, which is wrong."""


def render(measures: Measures) -> bytes:
    """Return the metrics as text."""
    from prometheus_client import generate_latest  # noqa: PLC0415 - 2 MB, for who is scraped
    from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector(measures))
    return generate_latest(registry)


def collector(measures: Measures) -> "Collector":
    """Return what a registry asks for the metrics."""
    return _Collector(measures)


class _Collector:
    """What a registry asks for its metrics."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures

    def describe(self) -> Iterable["Metric"]:
        return ()

    def collect(self) -> Iterator["Metric"]:
        yield from _of_agent(self._measures)
        if self._measures.state is not None:
            yield from _of_units(self._measures.state)
            yield from _of_node(self._measures.state)


def _of_agent(measures: Measures) -> Iterator["Metric"]:
    state = measures.state
    yield _info("build_info", "The agent that runs.", version=measures.version)
    yield _gauge("ready", "Whether the first turn has ended.", state is not None)
    yield _gauge(
        "read_only", "Whether the ledger cannot be trusted, so that nothing is changed.",
        measures.is_read_only,
    )  # fmt: skip
    yield _gauge(
        "blueprint_outdated", "Whether the blueprint's file is wrong, and an older one in force.",
        measures.is_outdated,
    )  # fmt: skip
    yield _counter("turns", "Turns that were begun.", measures.turns)
    yield _counter(
        "turn_failures", "Turns in which the node could not be looked at.", measures.failed_turns
    )
    if measures.answered:
        yield _answers(measures.answered)
    if measures.turn_s is not None:
        yield _gauge("turn_duration_seconds", "How long the last turn took.", measures.turn_s)
    yield _gauge(
        "operations_stuck", "Operations that hang in the kernel, and may for ever.",
        measures.operations,
    )  # fmt: skip
    yield _gauge(
        "quarantined_files", "Foreign files that were moved out of the way.", measures.set_aside
    )


def _of_units(state: NodeState) -> Iterator["Metric"]:
    counts = Counter(unit.state for unit in state.units)
    yield _gauges(
        "units", "Units by state.", ("state",), [((s.value,), counts[s]) for s in UnitState]
    )
    yield _gauges(
        "unit_state",
        "The state of each unit: 1.",
        ("unit", "pool", "resource", "state"),
        [((u.id, u.pool, u.resource or "", u.state.value), 1) for u in state.units],
    )
    yield _gauges(
        "unit_holders",
        "Processes that have each unit, VMs among them.",
        ("unit",),
        [((unit.id,), len(unit.holders)) for unit in state.units],
    )


def _of_node(state: NodeState) -> Iterator["Metric"]:
    yield _info("blueprint_info", "The blueprint in force.", version=state.blueprint)
    yield _gauge(
        "last_look_timestamp_seconds", "When the node was last looked at.",
        state.read_at.timestamp(),
    )  # fmt: skip
    severities = Counter(finding.severity for finding in state.findings)
    yield _gauges(
        "findings",
        "Findings by severity.",
        ("severity",),
        [((severity.value,), severities[severity]) for severity in Severity],
    )
    files = Counter(f.subject for f in state.findings if f.subject.startswith("/"))
    yield _gauges(
        "file_findings",
        "Findings about each foreign CDI or Kata file that is in the way.",
        ("subject",),
        [((path,), count) for path, count in files.items()],
    )
    yield _gauge("problems", "What of the node could not be read.", len(state.problems))
    yield _gauge("owned_files", "Files that this agent wrote.", len(state.files))
    yield _gauges(
        "kata_handler_found",
        "Whether the base file of each Kata handler of the blueprint is there.",
        ("handler",),
        [((base.handler,), base.directory is not None) for base in state.kata],
    )
    results = Counter(outcome.result for outcome in state.last_report.outcomes)
    yield _gauges(
        "last_steps",
        "Steps of the last turn that had any, by how they ended.",
        ("result",),
        [((result.value,), results[result]) for result in Result],
    )


def _gauge(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - see `render`

    return GaugeMetricFamily(f"kata_gpu_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 - see `render`

    return CounterMetricFamily(f"kata_gpu_{name}", text, value=value)


def _answers(answered: Mapping[str, int]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 - see `render`

    text = "Answers to Kata's questions which devices a pod has, by whose they were."
    family = CounterMetricFamily("kata_gpu_pod_resources_answers", text, labels=("source",))
    for source, count in answered.items():
        family.add_metric((source,), count)
    return family


def _info(name: str, text: str, **labels: str) -> "Metric":
    return _gauges(name, text, tuple(labels), [(tuple(labels.values()), 1)])


def _gauges(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[tuple[str, ...], float]]
) -> "Metric":
    """Return a family of series; two of the same labels are one, with the sum of their values."""
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - see `render`

    series: dict[tuple[str, ...], float] = {}
    for words, value in values:
        key = tuple(map(_printable, words))
        if key not in series and len(series) >= _SERIES_MAX:
            key = ("(more)",) * len(key)
        series[key] = series.get(key, 0) + value
    family = GaugeMetricFamily(f"kata_gpu_{name}", text, labels=labels)
    for key, value in series.items():
        family.add_metric(key, value)
    return family


def _printable(word: str) -> str:
    """Return a word of somebody else's for a label: on one line, not too long, and UTF-8."""
    shown = word if word.isprintable() else word.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= _VALUE_MAX else f"{shown[: _VALUE_MAX - 1]}…"
