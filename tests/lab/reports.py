"""Test reports on their way from the guest's pytest to the host's: one JSON object a line."""

import faulthandler
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pytest

FILE_VARIABLE: Final = "KATA_GPU_LAB_REPORTS"
PID_FILE: Final = "pytest.pid"
STACKS_FILE: Final = "pytest.stacks"

Kind = Literal["start", "report", "finish"]


@dataclass(frozen=True, slots=True)
class Record:
    """Something that happened in the guest's pytest."""

    kind: Kind
    node_id: str
    data: dict[str, Any]
    """A report in pytest's own serialized form; empty for start and finish."""


class Writer:
    """Writes what happens to a file that the host reads as it grows."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self._path = path
        self._config = config
        folder = path.parent
        (folder / PID_FILE).write_text(str(os.getpid()), encoding="ascii")
        self._stacks = (folder / STACKS_FILE).open("w", encoding="utf-8")
        faulthandler.register(signal.SIGUSR1, self._stacks, all_threads=True)

    def pytest_unconfigure(self) -> None:
        """Stop answering the question where the tests are."""
        faulthandler.unregister(signal.SIGUSR1)
        self._stacks.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("start", nodeid, {})

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write("report", report.nodeid, self._serialized(report))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write("finish", nodeid, {})

    def _serialized(self, report: pytest.TestReport) -> dict[str, Any]:
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        assert isinstance(data, dict)
        return data

    def _write(self, kind: Kind, node_id: str, data: dict[str, Any]) -> None:
        line = json.dumps([kind, node_id, data], default=repr)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class Reader:
    """Reads the records that are complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[Record]:
        """Yield the records since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                kind, node_id, data = json.loads(line)
                yield Record(kind, node_id, data)


def revive(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    """Return the report that was serialized; JSON's lists are tuples again."""
    data = {**data, "location": tuple(data["location"])}
    for field in ("sections", "user_properties"):
        data[field] = [tuple(pair) for pair in data[field]]
    if isinstance(data["longrepr"], list):  # a skip: path, line, reason
        data["longrepr"] = tuple(data["longrepr"])
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    assert isinstance(report, pytest.TestReport)
    return report
