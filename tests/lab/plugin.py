"""pytest's side of the lab: tests marked ``lab`` run in a guest, their results come back here.

On the host such a test is not run. All of one topology run in one guest, by a pytest there,
after all other tests; their reports pass through the same hooks as if they had been made
here, so that output, counts, JUnit files, ``-x`` and the exit status are what they should be.
In the guest they are ordinary tests, which may use the fixture ``machine``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.lab import accelerator, inside, qemu, relay, setup
from tests.lab import machine as lab_machine
from tests.lab.inside import Machine
from tests.lab.reports import FILE_VARIABLE, Writer, revive
from tests.lab.topologies import TOPOLOGIES

_MARKER: Final = (
    "lab(topology='node', *, timeout_s=120): run in a guest of the lab with that topology, "
    "which is ended when the test takes longer"
)
_TIMEOUT_S: Final = 120.0
_PLUGIN_NAME: Final = "kata-gpu-lab"

Boot = Callable[[str], AbstractContextManager[relay.Guest]]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the half of the plugin that this side needs."""
    config.addinivalue_line("markers", _MARKER)
    if inside.topology_name() is None:
        config.pluginmanager.register(HostSide(config, boot_guest), _PLUGIN_NAME)
    elif FILE_VARIABLE in os.environ:
        writer = Writer(Path(os.environ[FILE_VARIABLE]), config)
        config.pluginmanager.register(writer, _PLUGIN_NAME)


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """The guest that the test runs in."""
    here = Machine.here()
    yield here
    here.close()


class HostSide:
    """Runs lab tests elsewhere.

    Args:
        config: pytest's.
        boot: boots a guest with the topology of that name.
        has: tells whether the QEMU of this machine has a device.
    """

    def __init__(
        self, config: pytest.Config, boot: Boot, has: Callable[[str], bool] = qemu.has
    ) -> None:
        self._config = config
        self._boot = boot
        self._has = has
        self._topology: str | None = None
        self._running: Iterator[relay.Outcome] = iter(())
        self._outcomes: dict[str, relay.Outcome] = {}
        self._said: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put lab tests last, each topology's together: one guest at a time."""
        self._leave_out(items)
        topologies = list(dict.fromkeys(_topology(item) for item in items))
        items.sort(key=lambda item: _order(topologies, _topology(item)))

    def _leave_out(self, items: list[pytest.Item]) -> None:
        """Select no test whose machine there cannot be here, and say so."""
        for device in sorted({need for item in items if (need := _need(item)) is not None}):
            if not self._has(device):
                lost = [item for item in items if _need(item) == device]
                items[:] = [item for item in items if item not in lost]
                self._config.hook.pytest_deselected(items=lost)
                count = "1 test" if len(lost) == 1 else f"{len(lost)} tests"
                self._said.append(
                    f"not selected: {count} of a machine with {device}, which the QEMU that is "
                    f"installed here, if any, does not have"
                )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a lab test's results instead of running it."""
        topology = _topology(item)
        if topology is None:
            return None
        if topology != self._topology:
            self._end()
            self._begin(topology, item.session.items)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """End the guest, also when the tests were interrupted."""
        self._end()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what happened to guests that no test is to blame for."""
        for text in self._said:
            terminalreporter.section("lab")
            terminalreporter.line(text)

    def _begin(self, topology: str, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if _topology(item) == topology]
        session = relay.Session(
            topology=TOPOLOGIES[topology],
            boot=lambda: self._boot(topology),
            root=self._config.rootpath,
            pytest_options=_options(self._config),
            say=self._said.append,
        )
        self._topology = topology
        self._running = relay.run(
            session, tuple(relay.Case(item.nodeid, _timeout_s(item)) for item in chosen)
        )

    def _end(self) -> None:
        close = getattr(self._running, "close", None)
        if close is not None:
            close()

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Wait until the test has ended in the guest and yield what it reported."""
        while item.nodeid not in self._outcomes:
            outcome = next(self._running)
            self._outcomes[outcome.node_id] = outcome
        outcome = self._outcomes.pop(item.nodeid)
        reports = [revive(self._config, record.data) for record in outcome.records]
        yield from reports
        if outcome.lost is not None:
            yield _failure(item, reports, outcome.lost)


def boot_guest(topology: str) -> AbstractContextManager[relay.Guest]:
    """Boot a real one, after the set-up that it needs."""
    kernel = setup.prepare(setup.Wanted.from_environment())
    chosen = accelerator.choose(kernel, setup.cache())
    return lab_machine.booted_with_retry(TOPOLOGIES[topology], kernel, chosen)


def _topology(item: pytest.Item) -> str | None:
    """Return the topology a test asks for; None when it is no lab test."""
    marker = item.get_closest_marker("lab")
    if marker is None:
        return None
    name = str(marker.args[0]) if marker.args else "node"
    if name not in TOPOLOGIES:
        known = ", ".join(TOPOLOGIES)
        raise pytest.UsageError(f"{item.nodeid}: no topology {name!r}; there are: {known}")
    return name


def _need(item: pytest.Item) -> str | None:
    topology = _topology(item)
    return None if topology is None else TOPOLOGIES[topology].needs


def _timeout_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("lab")
    return float(marker.kwargs.get("timeout_s", _TIMEOUT_S)) if marker else _TIMEOUT_S


def _order(topologies: list[str | None], topology: str | None) -> int:
    return 0 if topology is None else 1 + topologies.index(topology)


def _options(config: pytest.Config) -> tuple[str, ...]:
    """Return the options that decide what reports look like, for the guest's pytest."""
    options = [f"--rootdir={config.rootpath}", f"--tb={config.getoption('tbstyle')}"]
    if config.inipath is not None:
        options.append(f"--config-file={config.inipath}")
    options += [flag for flag in ("--showlocals", "--runxfail") if config.getoption(flag)]
    options += [f"-o{override}" for override in config.getoption("override_ini") or ()]
    options += [f"-W{warning}" for warning in config.getoption("pythonwarnings") or ()]
    return tuple(options)


def _failure(item: pytest.Item, reports: list[pytest.TestReport], why: str) -> pytest.TestReport:
    """Return the report that a lost test could not make itself, for the phase it was in."""
    phases: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={item.name: 1, "lab": 1},
        outcome="failed",
        longrepr=f"lab: {why}",
        when=phases[min(len(reports), 2)],
    )
